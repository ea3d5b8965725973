"""What older configs, keys and bundles are named by stays as it was before the later fields came."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter

from pipeline.images import ImagesConfig, transform_id
from pipeline.models import AnyModelConfig, ModelConfig, train_key


def parsed(**values: object) -> ModelConfig:
    config: ModelConfig = TypeAdapter(AnyModelConfig).validate_python(values)
    return config


def test_ids_of_configs_that_use_nothing_new_are_as_before() -> None:
    assert transform_id(ImagesConfig()) == "ada71561a50e97d6"
    assert transform_id(ImagesConfig(size=224, fit="crop")) == "99c557203a5b0c3b"
    images = ImagesConfig(size=64).key_values()
    old = {"kind": "pretrained", "enlarge_to": 128, "read_out": {"pool": "global", "dims": 64}}
    assert (
        train_key(parsed(**old), images, {}, 0, 1) == "e9ae5736a880f1b95f488b809b37f7405d374e5c18cc815a0e88212cc46d3911"
    )
    assert (
        train_key(parsed(kind="simclr"), images, {}, 0, 1)
        == "f766810e1b6f242da49212bda9c1f963bf2b64b2f446c5aa5efd1e00bbf5b0fc"
    )
    assert (
        train_key(parsed(kind="mae"), images, {}, 0, 1)
        == "5081fe698d6935379d37a99d9a34993d56f6f871574bf22a1d951204e5b10ced"
    )


@pytest.mark.parametrize(
    "values", [{"resample": "lanczos"}, {"antialias": False}, {"fit": "crop", "crop_share": 0.875}]
)
def test_what_is_new_makes_another_transform(values: dict[str, object]) -> None:
    assert transform_id(ImagesConfig.model_validate(values)) != transform_id(
        ImagesConfig.model_validate({name: value for name, value in values.items() if name == "fit"})
    )

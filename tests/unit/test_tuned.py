"""Fine-tuning a pretrained backbone: its last blocks learn, its statistics stay, others begin as they were."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

import foreign_files as FILES
from pipeline.errors import ConfigError
from pipeline.images import ImagesConfig
from pipeline.losses import nt_xent, sup_con
from pipeline.models import AnyModelConfig, Batch, Step, build_model
from pipeline.models.bundle import resolved_config
from pipeline.planning import check_training_columns
from pipeline.schema import plan_schema
from pipeline.storage import Files, open_store
from pipeline.training.config import TrainConfig
from pipeline.training.optimisers import build_optimiser


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tuned")
    torch.save(FILES.random_timm("test_resnet").state_dict(), path / "r.pth")
    torch.save(FILES.random_timm("test_vit", img_size=FILES.SIZE, num_classes=0).state_dict(), path / "v.pth")
    return path


def config_of(folder: Path, kind: str = "simclr", **changes: Any) -> Any:
    backbone = {
        "source": "timm", "architecture": "test_resnet", "weights": str(folder / "r.pth"), "output": "features",
        "licence": "MIT", "preprocessing": FILES.PLAIN, **changes,
    }  # fmt: skip
    values = {"kind": kind, "projector": (16, 8), "backbone": backbone}
    if kind == "moco":
        values |= {"queue": 64, "momentum": 0.95}
    return TypeAdapter(AnyModelConfig).validate_python(values)


def begun(config: Any) -> Any:
    torch.manual_seed(0)
    described = resolved_config(open_store("memory://tuned-unused"), config, {"size": 64})
    model = build_model(described, image_size=64)
    model.use_file(Files().read(config.file()), config.file())
    return model


def stepped(model: Any, steps: int = 3) -> None:
    optimiser = build_optimiser(model.train(), TrainConfig(learning_rate=1e-3))
    for number in range(steps):
        optimiser.zero_grad()
        model(Batch(model.augmented(FILES.photos(8, seed=number))), Step(number, steps)).total.backward()
        optimiser.step()
        model.after_step()


@pytest.mark.parametrize("kind", ["simclr", "moco"])
def test_the_last_blocks_learn_and_all_else_stays(folder: Path, kind: str) -> None:
    config = config_of(folder, kind, train_last=1)
    model = begun(config)
    plain = FILES.loaded(FILES.parsed(**config.backbone.model_dump(exclude={"train_last"})))
    images = FILES.photos()
    torch.testing.assert_close(model.encode(images).mean, plain.encode(images).mean, rtol=0, atol=1e-6)
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    stepped(model)
    moved = {name for name, value in model.network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(".layer4.0." in name for name in moved)
    assert not any("running" in name or "num_batches" in name for name in moved)  # a batch's would be the known wrong
    assert not torch.allclose(model.encode(images).mean, plain.encode(images).mean, atol=1e-4)
    if kind == "moco":
        model.follow(1.0)
        for name, value in model.network.state_dict().items():
            torch.testing.assert_close(model.key_network.state_dict()[name], value, rtol=1e-6, atol=1e-7)


def test_a_transformers_blocks_are_counted_and_its_class_token_read(folder: Path) -> None:
    given = {"architecture": "test_vit", "weights": str(folder / "v.pth"), "read_out": {"pool": "cls"}}
    model = begun(config_of(folder, **given, train_last=2))
    learning = [name for name, parameter in model.network.named_parameters() if parameter.requires_grad]
    depth = len(model.network.inner.network.network.blocks)
    blocks = {int(name.split(".blocks.")[1].split(".")[0]) for name in learning if ".blocks." in name}
    assert blocks == {depth - 2, depth - 1}
    assert any(name.endswith("network.norm.weight") for name in learning)
    assert model.encode(FILES.photos()).mean.shape == (3, 64)
    with pytest.raises(ConfigError, match=r"train_last is 99, but the network has \d+ blocks"):
        begun(config_of(folder, **given, train_last=99))


def test_it_sees_photos_in_its_own_way_and_is_off_by_default(folder: Path) -> None:
    config = config_of(folder)
    assert config.transforms(ImagesConfig(size=64))[0].size == FILES.SIZE
    assert build_model(config, image_size=64).image_size == FILES.SIZE
    again = type(config).model_validate(config.model_dump(mode="json"))
    assert again == config
    assert again.backbone.train_last == 1
    plain = TypeAdapter(AnyModelConfig).validate_python({"kind": "simclr"})
    assert "backbone" not in plain.model_dump()
    with pytest.raises(ValidationError, match="cannot be trained on"):
        config_of(folder, source="onnx", weights="x.onnx")
    with pytest.raises(ValidationError, match="sees pixels in colour"):
        TypeAdapter(AnyModelConfig).validate_python({**config.model_dump(mode="json"), "grey": True})


def test_categories_bring_photos_together_only_where_asked(folder: Path) -> None:
    """Supervised, the loss is sup_con of the batch's categories; rows 0 and 1 of the table are no categories."""
    model = begun(config_of(folder)).train()
    views = model.augmented(FILES.photos(6))
    condition = torch.tensor([2, 3, 2, 0, 1, 3])
    alone = model(Batch(views, condition), Step(0, 1)).total
    model.supervised = True
    together = model(Batch(views, condition), Step(0, 1)).total
    first, second = model._projected(views, model.network, model.projector).chunk(2)
    wanted = sup_con(first, second, torch.tensor([0, 1, 0, -1, -1, 1]), 0.2, over_ranks=False)
    torch.testing.assert_close(together, wanted)
    torch.testing.assert_close(alone, nt_xent(first, second, 0.2, over_ranks=False))
    assert abs((together - alone).item()) > 1e-3
    torch.testing.assert_close(model(Batch(views), Step(0, 1)).total, alone)


def test_supervision_is_in_keys_only_where_it_is_asked() -> None:
    plain, asked = TrainConfig(), TrainConfig(supervision="category")
    assert "supervision" not in plain.model_dump()
    assert plain.key_values() != asked.key_values()
    assert TrainConfig(supervision="category").key_values(by_steps=False) == plain.key_values(by_steps=False)


def test_supervision_wants_a_kind_that_learns_by_categories_and_a_column_of_them() -> None:
    rows = plan_schema([]).empty_table()

    def check(kind: str, category: str | None) -> None:
        parts = {
            "train": TrainConfig(supervision="category", validation=0),
            "model": TypeAdapter(AnyModelConfig).validate_python({"kind": kind}),
            "catalogue": SimpleNamespace(category=category),
        }
        check_training_columns(rows, SimpleNamespace(**parts))  # type: ignore[arg-type]

    check("simclr", "category")
    with pytest.raises(ConfigError, match=r"'moco' does not learn from categories; name one of simclr"):
        check("moco", "category")
    with pytest.raises(ConfigError, match=r"catalogue\.category is not set"):
        check("simclr", None)

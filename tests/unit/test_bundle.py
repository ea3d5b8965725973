"""Bundles: names, order of writes, what a crash leaves, what damage and foreign versions are answered with."""

from __future__ import annotations

import json
import pickle
import site
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import pytest
import safetensors.torch
import torch

from pipeline.errors import CodebooksError, InputError, IntegrityError, NotFound
from pipeline.models import (
    MODELS,
    Bundle,
    Model,
    build_model,
    bundle,
    export,
    find_bundle,
    load_bundle,
    save_bundle,
    train_key,
)
from pipeline.models.quantizers import EMAConfig
from pipeline.models.shelves import content_id
from pipeline.models.vae import VAEConfig
from pipeline.models.vqvae import VQVAEConfig
from pipeline.quality.examining import model_files
from pipeline.release import Manifest
from pipeline.storage import MemoryStore, Store, open_store

CONFIG = VAEConfig(latent_dim=4, channels=(4, 8))
IMAGES = {"size": 16, "fit": "pad"}
KEY = "ab" * 32


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Store:
    return open_store(f"memory://bundle-{request.node.name}")


@pytest.fixture(autouse=True)
def _quick_export(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that are not about the ONNX file do without the seconds it takes."""
    if "onnx" not in request.node.name:
        monkeypatch.setattr(bundle, "export_encoder", lambda model, **_: b"an encoder")


def make(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return build_model(CONFIG, image_size=16)


def save(store: Store, seed: int = 0, key: str = KEY, **card: Any) -> str:
    return save_bundle(store, make(seed), CONFIG, IMAGES, train_key=key, card=card)


def names(store: Store) -> list[str]:
    return [entry.name.rsplit("/", 1)[1] for entry in store.list("models/") if "by-key" not in entry.name]


def test_a_bundle_is_whole_and_found_by_its_key(store: Store) -> None:
    assert find_bundle(store, KEY) is None
    model_id = save(store)
    assert find_bundle(store, KEY) == model_id
    assert names(store) == ["card.md", "config.json", "encoder.onnx", "weights.safetensors"]
    loaded = load_bundle(store, model_id)
    assert isinstance(loaded, Bundle)
    assert (loaded.model_id, loaded.config, loaded.image_size, loaded.images) == (model_id, CONFIG, 16, IMAGES)


def test_the_model_id_follows_the_content(store: Store) -> None:
    config = b"{}"
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros((), dtype=torch.int64)}
    plain = content_id(config, tensors)
    assert plain == content_id(config, dict(reversed(tensors.items())))
    assert plain == content_id(config, tensors | {"a": tensors["a"].t().contiguous().t()})  # strides are no content
    others = [
        content_id(b"{ }", tensors),
        content_id(config, tensors | {"a": tensors["a"].view(3, 2)}),
        content_id(config, tensors | {"a": tensors["a"].view(torch.int32)}),
        content_id(config, tensors | {"a": tensors["a"] + 1}),
        content_id(config, {"a": tensors["a"], "c": tensors["b"]}),
    ]
    assert len({plain, *others}) == 6
    assert save(store, seed=0) != save(store, seed=1, key="cd" * 32)


def test_saving_neither_changes_the_model_nor_the_random_numbers(store: Store) -> None:
    model = make().train()
    state = torch.get_rng_state()
    model_id = save_bundle(store, model, CONFIG, IMAGES, train_key=KEY, card={})
    load_bundle(store, model_id)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_that_is_told_nothing_keeps_no_labels(store: Store) -> None:
    """So the bytes and ids of such bundles are what they were before there were labels."""
    plain = save(store)
    told = save_bundle(store, make(), CONFIG, IMAGES, train_key="cd" * 32, card={}, labels=("hat", "shoe"))
    assert told == plain
    facts = {"format": 1, "image_size": 16, "images": IMAGES, "model": CONFIG.model_dump(mode="json")}
    written = (json.dumps(facts, sort_keys=True, indent=2) + "\n").encode()
    assert store.get(f"models/{plain}/config.json") == written
    assert load_bundle(store, plain).labels == ()


def test_who_answers_a_key_first_stays(store: Store) -> None:
    first = save(store, seed=0)
    assert save(store, seed=1) == first
    assert save(store, seed=0) == first
    assert find_bundle(store, KEY) == first
    assert load_bundle(store, first)


@pytest.mark.parametrize("written", range(6))
def test_a_crash_at_any_write_leaves_nothing_or_a_bundle_and_saving_again_ends_it(
    written: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    put = MemoryStore.put_if_absent

    def crash(self: MemoryStore, name: str, data: bytes) -> bool:
        if len(order) == written:
            raise RuntimeError("power cut")
        order.append(name.rsplit("/", 1)[1])
        return put(self, name, data)

    monkeypatch.setattr(MemoryStore, "put_if_absent", crash)
    if written < 5:
        with pytest.raises(RuntimeError, match="power cut"):
            save(store)
        assert find_bundle(store, KEY) is None
    else:
        save(store)
    full = ["weights.safetensors", "encoder.onnx", "card.md", "config.json", f"{KEY}.json"]
    assert order == full[:written]
    if 0 < written < 4:
        folder = next(iter(store.list("models/"))).name.split("/")[1]
        with pytest.raises(NotFound, match="never finished"):
            load_bundle(store, folder)
    monkeypatch.undo()
    monkeypatch.setattr(bundle, "export_encoder", lambda model, **_: b"another encoder")
    model_id = save(store)
    assert find_bundle(store, KEY) == model_id
    assert load_bundle(store, model_id).model_id == model_id
    assert names(store) == sorted(full[:4])


def test_weights_of_an_earlier_attempt_are_checked_by_content(store: Store) -> None:
    model_id = save(open_store("memory://bundle-elsewhere"))
    name = f"models/{model_id}/weights.safetensors"
    store.put_if_absent(name, safetensors.torch.save(make(1).state_dict()))
    with pytest.raises(IntegrityError, match="damaged"):
        save(store)
    assert not store.exists(f"models/{model_id}/config.json")


@pytest.mark.parametrize("what", ["config.json", "weights.safetensors"])
def test_changed_bytes_are_refused(store: Store, what: str) -> None:
    model_id = save(store)
    name = f"models/{model_id}/{what}"
    data = bytearray(store.get(name))
    data[-3] ^= 1
    store.put(name, bytes(data))
    with pytest.raises(IntegrityError, match="restore it, or train anew"):
        load_bundle(store, model_id)


def test_missing_and_foreign_weights_are_refused_without_running_them(store: Store, tmp_path: Path) -> None:
    model_id = save(store)
    name = f"models/{model_id}/weights.safetensors"

    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (Path.touch, (tmp_path / "ran",))  # type: ignore[return-value]

    store.put(name, pickle.dumps(Trap()))
    with pytest.raises(IntegrityError, match="no safetensors file"):
        load_bundle(store, model_id)
    assert not (tmp_path / "ran").exists()
    store.delete(name)
    with pytest.raises(IntegrityError, match="missing"):
        load_bundle(store, model_id)


def test_an_unknown_bundle_and_a_key_whose_bundle_is_gone(store: Store) -> None:
    with pytest.raises(NotFound, match="there is no bundle 1234"):
        load_bundle(store, "1234")
    model_id = save(store)
    store.delete(f"models/{model_id}/config.json")
    assert find_bundle(store, KEY) is None  # as after an expiry: it is trained anew
    assert save(store) == find_bundle(store, KEY) == model_id


def foreign(store: Store, *, whole: dict[str, Any] | None = None, **changes: Any) -> str:
    """Write a bundle as another version of the project would, its model_id right; None removes a model's field."""
    facts: dict[str, Any] = {"format": 1, "image_size": 16, "images": IMAGES, "model": CONFIG.model_dump(mode="json")}
    facts["model"] = {name: value for name, value in (facts["model"] | changes).items() if value is not None}
    facts |= whole or {}
    config, tensors = json.dumps(facts).encode(), make().state_dict()
    model_id = content_id(config, tensors)
    store.put(f"models/{model_id}/config.json", config)
    store.put(f"models/{model_id}/weights.safetensors", safetensors.torch.save(tensors))
    return model_id


def test_another_versions_bundle_shows_the_difference(store: Store) -> None:
    with pytest.raises(InputError, match=f"'flow'; this version knows {', '.join(sorted(MODELS))}"):
        load_bundle(store, foreign(store, kind="flow"))
    with pytest.raises(InputError, match="format 2"):
        load_bundle(store, foreign(store, whole={"format": 2}))
    with pytest.raises(InputError, match=r"\+ warp: 9 \(stored, unknown here\)"):
        load_bundle(store, foreign(store, warp=9))
    with pytest.raises(InputError, match=r"! beta: .*greater than or equal to 0"):
        load_bundle(store, foreign(store, beta=-1))
    with pytest.raises(InputError, match=r"\+ to_latents.bias .*\(8,\)[^-]*- (.*\n)*.*to_latents.bias .*\(10,\)"):
        load_bundle(store, foreign(store, latent_dim=5))
    assert load_bundle(store, foreign(store, beta=None)).config == CONFIG  # a field that has since got a default


def test_the_card_says_what_a_person_needs(store: Store) -> None:
    model_id = save(store, photos=1234, train={"epochs": 7, "note": "a|b"}, measures={"knn": 0.8123456789})
    card = store.get(f"models/{model_id}/card.md").decode()
    for text in (
        model_id,
        KEY,
        "| photos | 1234 |",
        "| epochs | 7 |",
        "a\\|b",
        "| knn | 0.812346 |",
        f"| torch | {version('torch')} |",
    ):
        assert text in card
    assert "| fit | pad |" in card


@pytest.mark.parametrize("config", [CONFIG, VQVAEConfig(quantizer=EMAConfig(num_codes=8, code_dim=4), channels=(4, 8))])
@pytest.mark.slow
def test_the_onnx_file_names_no_machine_and_takes_any_batch(store: Store, config: Any) -> None:
    torch.manual_seed(0)
    model = build_model(config, image_size=16)
    model_id = save_bundle(store, model, config, IMAGES, train_key=KEY, card={})
    data = store.get(f"models/{model_id}/encoder.onnx")
    places = [str(Path.cwd()), str(Path.home()), *site.getsitepackages(), "site-packages", "pipeline/models", ".py"]
    for place in places:
        assert place.encode() not in data, place
    proto = onnx.load_from_string(data)
    onnx.checker.check_model(proto)
    assert [value.name for value in proto.graph.input] == ["images"]
    assert proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    for photos in (1, 3, 11):
        given = export._examples(model, photos, conditional=False)
        assert export.run_encoder(data, **given)["mean"].shape == (photos, model.latent_dim)


@pytest.mark.slow
def test_an_onnx_file_that_differs_from_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = export.run_encoder

    def wrong(data: bytes, images: Any) -> dict[str, Any]:
        return {name: value + 0.001 for name, value in right(data, images).items()}

    monkeypatch.setattr(export, "run_encoder", wrong)
    with pytest.raises(CodebooksError, match="differs from torch"):
        export.export_encoder(make().eval())


def test_the_train_key_follows_everything_that_was_asked() -> None:
    train = {"epochs": 3, "learning_rate": 1e-3}
    plain = train_key(CONFIG, IMAGES, train, 0, 1)
    assert plain == train_key(CONFIG, dict(reversed(IMAGES.items())), train, 0, 1, "")
    others = {
        train_key(CONFIG.model_copy(update={"beta": 2.0}), IMAGES, train, 0, 1),
        train_key(VQVAEConfig(), IMAGES, train, 0, 1),
        train_key(CONFIG, IMAGES | {"size": 32}, train, 0, 1),
        train_key(CONFIG, IMAGES, train | {"epochs": 4}, 0, 1),
        train_key(CONFIG, IMAGES, train, 1, 1),
        train_key(CONFIG, IMAGES, train, 0, 2),
        train_key(CONFIG, IMAGES, train, 0, 1, "run:night"),
        train_key(CONFIG, IMAGES, train, 0, 1, condition="category"),
        train_key(CONFIG, IMAGES, train, 0, 1, condition="brand"),
    }
    assert len(others | {plain}) == 10
    assert len(plain) == 64


def parent_of(model_id: str, **changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "release_id": "mon-a", "release_key": "0" * 64, "run": "mon", "attempt": 1, "created": "2024-01-01T00:00:00Z",
        "parent": None, "model_id": model_id, "model_kind": "vae", "latent_dim": 4, "transform_id": "t", "metric": "l2",
        "index_kind": "flat", "files": {}, "parts": (), "code_version": "0",
    }  # fmt: skip
    return Manifest(**fields, **changes)


def test_a_release_takes_no_other_encoder_than_its_parent_of_the_same_model(store: Store) -> None:
    model_id = save(store)
    files = model_files(store, model_id, None)
    assert [files[field].name for field in ("encoder", "bundle_config")] == [
        f"models/{model_id}/encoder.onnx",
        f"models/{model_id}/config.json",
    ]
    parent = parent_of(model_id, **files)
    assert model_files(store, model_id, parent) == files
    store.put(files["encoder"].name, b"an Encoder")  # as long as before
    with pytest.raises(IntegrityError, match=r"encoder\.onnx .* was changed after it was written"):
        model_files(store, model_id, parent)
    for other in (parent_of(model_id), parent_of("other", **files)):  # before digests were listed; of another model
        assert model_files(store, model_id, other)["encoder"] != files["encoder"]

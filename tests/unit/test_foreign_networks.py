"""Pretrained networks of torchvision, timm and ONNX files say what their own libraries say."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import torchvision
from onnx import TensorProto
from torchvision.models.feature_extraction import create_feature_extractor

import foreign_files as FILES
from pipeline.errors import ConfigError
from pipeline.models import Batch, build_model, load_bundle, save_bundle
from pipeline.models.bundle import resolved_config
from pipeline.models.export import run_encoder
from pipeline.models.frozen import FrozenConfig
from pipeline.models.frozen_loading import load_frozen
from pipeline.storage import open_store

PLAIN, SIZE = FILES.PLAIN, FILES.SIZE
graph_file, loaded, normalised = FILES.graph_file, FILES.loaded, FILES.normalised
parsed, photos, random_timm = FILES.parsed, FILES.photos, FILES.random_timm
ONE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


# --- timm


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    network = random_timm("test_vit", img_size=SIZE, num_classes=1000)
    path = tmp_path_factory.mktemp("vit") / "vit.pth"
    torch.save(network.state_dict(), path)
    return network, path


def of_vit(path: Path, **values: Any) -> Any:
    return parsed(source="timm", architecture="test_vit", weights=str(path), **values)


@torch.no_grad()
def test_a_transformer_of_timm_is_read_where_asked(vit: tuple[Any, Path]) -> None:
    network, path = vit
    given = normalised(photos())
    tokens = network.forward_features(given)
    patches = tokens[:, 1:].transpose(1, 2).unflatten(2, (2, 2))
    assert tokens.shape[1] == 5
    expected = {
        ("pooled", "global"): network.forward_head(tokens, pre_logits=True),
        ("head", "global"): network(given),
        ("features", "cls"): tokens[:, 0],
        ("features", "global"): patches.mean(dim=(2, 3)),
        ("features", "map"): patches.flatten(1),
        ("layers.1", "global"): network.norm(network.blocks[:2](network._pos_embed(network.patch_embed(given))))[
            :, 1:
        ].mean(dim=1),
    }
    for (output, pool), wanted in expected.items():
        found = loaded(of_vit(path, output=output, read_out={"pool": pool})).encode(photos()).mean
        torch.testing.assert_close(found, wanted, **ONE)


@torch.no_grad()
def test_names_of_other_projects_become_timms(vit: tuple[Any, Path], tmp_path: Path) -> None:
    """As open_clip saves a tower of timm beside one of texts; as a training with DDP saves; another head; none."""
    network, _ = vit
    own = network.state_dict()
    bare = {name: value for name, value in own.items() if not name.startswith("head.")}
    clip = {f"visual.trunk.{name}": value for name, value in bare.items()} | {"text.embedding": torch.zeros(3)}
    torch.save(clip, tmp_path / "clip.pth")
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in own.items()}}, tmp_path / "a.pth")
    torch.save({**own, "head.weight": torch.zeros(7, 64), "head.bias": torch.zeros(7)}, tmp_path / "tuned.pth")
    safetensors.torch.save_file(bare, tmp_path / "bare.safetensors")
    wanted = network.forward_head(network.forward_features(normalised(photos())), pre_logits=True)
    for name in ("clip.pth", "a.pth", "tuned.pth", "bare.safetensors"):
        found = loaded(of_vit(tmp_path / name, output="pooled")).encode(photos()).mean
        torch.testing.assert_close(found, wanted, **ONE, msg=name)


@pytest.mark.slow
@torch.no_grad()
def test_a_convolutional_network_of_timm_and_its_maps(tmp_path: Path) -> None:
    network: Any = random_timm("test_efficientnet")
    torch.save(network.state_dict(), tmp_path / "e.pth")
    config = parsed(source="timm", architecture="test_efficientnet", weights=str(tmp_path / "e.pth"), output="features")
    model = loaded(config)
    given = normalised(photos())
    torch.testing.assert_close(model.encode(photos()).mean, network.forward_features(given).mean(dim=(2, 3)), **ONE)
    maps = model.maps(photos() / 255.0)
    for found, wanted in zip(maps, network.forward_intermediates(given, intermediates_only=True), strict=True):
        torch.testing.assert_close(found, wanted, **ONE)
    assert [each.shape[-1] for each in maps] == sorted((each.shape[-1] for each in maps), reverse=True)


def test_what_timm_knows_of_an_architecture_need_not_be_told() -> None:
    config = parsed(source="timm", architecture="test_vit.r160_in1k", weights="x.pth", licence="", preprocessing="")
    assert config.preprocessing is not None
    assert config.preprocessing.size == 160
    assert config.preprocessing.crop_share == 0.95
    assert config.licence == "apache-2.0"
    assert config.output == "features"


# --- torchvision


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "output", "node", "size"),
    [
        ("resnet18", "layer2", "layer2", 64),
        ("shufflenet_v2_x0_5", "conv5", "conv5.2", 64),
        ("resnet18", "avgpool", "avgpool", 48),
        ("squeezenet1_1", "features", "features.12.cat", 64),
    ],
)
@torch.no_grad()
def test_a_network_of_torchvision_is_read_at_any_node(
    architecture: str, output: str, node: str, size: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = torchvision.models.get_model(architecture, weights=None).eval()
    torch.save(network.state_dict(), tmp_path / "t.pth")
    config = parsed(
        source="torchvision", architecture=architecture, output=output, weights=str(tmp_path / "t.pth"),
        preprocessing={**PLAIN, "size": size},
    )  # fmt: skip
    model = loaded(config)
    given = normalised(photos(size=size))
    wanted = create_feature_extractor(network, [node])(given)[node].mean(dim=(2, 3))
    torch.testing.assert_close(model.encode(photos(size=size)).mean, wanted, **ONE)
    sides = [each.shape[-1] for each in model.maps(photos(size=size) / 255.0)]
    assert sides == sorted(set(sides), reverse=True)
    assert all(not parameter.requires_grad for parameter in model.parameters())


# --- ONNX


@pytest.mark.parametrize(
    "changes",
    [{}, {"layout": "nhwc"}, {"opset": 13}, {"size": None}, {"batch": 1}, {"dtype": TensorProto.FLOAT16}],
)
@torch.no_grad()
def test_an_onnx_file_is_run_as_it_is(changes: dict[str, Any], tmp_path: Path) -> None:
    layer = graph_file(tmp_path / "g.onnx", **changes)
    maps = F.relu(layer(normalised(photos())))
    close = {"rtol": 0, "atol": 1e-2 if "dtype" in changes else 1e-5}
    for output, read_out, wanted in (
        ("vector", {}, maps.mean(dim=(2, 3))),
        ("maps", {"pool": "map", "cells": 2}, F.adaptive_avg_pool2d(maps, 2).flatten(1)),
    ):
        if output == "maps" and changes.get("layout") == "nhwc":
            continue  # its maps have their channels first all the same, which no such file has
        config = parsed(weights=str(tmp_path / "g.onnx"), output=output, read_out=read_out)
        torch.testing.assert_close(loaded(config).encode(photos()).mean, wanted, **close)


def test_a_graph_that_takes_pixels(tmp_path: Path) -> None:
    layer = graph_file(tmp_path / "g.onnx", dtype=TensorProto.UINT8)
    plain = {**PLAIN, "mean": 0, "std": 1, "value_range": 255, "channels": "bgr"}
    model = loaded(parsed(weights=str(tmp_path / "g.onnx"), output="vector", preprocessing=plain))
    with torch.no_grad():
        wanted = F.relu(layer(photos().flip(1).float())).mean(dim=(2, 3))
    torch.testing.assert_close(model.encode(photos()).mean, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
def test_a_bundle_holds_the_graph_and_its_encoder_runs_it(tmp_path: Path) -> None:
    """The file may go; the exported encoder takes pixels, holds the graph's own nodes and says the same."""
    layer = graph_file(tmp_path / "g.onnx")
    store = open_store(f"memory://{uuid.uuid4().hex}")
    asked = parsed(weights=str(tmp_path / "g.onnx"), output="maps", read_out={"pool": "map", "cells": 2, "dims": 3})
    config = resolved_config(store, asked, {"size": SIZE})
    model = build_model(config, image_size=SIZE)
    model.use_file((tmp_path / "g.onnx").read_bytes(), "g.onnx")
    model.fit([Batch(photos(40))])
    model_id = save_bundle(store, model, config, {"size": SIZE}, train_key="ab" * 32, card={})
    (tmp_path / "g.onnx").unlink()
    bundle = load_bundle(store, model_id)
    found = bundle.model.encode(photos()).mean
    with torch.no_grad():
        pooled = F.adaptive_avg_pool2d(F.relu(layer(normalised(photos()))), 2).flatten(1)
    torch.testing.assert_close(found, model.read_out.reduced(pooled), rtol=0, atol=1e-5)  # type: ignore[operator,union-attr]
    exported = store.get(f"models/{model_id}/encoder.onnx")
    np.testing.assert_allclose(run_encoder(exported, photos().numpy())["mean"], found.numpy(), rtol=0, atol=1e-4)
    assert str(tmp_path).encode() not in exported
    card = store.get(f"models/{model_id}/card.md").decode()
    assert "| licence | MIT |" in card
    assert config.sha256 is not None  # type: ignore[attr-defined]
    assert config.sha256 in card  # type: ignore[attr-defined]
    frozen = load_frozen(FrozenConfig(model_id=model_id, layers=(0,)), store)
    larger = photos(size=2 * SIZE) / 255.0
    assert frozen.maps(larger)[0].shape == (3, 5, SIZE // 2, SIZE // 2)  # brought to its own size
    with pytest.raises(ConfigError, match="ONNX file gives none"):
        frozen.maps(larger.requires_grad_())


def test_a_perceptual_loss_has_gradients_through_a_network_of_another_size(tmp_path: Path) -> None:
    network = random_timm("test_resnet")
    torch.save(network.state_dict(), tmp_path / "r.pth")
    model = loaded(parsed(source="timm", architecture="test_resnet", weights=str(tmp_path / "r.pth"), output="pooled"))
    pictures = (photos(size=48) / 255.0).requires_grad_()
    sum(each.square().mean() for each in model.maps(pictures)).backward()  # type: ignore[union-attr]
    assert pictures.grad is not None
    assert pictures.grad.abs().amax(dim=(1, 2, 3)).gt(0).all()


# --- read-outs


@torch.no_grad()
def test_cells_are_pooled_by_generalised_means_and_maxima(tmp_path: Path) -> None:
    layer = graph_file(tmp_path / "g.onnx")
    maps = F.relu(layer(normalised(photos())))
    config = {"weights": str(tmp_path / "g.onnx"), "output": "maps"}
    gem = loaded(parsed(**config, read_out={"within": "gem", "power": 4})).encode(photos()).mean
    wanted = maps.double().clamp_min(1e-6).pow(4).mean(dim=(2, 3)).pow(0.25).float()
    torch.testing.assert_close(gem, wanted, rtol=1e-5, atol=1e-6)
    most = loaded(parsed(**config, read_out={"pool": "map", "cells": 2, "within": "max"})).encode(photos()).mean
    torch.testing.assert_close(most, F.adaptive_max_pool2d(maps, 2).flatten(1), **ONE)

"""The pretrained network: torchvision's own features, in a bundle that needs the file of weights no more."""

from __future__ import annotations

import io
import pickle
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from pydantic import TypeAdapter
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from foreign_files import PLAIN, graph_file
from pipeline.errors import ConfigError, NotFound, NotReconstructing
from pipeline.models import AnyModelConfig, Batch, ModelConfig, Step, build_model, load_bundle
from pipeline.models.export import run_encoder
from pipeline.models.frozen_loading import load_frozen
from pipeline.schema import pixels_schema
from pipeline.storage import Store, open_store
from pipeline.training import PartRows, TrainConfig
from pipeline.training.ranks import Ranks
from pipeline.training.worker import TrainJob, run_rank

SIZE, PHOTOS = 32, 40
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made: nn.Module = torchvision.models.resnet18(weights=None)
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            layer.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return made.eval()


@pytest.fixture(scope="module")
def weights(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(network.state_dict(), path)
    return str(path)


def parsed(**values: object) -> ModelConfig:
    config: ModelConfig = TypeAdapter(AnyModelConfig).validate_python({"kind": "pretrained", **values})
    return config


def photos(number: int = 3, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (number, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


@pytest.mark.slow
@pytest.mark.parametrize(("layer", "enlarge_to"), [(2, None), (4, 64)])
def test_the_vectors_are_torchvisions(network: nn.Module, weights: str, layer: int, enlarge_to: int | None) -> None:
    config = parsed(weights=weights, layer=layer, enlarge_to=enlarge_to)
    model = build_model(config, image_size=SIZE)
    frozen = config.frozen()
    assert frozen is not None
    model.use_frozen(load_frozen(frozen, open_store("memory://pretrained-unused")))
    pictures = (photos() / 255.0 - MEAN) / STD
    if enlarge_to:
        pictures = nn.functional.interpolate(pictures, size=enlarge_to, mode="bilinear")
    name = f"layer{layer}"
    with torch.no_grad():
        expected = create_feature_extractor(network, return_nodes=[name])(pictures)[name].mean(dim=(2, 3))
        found = model.train().encode(photos()).mean  # batch statistics, the known wrong version, would differ
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    maps = model.maps(photos() / 255.0)
    assert len(maps) == layer
    assert model.latent_dim == maps[-1].shape[1]


def test_training_and_decoding_are_refused() -> None:
    model = build_model(parsed(layer=1), image_size=SIZE)
    with pytest.raises(ConfigError, match="not trained"):
        model(Batch(photos()), Step(0, 1))
    with pytest.raises(NotReconstructing):
        model.reconstruct(photos())
    with pytest.raises(ConfigError, match="enlarge_to is 32"):
        build_model(parsed(enlarge_to=32), image_size=64)


# --- through the worker


def filled(store: Store) -> tuple[tuple[PartRows, ...], Tensor]:
    """Return the rows of two parts on the store and their photos."""
    schema = pixels_schema(SIZE)
    images, pixels = photos(PHOTOS, seed=5), []
    for part, half in enumerate(images.chunk(2)):
        stored = half.permute(0, 2, 3, 1).contiguous().numpy()
        columns = {"pixels": pa.array([row.tobytes() for row in stored], schema.field("pixels").type)}
        columns |= {name: pa.array([f"{row}" for row in range(len(half))]) for name in ("item_id", "uri", "token")}
        table = pa.table([columns.get(at.name, pa.nulls(len(half), at.type)) for at in schema], schema=schema)
        sink = io.BytesIO()
        pq.write_table(table, sink)
        store.put(f"pixels/t/{part}.parquet", sink.getvalue())
        pixels.append(PartRows(f"pixels/t/{part}.parquet", np.arange(len(half), dtype=np.int32)))
    return tuple(pixels), images


def job_of(store: Store, pixels: tuple[PartRows, ...], config: ModelConfig) -> TrainJob:
    train = TrainConfig(epochs=1, batch_size=16)
    images = {"size": SIZE}
    return TrainJob(store, pixels, config, images, train, run_dir="runs/night", train_key="feed" * 16)


@pytest.mark.slow
def test_a_job_becomes_a_bundle_at_once_with_its_pca(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.cache.tempfile.gettempdir", lambda: str(tmp_path))
    store = open_store(f"memory://{uuid.uuid4().hex}")
    pixels, images = filled(store)
    config = parsed(weights=weights, layer=1, read_out={"pool": "map", "cells": 2, "dims": 6})
    model_id = run_rank(job_of(store, pixels, config), Ranks())
    assert model_id is not None
    assert not any(entry.name.startswith("runs/") for entry in store.list(""))  # no steps, no checkpoints
    Path(weights).rename(tmp_path / "gone.pth")
    try:
        model = load_bundle(store, model_id).model
    finally:
        (tmp_path / "gone.pth").rename(weights)
    found = model.encode(images).mean.numpy()
    pooled = nn.functional.adaptive_avg_pool2d(model.maps(images / 255.0)[-1], 2).flatten(1)
    wanted = PCA(6, svd_solver="full").fit_transform(pooled.double().numpy())
    signs = np.sign((found * wanted).sum(axis=0))
    np.testing.assert_allclose(found, wanted * signs, rtol=0, atol=1e-3 * np.abs(wanted).max())
    exported = run_encoder(store.get(f"models/{model_id}/encoder.onnx"), images.numpy())
    np.testing.assert_allclose(exported["mean"], found, rtol=1e-4, atol=1e-4)
    assert "| steps | 0 |" in store.get(f"models/{model_id}/card.md").decode()


def test_a_missing_file_of_weights_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.cache.tempfile.gettempdir", lambda: str(tmp_path))
    store = open_store(f"memory://{uuid.uuid4().hex}")
    pixels, _ = filled(store)
    with pytest.raises(NotFound, match="none-here"):
        run_rank(job_of(store, pixels, parsed(weights=str(tmp_path / "none-here.pth"))), Ranks())


@pytest.mark.slow
def test_a_relative_path_of_weights_begins_in_the_commands_folder(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers run in folders of their own; the job takes along that of the process which made it."""
    monkeypatch.setattr("pipeline.storage.cache.tempfile.gettempdir", lambda: str(tmp_path))
    store = open_store(f"memory://{uuid.uuid4().hex}")
    pixels, _ = filled(store)
    graph_file(Path(weights).parent / "g.onnx")
    monkeypatch.chdir(Path(weights).parent)
    for config in (
        parsed(weights=Path(weights).name, layer=1, read_out={"dims": 6}),
        parsed(weights="g.onnx", output="vector", licence="MIT", preprocessing=PLAIN),
    ):
        monkeypatch.chdir(Path(weights).parent)
        job = pickle.loads(pickle.dumps(job_of(store, pixels, config)))
        monkeypatch.chdir(tmp_path)
        assert run_rank(job, Ranks()) is not None
        with pytest.raises(NotFound, match=config.weights):  # known wrong: the worker's own folder
            run_rank(replace(job, folder=str(tmp_path), train_key="f00d" * 16), Ranks())

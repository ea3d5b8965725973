"""The classical descriptor: the baselines' features and components, in a bundle, through the worker and ONNX."""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from skimage.feature import hog
from sklearn.decomposition import PCA

from pipeline.errors import ConfigError, InputError
from pipeline.evaluation.baselines import hog_features, pixel_features, principal_components
from pipeline.models import AnyModelConfig, Batch, Model, ModelConfig, Step, build_model, load_bundle
from pipeline.models.export import export_encoder, run_encoder
from pipeline.schema import pixels_schema
from pipeline.storage import Store, open_store
from pipeline.training import PartRows, TrainConfig
from pipeline.training.ranks import Ranks
from pipeline.training.worker import TrainJob, run_rank

SIZE = 32


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def parsed(**values: object) -> ModelConfig:
    config: ModelConfig = TypeAdapter(AnyModelConfig).validate_python({"kind": "descriptor", **values})
    return config


def noise(count: int, size: int = SIZE, seed: int = 0) -> NDArray[np.uint8]:
    """Return random photos, uint8 [count, size, size, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def goods(count: int, size: int = SIZE, seed: int = 0) -> NDArray[np.uint8]:
    """Return photos like a shop's: a coloured shape with stripes on white, and a little noise."""
    rng = np.random.default_rng(seed)
    down, right = np.mgrid[:size, :size]
    photos = np.full((count, size, size, 3), 250.0)
    for photo in photos:
        top, left, high, wide = rng.integers(2, size // 3, 4)
        slant = rng.random() * 0.3 * down
        inside = (down > top) & (down < size - high) & (right > left + slant) & (right < size - wide)
        stripes = 30 * np.sin((down * rng.random() + right * rng.random()) * 1.5)
        photo[inside] = (rng.integers(0, 200, 3) + stripes[..., None])[inside]
    return (photos + rng.normal(0, 1.5, photos.shape)).clip(0, 255).astype(np.uint8)


def tensor(pixels: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def fitted(config: ModelConfig, pixels: NDArray[np.uint8]) -> Model:
    model = build_model(config, image_size=pixels.shape[1]).eval()
    model.fit([Batch(half) for half in tensor(pixels).chunk(3)])
    return model


def apart(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """Return the largest difference, columns up to sign, relative to the largest number."""
    signs = np.sign((found * wanted).sum(axis=0))
    return float(np.abs(found - wanted * signs).max() / np.abs(wanted).max())


# More photos than the 324 numbers of cells of 7 of 28 pixels, and fewer than the numbers of the others.
@pytest.mark.parametrize(
    ("photos", "size", "cell", "count"),
    [(noise, 28, 4, 120), (noise, 28, 7, 800), (goods, 28, 7, 800), (goods, 64, 8, 120)],
)
@pytest.mark.slow
def test_latents_are_the_baselines_projections(
    photos: Callable[[int, int], NDArray[np.uint8]], size: int, cell: int, count: int
) -> None:
    dims, pixels = 16, photos(count, size)
    model = fitted(parsed(cell=cell, read_out={"dims": dims}), pixels)
    features = hog_features(pixels, cell=cell)
    components = principal_components(features, dims)
    # As many as are well apart: of nearly equal variances any mixture is as good.
    ratios = components.variances[1:] / components.variances[:-1]
    sure = int(np.argmax(ratios > 0.995)) if (ratios > 0.995).any() else dims
    assert sure >= 3
    found = model.encode(tensor(pixels)).mean.numpy()
    assert found.shape == (len(pixels), dims)
    assert apart(found[:, :sure], components.project(features)[:, :sure]) < 2e-3
    # The control: components of other features are not these.
    other = principal_components(pixel_features(pixels), dims).project(pixel_features(pixels))
    assert apart(found[:, :1], other[:, :1]) > 0.1


def test_the_features_are_skimages_and_the_pixels_the_baselines() -> None:
    pixels = goods(3)
    wanted = [
        hog(
            photo.astype(np.float64),
            orientations=6,
            pixels_per_cell=(8, 8),
            cells_per_block=(3, 3),
            block_norm="L2-Hys",
            channel_axis=-1,
        )
        for photo in pixels
    ]
    options = {"cell": 8, "block": 3, "bins": 6, "read_out": {"dims": None}}
    found = build_model(parsed(**options), image_size=SIZE).encode(tensor(pixels)).mean
    assert np.abs(found.numpy() - wanted).max() < 1e-5
    colours = build_model(parsed(features="pixels", read_out={"dims": None}), image_size=SIZE)
    np.testing.assert_allclose(colours.encode(tensor(pixels)).mean.numpy(), pixel_features(pixels), rtol=0, atol=1e-7)
    grey = np.repeat(pixels[:, :, :, :1], 3, axis=3)
    one = build_model(parsed(features="pixels", grey=True, read_out={"dims": None}), image_size=SIZE)
    wanted_grey = pixel_features(grey, grey=True)
    np.testing.assert_allclose(one.encode(tensor(grey)).mean.numpy(), wanted_grey, rtol=0, atol=1e-6)


def test_grey_histograms_are_of_the_brightness() -> None:
    pixels = goods(4)
    brightness = pixels @ np.array([0.299, 0.587, 0.114])
    wanted = [
        hog(photo, orientations=9, pixels_per_cell=(4, 4), cells_per_block=(2, 2), block_norm="L2-Hys")
        for photo in brightness
    ]
    found = build_model(parsed(grey=True, read_out={"dims": None}), image_size=SIZE).encode(tensor(pixels)).mean
    assert np.abs(found.numpy() - wanted).max() < 1e-3  # brightness in single and double precision
    colour = build_model(parsed(read_out={"dims": None}), image_size=SIZE).encode(tensor(pixels)).mean
    assert np.abs(colour.numpy() - wanted).max() > 0.05


@pytest.mark.slow
def test_whitening_and_the_exported_encoder() -> None:
    pixels = goods(200)
    model = fitted(parsed(cell=8, read_out={"dims": 12, "whiten": True}), pixels)
    found = model.encode(tensor(pixels)).mean.numpy()
    np.testing.assert_allclose(found.std(axis=0, ddof=1), 1.0, rtol=1e-3)
    expected = PCA(12, whiten=True, svd_solver="full").fit_transform(hog_features(pixels, cell=8).astype(np.float64))
    assert apart(found, expected) < 1e-2
    exported = run_encoder(export_encoder(model), tensor(pixels).numpy())["mean"]
    np.testing.assert_allclose(exported, found, rtol=1e-3, atol=1e-3)


# --- through the worker


def filled(store: Store, pixels: NDArray[np.uint8]) -> tuple[PartRows, ...]:
    """Return the rows of two parts on the store."""
    schema = pixels_schema(SIZE)
    rows = []
    for part, half in enumerate(np.array_split(pixels, 2)):
        columns = {"pixels": pa.array([row.tobytes() for row in half], schema.field("pixels").type)}
        columns |= {name: pa.array([f"{row}" for row in range(len(half))]) for name in ("item_id", "uri", "token")}
        table = pa.table([columns.get(at.name, pa.nulls(len(half), at.type)) for at in schema], schema=schema)
        sink = io.BytesIO()
        pq.write_table(table, sink)
        store.put(f"pixels/t/{part}.parquet", sink.getvalue())
        rows.append(PartRows(f"pixels/t/{part}.parquet", np.arange(len(half), dtype=np.int32)))
    return tuple(rows)


def test_a_job_becomes_a_bundle_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.cache.tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("pipeline.models.bundle.export_encoder", lambda model, **options: b"not exported here")
    store, pixels = open_store(f"memory://{uuid.uuid4().hex}"), goods(150)
    train = TrainConfig(epochs=1, batch_size=16)
    config = parsed(cell=8, read_out={"dims": 10})
    job = TrainJob(store, filled(store, pixels), config, {"size": SIZE}, train, "runs/night", "feed" * 16)
    model_id = run_rank(job, Ranks())
    assert model_id is not None
    model = load_bundle(store, model_id).model
    features = hog_features(pixels, cell=8)
    wanted = principal_components(features, 10).project(features)
    assert apart(model.encode(tensor(pixels)).mean.numpy(), wanted) < 5e-3
    assert run_rank(job, Ranks()) == model_id  # the same bits
    assert "| steps | 0 |" in store.get(f"models/{model_id}/card.md").decode()


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="28 pixels hold no block of 2 x 2 cells of 16 pixels"):
        build_model(parsed(cell=16), image_size=28)
    with pytest.raises(ConfigError, match=r"dims is 64, but a photo has 36 numbers"):
        build_model(parsed(cell=8), image_size=16)
    with pytest.raises(ConfigError, match=r"pixels of photos of 128 pixels are 49152 numbers.*set model\.grey"):
        build_model(parsed(features="pixels"), image_size=128)
    model = build_model(parsed(), image_size=28)
    with pytest.raises(ConfigError, match="not fitted"):
        model.encode(tensor(noise(2, 28)))
    with pytest.raises(ConfigError, match="not trained"):
        model(Batch(tensor(noise(2, 28))), Step(0, 1))
    with pytest.raises(InputError, match="60 photos cannot fit 64"):
        model.fit([Batch(tensor(noise(60, 28)))])

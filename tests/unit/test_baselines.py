"""Floors: principal components against NumPy's decomposition, gradient histograms against scikit-image."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from scipy.linalg import subspace_angles
from skimage.feature import hog

from pipeline.errors import ConfigError
from pipeline.evaluation import knn_accuracy
from pipeline.evaluation.baselines import (
    fitted_umap,
    hog_features,
    model_latents,
    pixel_features,
    principal_components,
    untrained_model,
)
from pipeline.evaluation.spaces import umap_space
from pipeline.models import AnyModelConfig, build_model

SMALL: dict[str, dict[str, Any]] = {
    "vae": {"latent_dim": 6, "channels": (8, 16)},
    "cvae": {"latent_dim": 6, "channels": (8, 16)},
    "vqvae": {},
}


def features(rows: int, width: int) -> np.ndarray:
    """Return rows with a mean and with axes of different lengths, float32."""
    rng = np.random.default_rng(0)
    mixed = (
        rng.normal(size=(rows, width)) * np.linspace(3, 0.1, width) @ np.linalg.qr(rng.normal(size=(width, width)))[0]
    )
    return np.asarray(mixed + rng.normal(size=width) * 5, np.float32)


@pytest.mark.parametrize(("rows", "width"), [(400, 30), (40, 90)])
def test_components_are_the_singular_vectors(rows: int, width: int) -> None:
    given = features(rows, width)
    found = principal_components(given, 5)
    wide = given.astype(np.float64)
    _, singular, axes = np.linalg.svd(wide - wide.mean(axis=0), full_matrices=False)
    cosines = np.linalg.svd(found.axes.astype(np.float64) @ axes[:5].T, compute_uv=False)
    assert np.abs(cosines - 1).max() < 1e-5
    np.testing.assert_allclose(found.variances, (singular**2 / (rows - 1))[:5], rtol=1e-3)
    # The best linear reconstruction: its error is the energy of the components left out (Eckart and Young 1936).
    left = np.square(given - found.draw(found.project(given))).sum()
    np.testing.assert_allclose(left, np.square(singular[5:]).sum(), rtol=1e-3)
    # Negative control: without the centre the same axes' coordinates do not draw the rows.
    assert np.square(given - (given @ found.axes.T) @ found.axes).sum() > 1.05 * left


def test_a_linear_autoencoder_ends_in_the_same_space() -> None:
    """Baldi and Hornik 1989: the least squared error has no other minimum; by principal angles, in radians."""
    given = features(300, 12)
    rows = torch.from_numpy(given.astype(np.float64))
    rows = (rows - rows.mean(dim=0)) / rows.std()
    torch.manual_seed(0)
    encoder, decoder = torch.nn.Linear(12, 3, bias=False).double(), torch.nn.Linear(3, 12, bias=False).double()
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimiser = torch.optim.LBFGS(parameters, max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def error() -> torch.Tensor:
        optimiser.zero_grad()
        loss = (decoder(encoder(rows)) - rows).square().sum(dim=1).mean()
        loss.backward()
        return loss

    optimiser.step(error)
    drawn = decoder.weight.detach().numpy()
    angles = subspace_angles(drawn, principal_components(given, 3).axes.T.astype(np.float64))
    assert angles.max() < 1e-2
    # Negative control: the next three axes are as far as can be.
    assert subspace_angles(drawn, principal_components(given, 6).axes[3:].T.astype(np.float64)).min() > 1.5


def test_components_repeat_bit_for_bit() -> None:
    given = features(60, 700)  # sklearn's own choice here would be a solver that follows a random seed
    first, second = (principal_components(given, 10).axes for _ in range(2))
    assert np.array_equal(first, second)


def test_more_components_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"31 components of 400 photos of 30 numbers; ask for 1\.\.30"):
        principal_components(features(400, 30), 31)


@pytest.mark.parametrize(("size", "cell", "bins"), [(28, 4, 9), (64, 8, 9), (30, 4, 6)])
def test_histograms_are_those_of_skimage(size: int, cell: int, bins: int) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (4, size, size, 3), np.uint8)
    pixels[0] = pixels[0, :, :, :1]  # grey
    pixels[1, 4:20] = 77  # flat blocks
    wanted = [
        hog(
            photo.astype(np.float64),
            orientations=bins,
            pixels_per_cell=(cell, cell),
            cells_per_block=(2, 2),
            block_norm="L2-Hys",
            channel_axis=-1,
        )
        for photo in pixels
    ]
    found = hog_features(pixels, cell=cell, bins=bins)
    assert found.shape == np.shape(wanted)
    assert np.abs(found - wanted).max() < 1e-5


def test_histograms_see_edges_and_neither_light_nor_colour_of_the_ground() -> None:
    rng = np.random.default_rng(2)
    pixels = (rng.integers(20, 90, (2, 16, 16, 3)) // 2 * 2).astype(np.uint8)
    bright = pixels + 100
    strong = (pixels * 2).astype(np.uint8)
    assert np.abs(hog_features(bright) - hog_features(pixels)).max() < 1e-5
    assert np.abs(hog_features(strong) - hog_features(pixels)).max() < 1e-5
    # Negative controls: raw pixels see the light, and a turned picture has other directions.
    assert np.abs(pixel_features(bright) - pixel_features(pixels)).max() > 0.3
    assert np.abs(hog_features(np.rot90(pixels, axes=(1, 2)).copy()) - hog_features(pixels)).max() > 0.2


def test_photos_below_a_block_are_refused() -> None:
    with pytest.raises(ConfigError, match="12 pixels hold no block"):
        hog_features(np.zeros((1, 12, 12, 3), np.uint8), cell=8)


def test_grey_pixels_are_a_third() -> None:
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    pixels[1] = 255
    assert pixel_features(pixels).shape == (2, 48)
    assert pixel_features(pixels, grey=True).tolist() == [[0.0] * 16, [1.0] * 16]


def test_gradients_tell_textures_that_pixels_do_not() -> None:
    """Random stripes of two directions: pixels average out, histograms do not."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 240)
    wave = rng.normal(size=(240, 24))
    stripes = np.where(labels[:, None, None] == 0, wave[:, :, None], wave[:, None, :])
    photos = np.broadcast_to((stripes * 60 + 128 + rng.normal(0, 40, (240, 24, 24)))[..., None], (240, 24, 24, 3))
    pixels = photos.clip(0, 255).astype(np.uint8)
    known, asked = np.s_[:180], np.s_[180:]

    def accuracy(rows: np.ndarray) -> float:
        coordinates = principal_components(rows[known], 4).project(rows)
        return knn_accuracy(coordinates[known], labels[known], coordinates[asked], labels[asked])

    assert accuracy(hog_features(pixels)) > 0.95
    assert accuracy(pixel_features(pixels)) < accuracy(hog_features(pixels)) - 0.1


@pytest.mark.parametrize("kind", list(SMALL))
def test_random_weights_are_those_of_the_untrained_model(kind: str) -> None:
    config = TypeAdapter(AnyModelConfig).validate_python({"kind": kind, **SMALL[kind]})
    pixels = np.random.default_rng(4).integers(0, 256, (5, 32, 32, 3), np.uint8)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    found = model_latents(untrained_model(config, 32, seed=7), pixels)
    assert torch.equal(torch.get_rng_state(), state), "the global generator stays as it was"
    torch.manual_seed(7)
    model = build_model(config, image_size=32).eval()
    with torch.inference_mode():
        wanted = model.encode(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())).mean.flatten(1).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert found.dtype == np.float32
    assert found.std(axis=0).max() > 0, "photos differ"
    # Negative control: another seed, other weights.
    assert not np.allclose(model_latents(untrained_model(config, 32, seed=8), pixels), found)


def test_umap_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ConfigError, match=r"needs umap-learn.*visual-codebooks\[viz\]"):
        fitted_umap(features(10, 4))


def test_umap_fits_on_the_known_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in, since the package is an extra: what it is asked for, and with which rows."""
    asked: dict[str, Any] = {}

    class Standin:
        def __init__(self, **settings: Any) -> None:
            asked.update(settings)

        def fit(self, rows: np.ndarray) -> Standin:
            asked["fitted"] = rows
            return self

        def transform(self, rows: np.ndarray) -> np.ndarray:
            return rows[:, 2:4].astype(np.float64)

    module = ModuleType("umap")
    module.UMAP = Standin  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "umap", module)
    known, others = features(10, 4), features(5, 4)
    space = umap_space(known, lambda rows: rows, dims=2, seed=3)
    assert asked.pop("fitted") is known
    assert asked == {"n_components": 2, "random_state": 3, "n_jobs": 1}
    assert (space.name, space.dims) == ("UMAP-2", 2)
    assert space.encode(others).tolist() == others[:, 2:4].tolist()
    assert space.encode(others).dtype == np.float32

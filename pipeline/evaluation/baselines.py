"""The floors: what pixels, principal components, gradient histograms and untrained networks reach without any training.

A learnt representation that does not beat these at equal dimensions is not worth its training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ..errors import ConfigError
from ..models import Model, ModelConfig, build_model
from ..models.backbones.hog import block_histograms

Float32 = NDArray[np.float32]

_ROWS = 2048  # photos whose gradients are held at a time
_BATCH = 250  # photos that a network encodes at a time


@dataclass(frozen=True, slots=True)
class Components:
    """Principal components of features: centre [D], axes [d, D] orthonormal, variances [d] largest first."""

    centre: Float32
    axes: Float32
    variances: Float32

    def project(self, features: Float32) -> Float32:
        """Return the coordinates float32 [n, d] of features [n, D]."""
        return np.asarray((features - self.centre) @ self.axes.T, np.float32)

    def draw(self, coordinates: Float32) -> Float32:
        """Return the features float32 [n, D] that coordinates [n, d] stand for."""
        return np.asarray(coordinates @ self.axes + self.centre, np.float32)


def principal_components(features: Float32, count: int) -> Components:
    """Return the first `count` principal components of features float32 [n, D], not whitened; exact and repeatable.

    Pearson 1901, the linear autoencoder of least squared error. Raises ConfigError for more components than min(n, D).
    """
    from sklearn.decomposition import PCA

    rows, width = features.shape
    if not 1 <= count <= min(rows, width):
        raise ConfigError(f"{count} components of {rows} photos of {width} numbers; ask for 1..{min(rows, width)}")
    # The randomised solver that sklearn picks for wide tables depends on its seed; these two do not.
    fitted = PCA(count, svd_solver="covariance_eigh" if rows >= width else "full").fit(features)
    parts = (fitted.mean_, fitted.components_, fitted.explained_variance_)
    return Components(*(np.asarray(part, np.float32) for part in parts))


def pixel_features(pixels: NDArray[np.uint8], *, grey: bool = False) -> Float32:
    """Return photos, uint8 [n, size, size, 3], as rows of values in 0..1, float32 [n, size * size * 3].

    grey: one value a pixel (the mean of the three), for pictures that have no colour.
    """
    if grey:
        return np.asarray(pixels.mean(axis=3, dtype=np.float32).reshape(len(pixels), -1) / np.float32(255))
    return pixels.reshape(len(pixels), -1).astype(np.float32) / np.float32(255)


def hog_features(pixels: NDArray[np.uint8], *, cell: int = 4, block: int = 2, bins: int = 9) -> Float32:
    """Return histograms of oriented gradients of photos, uint8 [n, size, size, 3], float32 [n, features].

    Dalal and Triggs 2005: of every pixel the channel with the strongest gradient votes with its magnitude for one of
    `bins` directions of 0..180 degrees; cells of `cell` pixels; overlapping blocks of block x block cells, each of
    length 1, clipped at 0.2 and of length 1 again (L2-Hys). Features: (size // cell - block + 1)^2 * block^2 * bins.
    Raises ConfigError for photos below a block.
    """
    found = []
    for start in range(0, max(len(pixels), 1), _ROWS):
        photos = torch.from_numpy(np.ascontiguousarray(pixels[start : start + _ROWS].transpose(0, 3, 1, 2)))
        found.append(block_histograms(photos.float(), cell, block, bins).numpy())
    return np.concatenate(found)


def untrained_model(config: ModelConfig, image_size: int, *, seed: int = 0) -> Model:
    """Return the model of a config before training, in evaluation mode; the global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(config, image_size=image_size)
    return model.eval()


def model_latents(model: Model, pixels: NDArray[np.uint8]) -> Float32:
    """Return the latents float32 [n, d] of photos, uint8 [n, size, size, 3]; a category is told to no model."""
    with torch.inference_mode():
        batches = (seen_by(model, photos) for photos in photo_batches(pixels))
        found = [model.encode(photos).mean.float().flatten(1).numpy() for photos in batches]
    return np.concatenate(found) if found else np.empty((0, model.latent_dim), np.float32)


def seen_by(model: Model, photos: torch.Tensor) -> Any:
    """Return photos, uint8 [B, 3, H, W], as `model.encode` takes them: in its own sizes, made smaller with a filter."""
    seen = []
    for size in model.image_sizes:
        if photos.shape[-1] == size:
            seen.append(photos)
            continue
        resized = F.interpolate(photos.float(), size=(size, size), mode="bicubic", antialias=True)
        seen.append(resized.round().clamp(0, 255).to(torch.uint8))
    return seen[0] if len(seen) == 1 else tuple(seen)


def photo_batches(pixels: NDArray[np.uint8]) -> Iterator[torch.Tensor]:
    """Yield photos, uint8 [n, size, size, 3], as models take them, uint8 [B, 3, size, size]."""
    for start in range(0, len(pixels), _BATCH):
        yield torch.from_numpy(np.ascontiguousarray(pixels[start : start + _BATCH].transpose(0, 3, 1, 2)))


def fitted_umap(known: Float32, *, dims: int = 10, seed: int = 0) -> Any:
    """Return a UMAP of `dims` dimensions fitted on features [n, D].

    McInnes et al. 2018 (arXiv 1802.03426), the package's own settings but for one thread, which a seed needs. Raises
    ConfigError where umap-learn is not installed.
    """
    try:
        from umap import UMAP
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the UMAP baseline needs umap-learn, which is not installed; run `pip install 'visual-codebooks[viz]'`"
        ) from error
    return UMAP(n_components=dims, random_state=seed, n_jobs=1).fit(known)

"""Spaces that photos can be compared in: a model's, and those that cost no training, fitted on known photos alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..models import MODELS, Batch, Model, ModelConfig
from .baselines import (
    Components,
    fitted_umap,
    hog_features,
    model_latents,
    photo_batches,
    pixel_features,
    principal_components,
    seen_by,
    untrained_model,
)
from .words import Codes, fitted_words

Float32 = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Features = Callable[[Pixels], Float32]

FITTED = 10_000  # known photos that principal components and read-outs are fitted on
UMAP_FITTED = 20_000
COMPONENTS = (10, 64)
SIDE = 48  # pixels a side that "raw pixels" have at most: a search among thousands of numbers a photo takes minutes
_ROWS = 2048  # photos whose features are held at a time


@dataclass(frozen=True, slots=True)
class Space:
    """A name, its dimensions d, and what turns photos, uint8 [n, size, size, 3], into float32 [n, d]."""

    name: str
    dims: int
    encode: Features


def baseline_spaces(
    known: Pixels, *, seed: int, untrained: ModelConfig | None = None, side: int = SIDE
) -> Iterator[Space]:
    """Yield the spaces that a model has to beat, each fitted on known photos, uint8 [n, size, size, 3].

    Raw pixels (of at most `side` a side, as `thumbnails`); principal components of these and of histograms of oriented
    gradients, fitted on a seeded FITTED of the photos; UMAP-10 of the pixels, fitted on a seeded UMAP_FITTED, where
    umap-learn is installed; random weights: the model of `untrained` before training, unless nothing of it is trained
    or it has a teacher. Fewer photos than components give fewer components, and the name says how many. Raises
    ConfigError for fewer than two photos.
    """
    grey = bool(np.all(known == known[..., :1]))

    def pixel_rows(pixels: Pixels) -> Float32:
        return pixel_features(thumbnails(pixels, side=side), grey=grey)

    def hog_rows(pixels: Pixels) -> Float32:
        return hog_features(pixels, cell=hog_cell(pixels.shape[1]))

    sample = known[_sample(len(known), FITTED, seed)]
    yield Space("raw pixels", pixel_rows(known[:1]).shape[1], pixel_rows)
    yield from _component_spaces("PCA", pixel_rows, sample)
    yield from _component_spaces("HOG + PCA", hog_rows, sample)
    if has_umap():
        yield umap_space(known[_sample(len(known), UMAP_FITTED, seed)], pixel_rows, seed=seed)
    # A model with a teacher before its training: its random weights would be asked without their scale, or beside the
    # teacher's own, which are anything but random.
    if untrained is not None and MODELS[untrained.kind][1].trains and untrained.taught_by() is None:
        yield untrained_space(untrained, sample, seed=seed)


def model_space(name: str, model: Model) -> Space:
    """Return a model's own space; a conditional model is told no category, which would answer the question asked."""
    return Space(name, model.latent_dim, lambda pixels: model_latents(model, pixels))


def word_space(name: str, model: Model, known: Pixels) -> Space:
    """Return the space of a VQ model's codes as words, weighted by how few known photos have each (`words.CodeWords`).

    Raises InputError for a model without codes, or no known photo.
    """
    words = fitted_words(model_codes(model, known))
    return Space(name, words.dims, lambda pixels: words.vectors(words.counts(model_codes(model, pixels))))


def model_codes(model: Model, pixels: NDArray[np.uint8]) -> dict[str, Codes]:
    """Return the codes int64 [n, cells] of photos, uint8 [n, size, size, 3], by level (`Model.code_levels`).

    A category is told to no model. Raises InputError for a model without codes, or no photo.
    """
    if not len(pixels):
        raise InputError("there are no photos to read words from; give at least one")
    found: dict[str, list[Codes]] = {}
    with torch.inference_mode():
        for photos in photo_batches(pixels):
            codes = model.encode(seen_by(model, photos)).codes
            if codes is None:
                raise InputError(f"{type(model).__name__} has no codes to read words from; give a quantised model")
            for name, level in model.code_levels(codes).items():
                found.setdefault(name, []).append(level.flatten(1).numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


def untrained_space(config: ModelConfig, known: Pixels, *, seed: int) -> Space:
    """Return the space of a model's random weights; a read-out that is fitted after training is fitted on `known`."""
    model = untrained_model(config, known.shape[1], seed=seed)
    if model.fits:
        with torch.inference_mode():
            model.fit(Batch(photos) for photos in photo_batches(known))
    return model_space("random weights", model)


def umap_space(known: Pixels, features: Features, *, dims: int = 10, seed: int) -> Space:
    """Return the space of a UMAP fitted on the features of known photos. Raises ConfigError without umap-learn."""
    fitted = fitted_umap(features(known), dims=dims, seed=seed)
    return Space(f"UMAP-{dims}", dims, lambda pixels: np.asarray(fitted.transform(features(pixels)), np.float32))


def has_umap() -> bool:
    """Return whether umap-learn is installed."""
    return find_spec("umap") is not None


def thumbnails(pixels: Pixels, *, side: int = SIDE) -> Pixels:
    """Return photos, uint8 [n, size, size, 3], of at most `side` pixels a side: means of square blocks.

    Blocks are of ceil(size / side) pixels; what is left over at the right and lower edge is cut off.
    """
    count, size = len(pixels), pixels.shape[1]
    block = -(-size // side)
    if block == 1:
        return pixels
    kept = size // block
    out = np.empty((count, kept, kept, 3), np.uint8)
    for start in range(0, count, _ROWS):
        whole = pixels[start : start + _ROWS, : kept * block, : kept * block]
        means = whole.reshape(-1, kept, block, kept, block, 3).mean(axis=(2, 4), dtype=np.float32)
        out[start : start + _ROWS] = np.round(means)
    return out


def hog_cell(size: int) -> int:
    """Return the pixels a side of a gradient histogram's cell: an eighth of the photo, at least 4."""
    return max(4, size // 8)


def _component_spaces(name: str, features: Features, known: Pixels) -> Iterator[Space]:
    """Yield the spaces of the first COMPONENTS principal components; the fewer are the first of the more."""
    rows = features(known)
    most = max(1, min(max(COMPONENTS), len(rows) - 1, rows.shape[1]))
    fitted = principal_components(rows, most)
    for count in sorted({min(count, most) for count in COMPONENTS}):
        first = Components(fitted.centre, fitted.axes[:count], fitted.variances[:count])
        yield Space(f"{name}-{count}", count, _projection(features, first))


def _projection(features: Features, components: Components) -> Features:
    def project(pixels: Pixels) -> Float32:
        # Block by block: the features of many photos at once may be gigabytes.
        starts = range(0, max(1, len(pixels)), _ROWS)
        return np.concatenate([components.project(features(pixels[start : start + _ROWS])) for start in starts])

    return project


def _sample(count: int, limit: int, seed: int) -> NDArray[np.int64]:
    return np.sort(np.random.default_rng(seed).permutation(count)[:limit])

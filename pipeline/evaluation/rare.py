"""Rare-feature test: do latents notice a big element that few items have, for example a logo?

A loss that is a mean over pixels and photos pays little for it, so autoencoders are said to leave it out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from .retrieval import retrieve
from .spread import unit_rows

Pixels = NDArray[np.uint8]
Encode = Callable[[Pixels], ArrayLike]

_INK = (214, 24, 48)


@dataclass(frozen=True, slots=True)
class RareRecall:
    """How well items with the logo find each other, and how well the same items did without it; all in 0..1.

    recall: of an item's R other logo items, the share among its R nearest; plain_recall: before the logo was pasted;
    chance: of a random order. ahead: how often a logo item is nearer than one without, 0.5 at random; plain_ahead.
    recalls: of each logo item, for intervals.
    """

    recall: float
    plain_recall: float
    chance: float
    ahead: float
    plain_ahead: float
    recalls: NDArray[np.float64]


def paste_logo(
    pixels: Pixels, rows: ArrayLike, *, side: float = 0.25, place: tuple[float, float] = (0.5, 0.45)
) -> Pixels:
    """Return a copy of photos, uint8 [n, size, size, 3], with a red ring around a bar on the named rows.

    side: of the logo as a share of the photo's. place: its centre, across and down, as shares.
    """
    size = pixels.shape[1]
    width = max(3, round(side * size))
    left, upper = (min(size - width, max(0, round(share * size - width / 2))) for share in place)
    mask = _logo(width)
    out = pixels.copy()
    chosen = np.asarray(rows, np.int64)
    patch = out[chosen, upper : upper + width, left : left + width]
    out[chosen, upper : upper + width, left : left + width] = np.where(
        mask[..., None], np.array(_INK, np.uint8), np.maximum(patch, 235)
    )
    return out


def rare_recall(
    encode: Encode, pixels: Pixels, *, share: float = 0.01, side: float = 0.25, seed: int = 0
) -> RareRecall:
    """Return how items with a logo find each other among photos, uint8 [n, size, size, 3], one an item.

    encode: photos to latents float [n, d], cosine. share: of the seeded items that get the logo, at least two. The
    measure to look at is what the logo adds: recall above plain_recall. Raises InputError for fewer than four photos.
    """
    if len(pixels) < 4:
        raise InputError(f"{len(pixels)} photos are too few for a rare feature; give at least four")
    number = min(len(pixels) - 2, max(2, round(share * len(pixels))))
    rows = np.sort(np.random.default_rng(seed).permutation(len(pixels))[:number])
    marked = np.zeros(len(pixels), np.int64)
    marked[rows] = 1
    plain = np.asarray(encode(pixels), np.float32)
    changed = plain.copy()
    changed[rows] = np.asarray(encode(paste_logo(pixels[rows], np.arange(number), side=side)), np.float32)
    with_logo, ahead = _found(changed, marked, rows, seed)
    without, plain_ahead = _found(plain, marked, rows, seed)
    chance = (number - 1) / (len(pixels) - 1)
    return RareRecall(float(with_logo.mean()), float(without.mean()), chance, ahead, plain_ahead, with_logo)


def _found(
    vectors: NDArray[np.float32], marked: NDArray[np.int64], rows: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.float64], float]:
    """Return each marked row's R-precision [r], and how often a marked row is nearer than another (ties count half)."""
    ids = np.arange(len(vectors))
    ranked = retrieve(vectors, marked, vectors[rows], marked[rows], gallery_ids=ids, query_ids=rows, k=1, seed=seed)
    unit = unit_rows(vectors.astype(np.float64))
    shares = []
    for row in rows:
        near = unit @ unit[row]
        others = np.sort(near[marked == 0])
        own = near[rows[rows != row]]
        below = np.searchsorted(others, own, "left") + np.searchsorted(others, own, "right")
        shares.append(below.mean() / 2 / len(others))
    return ranked.r_precision, float(np.mean(shares))


def _logo(width: int) -> NDArray[np.bool_]:
    """Return where the ink of a logo of `width` pixels is, bool [width, width]."""
    across = (np.arange(width) + 0.5) / width - 0.5
    radius = np.hypot(across[:, None], across[None, :])
    ring = (radius < 0.48) & (radius > 0.30)
    bar = (np.abs(across)[:, None] < 0.10) & (np.abs(across)[None, :] < 0.48)
    return np.asarray(ring | bar, np.bool_)

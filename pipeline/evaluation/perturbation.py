"""Local-perturbation test: how far latents move when a twentieth of a photo changes.

A sticker, a hand or a fold should move them a little; autoencoders are said to change half of their code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError, InputError
from .retrieval import retrieve

Pixels = NDArray[np.uint8]
Encode = Callable[[Pixels], ArrayLike]


@dataclass(frozen=True, slots=True)
class Movement:
    """How far a local edit moved latents.

    moved: the length of the movement as a share of the distance between two different photos (root mean square of both,
    so 0 is unmoved and 1 is like another photo). moves: that of each photo [n]. share_of_units: of dimensions, how many
    moved by more than half of their spread over photos. found: share of edited photos whose own original is nearest.
    """

    moved: float
    moves: NDArray[np.float64]
    share_of_units: float
    found: float


def edit_patch(pixels: Pixels, *, area: float = 0.05, seed: int = 0) -> Pixels:
    """Return photos, uint8 [n, size, size, 3], each with a square of `area` of it taken from another photo.

    The square stands at a seeded place of its own in each photo and is the other photo's at that place, so the edit
    looks like a photo. The side is rounded to whole pixels. Raises InputError for one photo, ConfigError for an area
    outside 0..1.
    """
    count, size = len(pixels), pixels.shape[1]
    if count < 2:
        raise InputError(f"{count} photos cannot lend each other a patch; give at least two")
    if not 0 < area <= 1:
        raise ConfigError(f"area is {area}; it is a share above 0 and up to 1")
    side = max(1, round(size * area**0.5))
    dice = np.random.default_rng(seed)
    lender = (np.arange(count) + dice.integers(1, count, size=count)) % count  # never the photo itself
    corner = dice.integers(0, size - side + 1, size=(2, count))
    rows = corner[0][:, None, None] + np.arange(side)[None, :, None]
    columns = corner[1][:, None, None] + np.arange(side)[None, None, :]
    own = np.arange(count)[:, None, None]
    out = pixels.copy()
    out[own, rows, columns] = pixels[lender[:, None, None], rows, columns]
    return out


def local_movement(encode: Encode, pixels: Pixels, *, area: float = 0.05, seed: int = 0) -> Movement:
    """Return how far latents move when `edit_patch` edits photos, uint8 [n, size, size, 3], one an item.

    encode: photos to latents float [n, d]. Raises InputError where all photos have the same latents: collapsed latents
    do not move either.
    """
    before = np.asarray(encode(pixels), np.float64)
    after = np.asarray(encode(edit_patch(pixels, area=area, seed=seed)), np.float64)
    spread = before.std(axis=0)
    # The mean square distance between two photos is twice the variance, summed over dimensions.
    apart = float(np.sqrt(2 * np.square(spread).sum()))
    if apart <= 1e-9 * max(1.0, float(np.abs(before).max())):
        raise InputError("all photos have the same latents, so no movement can be compared with anything")
    steps = np.linalg.norm(after - before, axis=1)
    alive = spread > 0
    moved_units = np.abs(after - before)[:, alive] > 0.5 * spread[alive]
    ids = np.arange(len(before))
    nearest = retrieve(before, ids, after, ids, k=1, seed=seed)
    return Movement(
        moved=float(np.sqrt(np.square(steps).mean()) / apart),
        moves=steps / apart,
        share_of_units=float(moved_units.mean()),
        found=float(nearest.precision.mean()),
    )

"""Neighbour purity: are photos of one design nearest to each other, or does a nuisance they differ in outweigh it?

A design is a category, colour and pattern. Each is rendered several times with one of angle, shade, width or view
varied as in the rendered catalogue, and everything else the same for all designs: nothing but the design tells the
photos of one set apart, and nothing but the nuisance parts those of one design.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..images import ImagesConfig, decode
from ..images.render import NUISANCES, SHOWINGS, choose_designs, render_photos, showings
from .retrieval import interval, retrieve

Pixels = NDArray[np.uint8]
Encode = Callable[[Pixels], ArrayLike]

DESIGNS = 60
_STREAM = 0xA17  # apart from the stream that chooses designs


@dataclass(frozen=True, slots=True)
class DesignPhotos:
    """Photos, uint8 [n, size, size, 3], and the number of the design that each shows, int64 [n]."""

    pixels: Pixels
    designs: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Purity:
    """How many of a photo's R nearest show its design, R the number of its design's other photos; in 0..1.

    purity: 1 is the same design whatever the nuisance. chance: of a random order; a space in which the nuisance
    outweighs the design may be below it. purities: of each design, float64 [designs], for intervals.
    """

    purity: float
    chance: float
    purities: NDArray[np.float64]


def nuisance_photos(images: ImagesConfig, *, designs: int = DESIGNS, seed: int) -> dict[str, DesignPhotos]:
    """Return SHOWINGS photos of each design, as a model sees them, by the one of NUISANCES in which these differ.

    The same designs for all, and the same photos for the same arguments. About 7 ms a photo, of which there are
    designs x 16: render once for all encoders of one size. Raises InputError for more designs than there are.
    """
    chosen = choose_designs(designs, seed=seed)
    numbers = np.repeat(np.arange(len(chosen), dtype=np.int64), SHOWINGS)
    found = {}
    for stream, nuisance in enumerate(NUISANCES):
        dice = np.random.default_rng([seed, _STREAM, stream])
        shown = [showing for product in chosen for showing in showings(product, nuisance, dice)]
        found[nuisance] = DesignPhotos(np.stack([decode(photo, images) for photo in render_photos(shown)]), numbers)
    return found


def neighbour_purity(vectors: ArrayLike, designs: ArrayLike, *, seed: int = 0) -> Purity:
    """Return the R-precision of photos' latents float [n, d] among each other by their designs [n], cosine, exact.

    The photo itself is left out by its row; equally near photos stand in seeded order, so that latents which tell
    nothing apart are at chance. A design of one photo is not asked; its photo may stand between others. Raises
    InputError for arrays that do not fit together, or where no design has two photos.
    """
    owners = np.asarray(designs)
    rows = np.arange(len(owners))
    found = retrieve(vectors, owners, vectors, owners, gallery_ids=rows, query_ids=rows, k=1, seed=seed)
    _, asked, counts = np.unique(owners[found.rows], return_inverse=True, return_counts=True)
    purities = np.bincount(asked, weights=found.r_precision) / counts
    chance = float(np.mean((counts - 1) / (len(owners) - 1)))
    return Purity(float(purities.mean()), chance, purities)


def nuisance_purity(encode: Encode, photos: Mapping[str, DesignPhotos], *, seed: int) -> dict[str, float]:
    """Return `purity_<nuisance>` with `_chance`, `_low` and `_high` for photos by nuisance (`nuisance_photos`).

    encode: photos to latents float [n, d]. The interval is 95 % by bootstrap over designs, whose photos depend on each
    other. A purity is low, too, where the space does not know what tells designs apart, for example no colour
    (`factor_probe` says what it knows).
    """
    numbers: dict[str, float] = {}
    for nuisance, shown in photos.items():
        found = neighbour_purity(encode(shown.pixels), shown.designs, seed=seed)
        low, high = interval(found.purities, seed=seed)
        name = f"purity_{nuisance}"
        numbers |= {name: found.purity, f"{name}_chance": found.chance, f"{name}_low": low, f"{name}_high": high}
    return numbers

"""What a space of latents is worth: labels of photos that it was not made from, rare and local changes, factors.

The one place that puts the measures together, so that a release's table and a benchmark say the same by one name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..images import ImagesConfig, decode
from ..images.drawing import Product
from ..images.render import render_products
from .factors import FACTORS, factor_probe
from .knn import knn_both
from .nuisance import DESIGNS, DesignPhotos, nuisance_photos, nuisance_purity
from .perturbation import local_movement
from .probe import check_fit, linear_probe
from .rare import rare_recall
from .retrieval import interval, retrieve
from .spread import spread_measures

Float64 = NDArray[np.float64]
Pixels = NDArray[np.uint8]
Encode = Callable[[Pixels], ArrayLike]

QUERIES = 2_000  # asked photos of the retrieval measures, which sort the gallery; k-NN and the probe ask all
PROBED = 10_000  # known photos that the probe is fitted on
PROBE_NUMBERS = 1 << 23  # rows x dimensions of these: wide spaces are fitted on fewer rows,
PROBED_AT_LEAST = 2_000  # but not on fewer than this
SPREAD = 2_000  # asked photos of the spread, which is a singular value decomposition
FACTOR_ITEMS = 1_000
LABEL_MEASURES = ("knn", "knn_weighted", "probe", "precision_at_10", "map_at_r", "ndcg_at_10")


@dataclass(frozen=True)
class LabelledPhotos:
    """Photos and what is known of them.

    pixels: uint8 [n, size, size, 3]; labels: [n], what they show; groups: [n], the contributor or item of each, which
    a choice by validation keeps on one side. Raises InputError where they do not fit together.
    """

    pixels: Pixels
    labels: Sequence[str]
    groups: Sequence[str]

    def __post_init__(self) -> None:
        shape = self.pixels.shape
        if self.pixels.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2]:
            raise InputError(f"pixels are {self.pixels.dtype} {list(shape)}; give uint8 [n, size, size, 3]")
        if not len(self.pixels) == len(self.labels) == len(self.groups):
            raise InputError(
                f"{len(self.pixels)} photos, {len(self.labels)} labels and {len(self.groups)} groups do not fit; give "
                "one of each a photo"
            )


@dataclass(frozen=True, slots=True)
class Quality:
    """What labels and the spread say of a space.

    values: of each name in LABEL_MEASURES one number an asked photo, float64 [q], in an order that depends on the
    labels and the seed alone: two spaces of the same photos are compared pair by pair (`paired_difference`). The mean
    is the score. intervals: (low, high), 95 % by bootstrap over these. spread: `spread_measures` by name.
    """

    values: Mapping[str, Float64]
    intervals: Mapping[str, tuple[float, float]]
    spread: Mapping[str, float]

    def numbers(self) -> dict[str, float]:
        """Return every number by name; those of LABEL_MEASURES also with `_low` and `_high`."""
        found: dict[str, float] = {}
        for name, values in self.values.items():
            low, high = self.intervals[name]
            found |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
        return {**found, **self.spread}


class Difference(NamedTuple):
    """The mean of what the first has more than the second, and its 95 % interval."""

    mean: float
    low: float
    high: float


def label_quality(
    known_vectors: ArrayLike,
    known_labels: ArrayLike,
    known_groups: ArrayLike,
    asked_vectors: ArrayLike,
    asked_labels: ArrayLike,
    *,
    seed: int,
) -> Quality:
    """Return how well known latents float [n, d] tell the labels of asked ones float [q, d], and how these spread.

    Labels [n] and [q], groups [n] of the known rows. No asked photo, nor another of its item, may be among the known
    ones: nothing here can tell. knn: cosine, k = 10, unweighted majority, every asked row. knn_weighted: k = 20, votes
    weighted by exp(cosine / 0.07). probe: `linear_probe`, its strength chosen on known groups, fitted on a seeded
    sample of up to PROBED known rows (of wide spaces PROBE_NUMBERS / d, at least PROBED_AT_LEAST), every asked row.
    precision_at_10, map_at_r, ndcg_at_10: `retrieve` of a seeded QUERIES of the asked rows among all known ones, those
    left out whose label no known row has. Spread: of a seeded SPREAD of the asked rows. Raises InputError for arrays
    that do not fit, fewer than two known labels, or where no label is on both sides.
    """
    known, asked = np.asarray(known_vectors, np.float32), np.asarray(asked_vectors, np.float32)
    labels, truth, groups = np.asarray(known_labels), np.asarray(asked_labels), np.asarray(known_groups)
    check_fit(known, labels, asked, truth)
    if len(groups) != len(known):
        raise InputError(f"{len(groups)} groups and {len(known)} known rows do not fit; give one a row")
    plain, weighted = knn_both(known, labels, asked)
    rows = _sample(len(known), max(PROBED_AT_LEAST, min(PROBED, PROBE_NUMBERS // known.shape[1])), seed, 0)
    probe = linear_probe(known[rows], labels[rows], asked, truth, groups=groups[rows], seed=seed)
    queries = _sample(len(asked), QUERIES, seed, 1)
    found = retrieve(known, labels, asked[queries], truth[queries], seed=seed)
    values = {
        "knn": (plain == truth).astype(np.float64),
        "knn_weighted": (weighted == truth).astype(np.float64),
        "probe": probe.correct.astype(np.float64),
        "precision_at_10": found.precision,
        "map_at_r": found.average_precision,
        "ndcg_at_10": found.ndcg,
    }
    intervals = {name: interval(numbers, seed=seed) for name, numbers in values.items()}
    return Quality(values, intervals, spread_quality(asked, seed=seed))


def spread_quality(vectors: ArrayLike, *, seed: int) -> dict[str, float]:
    """Return `spread_measures` of a seeded SPREAD of vectors float [n, d]; needs no labels."""
    matrix = np.asarray(vectors, np.float32)
    return spread_measures(matrix[_sample(len(matrix), SPREAD, seed, 2)])


def paired_difference(first: ArrayLike, second: ArrayLike, *, seed: int) -> Difference:
    """Return how much higher the first's numbers are than the second's on the same queries, float [q] both.

    A paired bootstrap (Efron 1979; Koehn 2004): queries are drawn with their two numbers, so what makes a query hard
    for both does not widen the interval. The first is better by more than chance when `low` is above 0. Raises
    InputError for numbers of other queries.
    """
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if one.shape != other.shape:
        raise InputError(
            f"numbers of {list(one.shape)} and {list(other.shape)} queries are no pairs; ask both the same queries"
        )
    gained = one - other
    return Difference(float(gained.mean()), *interval(gained, seed=seed))


def encoder_quality(encode: Encode, pixels: Pixels, *, seed: int) -> dict[str, float]:
    """Return what an encoder makes of a rare logo and of a local edit; photos uint8 [n, size, size, 3], one an item.

    encode: such photos to latents float [n, d]. rare_recall (with `_low` and `_high`), rare_plain_recall without the
    logo, rare_chance, rare_ahead, rare_plain_ahead: of `rare_recall`. moved, moved_units, found: of `local_movement`;
    not there where all photos have the same latents. Raises InputError for fewer than four photos.
    """
    rare = rare_recall(encode, pixels, seed=seed)
    low, high = interval(rare.recalls, seed=seed)
    numbers = {
        "rare_recall": rare.recall,
        "rare_recall_low": low,
        "rare_recall_high": high,
        "rare_plain_recall": rare.plain_recall,
        "rare_chance": rare.chance,
        "rare_ahead": rare.ahead,
        "rare_plain_ahead": rare.plain_ahead,
    }
    try:
        movement = local_movement(encode, pixels, seed=seed)
    except InputError:  # collapsed: the other numbers say so, and a table of many spaces goes on
        return numbers
    return {**numbers, "moved": movement.moved, "moved_units": movement.share_of_units, "found": movement.found}


@dataclass(frozen=True, slots=True)
class FactorPhotos:
    """Rendered photos, uint8 [n, size, size, 3], and the FACTORS that made them, by name [n].

    varied: photos of designs by the nuisance that they differ in (`nuisance_photos`).
    """

    pixels: Pixels
    factors: Mapping[str, Sequence[object]]
    varied: Mapping[str, DesignPhotos]


def factor_photos(
    images: ImagesConfig, *, count: int = FACTOR_ITEMS, designs: int = DESIGNS, seed: int
) -> FactorPhotos:
    """Return the first photo of each of `count` rendered items as a model sees it, and `nuisance_photos` of designs.

    The same for the same arguments. About 7 ms a photo, `count` and 16 a design: render once for all encoders of one
    size.
    """
    products: list[Product] = []
    pixels = np.empty((count, images.size, images.size, 3), np.uint8)
    for number, (product, photo) in enumerate(render_products(count, seed=seed)):
        products.append(product)
        pixels[number] = decode(photo, images)
    factors = {name: [getattr(product, name) for product in products] for name in FACTORS}
    return FactorPhotos(pixels, factors, nuisance_photos(images, designs=designs, seed=seed))


def factor_quality(encode: Encode, photos: FactorPhotos, *, seed: int) -> dict[str, float]:
    """Return what is read of the factors that made rendered photos, and whether nuisances outweigh the design.

    `factor_<name>` and `factor_<name>_chance` of FACTORS: how well each is read from the latents by a line, accuracy of
    names, R2 of numbers (`factor_probe`). Every photo is of an item of its own and factors are drawn independently, so
    there are no groups to keep apart. `purity_<nuisance>` and its `_chance`, `_low`, `_high`: of `nuisance_purity`.
    Raises InputError for too few photos.
    """
    numbers: dict[str, float] = {}
    for score in factor_probe(encode(photos.pixels), photos.factors, seed=seed):
        numbers |= {f"factor_{score.factor}": score.score, f"factor_{score.factor}_chance": score.chance}
    return numbers | nuisance_purity(encode, photos.varied, seed=seed)


def _sample(count: int, limit: int, seed: int, stream: int) -> NDArray[np.int64]:
    """Return up to `limit` seeded rows of `count`, ascending."""
    return np.sort(np.random.default_rng([seed, stream]).permutation(count)[:limit])

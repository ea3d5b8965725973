"""Folds by group: every photo is asked once of a space that was made without its contributor, brand or item.

A catalogue's photos of one contributor look alike in ways that say nothing of the product: light, floor, camera. Asked
of a bank that holds its contributor, a photo is told by these; so groups never lie on both sides, and intervals are
drawn over groups, since photos of one group are no independent questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError, InputError
from .knn import knn_labels
from .quality import Difference
from .retrieval import retrieve

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

FOLDS = 5
FOLD_MEASURES = ("knn", "precision_at_10", "map_at_r")
_DRAWS = 1000
_LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class GroupMean:
    """A mean over asked photos with its 95 % interval by bootstrap over groups; photos, groups: how many counted."""

    mean: float
    low: float
    high: float
    photos: int
    groups: int


def deal_folds(groups: Sequence[str], folds: int = FOLDS, *, seed: int = 0) -> Int64:
    """Return which fold each photo is asked in, int64 [n] of 0..folds - 1; photos of one group are in one fold.

    The largest group first, each to the fold with the fewest photos; equally large ones in an order that a seeded hash
    of their names decides, so that the photos' order says nothing. Raises ConfigError for fewer than two folds,
    InputError for fewer groups than folds.
    """
    if folds < 2:
        raise ConfigError(f"there are {folds} folds; name at least 2, or nothing is left to learn from")
    names, numbers, counts = np.unique(np.asarray(groups, np.str_), return_inverse=True, return_counts=True)
    if len(names) < folds:
        shown = ", ".join(map(repr, names[:5].tolist()))
        raise InputError(
            f"{len(names)} groups ({shown}) cannot be dealt into {folds} folds, a group being in one alone; name fewer "
            "folds, or a column of more values"
        )
    ties = [blake2b(f"{seed} {name}".encode(), digest_size=8).digest() for name in names.tolist()]
    order = sorted(range(len(names)), key=lambda group: (-int(counts[group]), ties[group]))
    filled = np.zeros(folds, np.int64)
    fold_of = np.empty(len(names), np.int64)
    for group in order:
        fold_of[group] = np.argmin(filled)
        filled[fold_of[group]] += counts[group]
    return fold_of[numbers]


def ask_fold(
    vectors: ArrayLike, labels: Sequence[str | None], groups: Sequence[str], asked: NDArray[np.bool_], *, seed: int = 0
) -> dict[str, Float64]:
    """Return FOLD_MEASURES of the asked photos against all others, float64 [n] each, NaN where nothing was asked.

    vectors: float [n, d] of one space, made without the asked ones; labels: [n], None where a photo has none, which is
    then neither asked nor in the bank; groups: [n]; asked: bool [n]. knn: cosine, k = 10, unweighted majority, ties to
    the nearest. precision_at_10, map_at_r: `retrieve`; NaN also for a photo whose label nothing in the bank has. Raises
    InputError for a group on both sides, which would answer for the space, or where one side is empty.
    """
    matrix, side = np.asarray(vectors, np.float32), np.asarray(asked, np.bool_)
    if not len(matrix) == len(labels) == len(groups) == len(side):
        raise InputError(
            f"{len(matrix)} vectors, {len(labels)} labels, {len(groups)} groups and {len(side)} sides do not fit; give "
            "one of each a photo"
        )
    refuse_crossing(groups, side)
    labelled = np.array([label is not None for label in labels], np.bool_)
    bank, rows = np.flatnonzero(labelled & ~side), np.flatnonzero(labelled & side)
    if not len(bank) or not len(rows):
        raise InputError(
            f"{len(rows)} photos with a label are asked of {len(bank)}; each side needs one, so name fewer folds, or a "
            "category that more photos have"
        )
    truth = np.array([label or "" for label in labels], np.str_)
    found = {name: np.full(len(matrix), np.nan) for name in FOLD_MEASURES}
    found["knn"][rows] = knn_labels(matrix[bank], truth[bank], matrix[rows]) == truth[rows]
    if np.isin(truth[rows], truth[bank]).any():
        retrieved = retrieve(matrix[bank], truth[bank], matrix[rows], truth[rows], seed=seed)
        found["precision_at_10"][rows[retrieved.rows]] = retrieved.precision
        found["map_at_r"][rows[retrieved.rows]] = retrieved.average_precision
    return found


def refuse_crossing(groups: Sequence[str], asked: NDArray[np.bool_]) -> None:
    """Raise InputError where photos of one group are on both sides; groups: [n], asked: bool [n]."""
    names = np.asarray(groups, np.str_)
    both = np.intersect1d(names[asked], names[~asked])
    if len(both):
        raise InputError(
            f"{len(both)} groups have photos on both sides, the first {str(both[0])!r}: what they share beside the "
            "product would answer the question; deal folds by these groups"
        )


def group_mean(values: ArrayLike, groups: Sequence[str], *, seed: int = 0) -> GroupMean:
    """Return the mean of photos' numbers and its 95 % interval when whole groups are drawn, with return.

    values: float [n], NaN where a photo was not asked, which counts nowhere; groups: [n]. As many groups as there are
    are drawn 1,000 times and the mean is over the photos of those drawn (cluster bootstrap: Davison and Hinkley 1997,
    section 3.8). It tells how much other contributors would move the mean, not another training. Raises InputError for
    fewer than two groups that were asked.
    """
    numbers, names = np.asarray(values, np.float64), np.asarray(groups, np.str_)
    if numbers.shape != names.shape or numbers.ndim != 1:
        raise InputError(f"{list(numbers.shape)} numbers of {list(names.shape)} groups do not fit; give one each")
    there = ~np.isnan(numbers)
    known, places = np.unique(names[there], return_inverse=True)
    if len(known) < 2:
        raise InputError(f"{len(known)} groups were asked; an interval over groups needs at least 2")
    sums = np.bincount(places, numbers[there], len(known))
    counts = np.bincount(places, minlength=len(known))
    dice = np.random.default_rng(seed)
    means = np.empty(_DRAWS)
    for draw in range(_DRAWS):
        drawn = dice.integers(len(known), size=len(known))
        means[draw] = sums[drawn].sum() / counts[drawn].sum()
    low, high = np.quantile(means, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return GroupMean(float(sums.sum() / counts.sum()), float(low), float(high), int(there.sum()), len(known))


def group_difference(first: ArrayLike, second: ArrayLike, groups: Sequence[str], *, seed: int = 0) -> Difference:
    """Return how much higher the first's numbers are than the second's on the same photos, drawn by groups.

    Both float [n] as of `group_mean`, NaN at the same photos; what makes a photo or a contributor hard for both does
    not widen the interval. Raises InputError for numbers of other photos.
    """
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if one.shape != other.shape or not np.array_equal(np.isnan(one), np.isnan(other)):
        raise InputError(
            f"numbers of {int((~np.isnan(one)).sum())} and {int((~np.isnan(other)).sum())} asked photos are no pairs; "
            "ask both the same photos"
        )
    found = group_mean(one - other, groups, seed=seed)
    return Difference(found.mean, found.low, found.high)


def over_seeds(runs: Sequence[Mapping[str, Float64]]) -> dict[str, Float64]:
    """Return each photo's mean number over seeds, float64 [n] by measure; runs: of one model, at least one."""
    return {name: np.mean([run[name] for run in runs], axis=0) for name in runs[0]}

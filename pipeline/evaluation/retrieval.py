"""Retrieval measures: of the items that a customer would see first, how many are of the query's kind, and how early.

Names apart, since the field mixes them: precision@k is a share of what is shown, hit rate@k whether anything fits at
all, R-precision and MAP@R look as deep as the gallery holds fitting items, so that a large category cannot look good
by its size. Exact, by cosine or any metric of `index`. The query's own item is left out by its id, never by its rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError, InputError
from ..index import METRICS, LatentArrays, Metric

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_BLOCK = 1 << 23  # similarities held at a time: 32 MiB
_DRAWS = 1000
_DRAWN = 1 << 18  # values drawn at a time
_STREAM = 0x71E5


@dataclass(frozen=True, slots=True)
class Retrieval:
    """One number a query, float64 [a] each, over the queries that something in the gallery fits.

    rows: which queries [a]; those of a kind that the gallery does not hold are left out. precision, hit: at k.
    average_precision: its mean is MAP@R. ndcg: at k, graded.
    """

    rows: Int64
    precision: Float64
    r_precision: Float64
    average_precision: Float64
    ndcg: Float64
    hit: Float64


def retrieve(
    gallery: ArrayLike,
    gallery_labels: ArrayLike,
    queries: ArrayLike,
    labels: ArrayLike,
    *,
    gallery_ids: ArrayLike | None = None,
    query_ids: ArrayLike | None = None,
    k: int = 10,
    seed: int = 0,
) -> Retrieval:
    """Return how well queries float [q, d] find items of their kind in a gallery float [n, d], by cosine.

    labels: [n] and [q], or graded [n, m] and [q, m], coarse to fine (category, colour, style): an item's gain is how
    many of the query's labels it shares from the left on, and it fits when it shares the first. ids: [n] and [q];
    gallery rows of the query's id are left out. Equally near items stand in seeded order: in the catalogue's order a
    table that is sorted by category would answer for a model that tells nothing apart. Raises InputError for arrays
    that do not fit together or when nothing in the gallery fits any query.
    """
    cosine = METRICS["cosine"]
    items, asked = (cosine.item_features(LatentArrays(mean=_matrix(side))) for side in (gallery, queries))
    if k < 1:
        raise ConfigError(f"k is {k}; it must be at least 1")
    if (gallery_ids is None) != (query_ids is None):
        raise InputError("ids are given for one side only; give those of the gallery and of the queries, or none")
    levels = _levels(gallery_labels, labels)
    if levels[0].shape[1] != len(items) or levels[1].shape[1] != len(asked) or items.shape[1] != asked.shape[1]:
        raise InputError(
            f"a gallery of {list(items.shape)} with {levels[0].shape[1]} labels and queries of {list(asked.shape)} "
            f"with {levels[1].shape[1]} labels do not fit"
        )
    return _measured(cosine, (items, asked), levels, _numbers(gallery_ids, query_ids, len(items), len(asked)), k, seed)


def retrieve_rows(
    metric: Metric, latents: LatentArrays, labels: ArrayLike, rows: Int64, *, k: int = 10, seed: int = 0
) -> Retrieval:
    """Return how well these rows [q] of latents [n] with labels [n] find others of their kind, by any metric.

    metric: one whose needs the latents have. Labels, measures and errors otherwise as of `retrieve`.
    """
    known = np.asarray(labels)
    features = metric.item_features(latents), metric.query_features(latents.take(rows))
    return _measured(metric, features, _levels(known, known[rows]), (np.arange(len(latents)), rows), k, seed)


def _measured(
    metric: Metric,
    features: tuple[NDArray[np.float32], NDArray[np.float32]],
    levels: tuple[Int64, Int64],
    numbers: tuple[Int64, Int64],
    k: int,
    seed: int,
) -> Retrieval:
    """Return the measures from features, levels of labels and numbers of ids, each of the gallery and the queries."""
    (items, asked), (kinds, wanted), (own, asking) = features, levels, numbers
    # A stream of its own: callers choose rows by the same seed, and those must not stand together in this order.
    mixed = np.random.default_rng([seed, _STREAM]).permutation(len(items))
    items, kinds, own = items[mixed], kinds[:, mixed], own[mixed]
    found = _Values(len(asked))
    # Queries of about equally many fitting items together: the deepest of a block decides how much of it is sorted.
    depth = np.bincount(kinds[0], minlength=int(max(kinds[0].max(), wanted[0].max())) + 1)[wanted[0]]
    order = np.argsort(depth, kind="stable")
    step = max(1, _BLOCK // max(1, len(items)))
    for start in range(0, len(order), step):
        rows = order[start : start + step]
        near = _near(metric, asked[rows], items)
        mine, copies = np.nonzero(asking[rows][:, None] == own)
        gains, totals, left = _ranked(near, kinds, wanted[:, rows], (mine, copies), k)
        found.note(rows, gains, totals, np.minimum(k, left), k)
    return found.taken()


def precision_at_k(relevant: NDArray[np.bool_], k: int) -> Float64:
    """Return the share of the first k that fit; relevant: bool [q, >= k] in rank order, to float64 [q]."""
    share: Float64 = _first(relevant, k).mean(axis=1)
    return share


def hit_rate(relevant: NDArray[np.bool_], k: int) -> Float64:
    """Return 1.0 where any of the first k fits, else 0.0; relevant: bool [q, >= k] in rank order, to float64 [q]."""
    return np.asarray(_first(relevant, k).any(axis=1), np.float64)


def r_precision(relevant: NDArray[np.bool_], totals: Int64) -> Float64:
    """Return the share of fitting items among the first R, R = totals [q] those in the gallery; to float64 [q]."""
    found: Int64 = np.sum(relevant & _within(relevant, totals), axis=1)
    return np.asarray(found / totals, np.float64)


def map_at_r(relevant: NDArray[np.bool_], totals: Int64) -> Float64:
    """Return MAP@R of each query: the sum of precision@i over the fitting ranks i <= R, divided by R; float64 [q].

    relevant: bool [q, ranks]; totals: R [q], the fitting items of the whole gallery, not of the ranks that were looked
    at: with fewer ranks than R the measure would be another one, so that is an InputError. Musgrave et al. 2020
    (arXiv 2003.08505, section 4.2).
    """
    counted = relevant & _within(relevant, totals)
    precision = np.cumsum(counted, axis=1) / np.arange(1, relevant.shape[1] + 1)
    total: Float64 = np.sum(precision, axis=1, where=counted)
    return total / totals


def ndcg_at_k(gains: NDArray[np.integer], ideal: NDArray[np.integer], k: int) -> Float64:
    """Return NDCG@k with linear gains, float64 [q]: sum of gain / log2(1 + rank) over that of the best order.

    gains: [q, >= k] in rank order; ideal: [q, >= k] the gallery's gains from the largest on, the best one above 0.
    Jarvelin and Kekalainen 2002, linear as in scikit-learn (not 2^gain - 1).
    """
    weights = 1.0 / np.log2(np.arange(2, k + 2))
    best: Float64 = _first(ideal, k) @ weights
    return (_first(gains, k) @ weights) / best


def interval(values: ArrayLike, *, level: float = 0.95, draws: int = _DRAWS, seed: int = 0) -> tuple[float, float]:
    """Return the bootstrap interval of the mean of values [q]: percentiles over seeded draws of q values with return.

    Efron 1979. It tells how much another sample of queries would move the mean, not another training.
    """
    given = np.asarray(values, np.float64)
    if given.ndim != 1 or not len(given):
        raise InputError(f"values of shape {list(given.shape)} are no list of at least one number")
    dice, step = np.random.default_rng(seed), max(1, _DRAWN // len(given))
    blocks = [min(step, draws - start) for start in range(0, draws, step)]
    means = np.concatenate(
        [given[dice.integers(len(given), size=(block, len(given)))].mean(axis=1) for block in blocks]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class _Values:
    """Collects the measures of blocks of queries."""

    def __init__(self, queries: int) -> None:
        self._values = np.full((5, queries), np.nan)

    def note(self, rows: Int64, gains: NDArray[np.int64], totals: Int64, shown: Int64, k: int) -> None:
        """Add a block: gains [q, ranks], totals [levels, q] of fitting items, shown [q] of ranks that exist up to k."""
        fits = totals[0] > 0
        rows, gains, totals, shown = rows[fits], gains[fits], totals[:, fits], shown[fits]
        if not len(rows):
            return
        relevant = gains > 0
        ideal = (np.arange(k)[None, :, None] < totals[:, None, :]).sum(axis=0).T
        self._values[:, rows] = (
            precision_at_k(relevant, k) * k / shown,
            r_precision(relevant, totals[0]),
            map_at_r(relevant, totals[0]),
            ndcg_at_k(gains, ideal, k),
            hit_rate(relevant, k),
        )

    def taken(self) -> Retrieval:
        known = np.flatnonzero(~np.isnan(self._values[0]))
        if not len(known):
            raise InputError("nothing in the gallery is of any query's kind, itself left out; nothing can be measured")
        return Retrieval(known, *self._values[:, known])


def _ranked(
    near: NDArray[Any], kinds: Int64, wanted: Int64, own: tuple[Int64, Int64], k: int
) -> tuple[NDArray[np.int64], Int64, Int64]:
    """Return gains in rank order [q, ranks], fitting items [levels, q] and items [q], all without the query's own.

    near: similarities [q, n], overwritten; kinds [levels, n]; wanted [levels, q]; own: the pairs that are left out.
    """
    asking, items = own
    near[asking, items] = -np.inf
    queries, size = near.shape
    left = size - np.bincount(asking, minlength=queries)
    totals = np.empty((len(kinds), queries), np.int64)
    for level, (kind, want) in enumerate(zip(kinds, wanted, strict=True)):
        mine = np.bincount(asking, weights=kind[items] == want[asking], minlength=queries)
        totals[level] = np.bincount(kind, minlength=int(want.max()) + 1)[want] - mine.astype(np.int64)
    ranks = min(size, max(k, int(totals[0].max())))
    np.negative(near, out=near)
    if ranks < size:
        picked = np.argpartition(near, ranks - 1, axis=1)[:, :ranks]
    else:
        picked = np.tile(np.arange(size), (queries, 1))
    apart = np.take_along_axis(near, picked, axis=1)
    order = np.argsort(apart, axis=1)
    picked, apart = np.take_along_axis(picked, order, axis=1), np.take_along_axis(apart, order, axis=1)
    gains = np.zeros((queries, max(k, ranks)), np.int64)
    for kind, want in zip(kinds, wanted, strict=True):
        gains[:, :ranks] += kind[picked] == want[:, None]
    gains[:, :ranks][np.isinf(apart)] = 0  # the query itself, where there are fewer items than ranks
    return gains, totals, left


def _near(metric: Metric, asked: NDArray[np.float32], items: NDArray[np.float32]) -> NDArray[Any]:
    """Return what orders items as the metric does, larger is nearer, [q, n]."""
    if metric.geometry == "l2":
        return np.asarray(2.0 * asked @ items.T - np.sum(items * items, axis=1))
    if metric.cancels:
        return np.asarray(asked.astype(np.float64) @ items.T.astype(np.float64))
    return np.asarray(asked @ items.T)


def _levels(gallery: ArrayLike, queries: ArrayLike) -> tuple[Int64, Int64]:
    """Number the labels of both sides, [m, n] and [m, q]: equal numbers at a level share all labels up to it."""
    sides = [np.asarray(side) for side in (gallery, queries)]
    columns = [side[:, None] if side.ndim == 1 else side for side in sides]
    if any(side.ndim != 2 for side in columns) or columns[0].shape[1] != columns[1].shape[1]:
        raise InputError(f"labels of shape {list(sides[0].shape)} and {list(sides[1].shape)} do not fit")
    both = np.concatenate(columns)
    numbers = np.zeros((both.shape[1], len(both)), np.int64)
    before = np.zeros(len(both), np.int64)
    for level in range(both.shape[1]):
        values, own = np.unique(both[:, level], return_inverse=True)
        before = np.unique(before * len(values) + own, return_inverse=True)[1]
        numbers[level] = before
    return numbers[:, : len(columns[0])], numbers[:, len(columns[0]) :]


def _numbers(gallery: ArrayLike | None, queries: ArrayLike | None, items: int, asked: int) -> tuple[Int64, Int64]:
    """Number the ids of both sides; without ids no row is another's."""
    if gallery is None or queries is None:
        return np.full(items, -1, np.int64), np.full(asked, -2, np.int64)
    given: list[NDArray[Any]] = [np.asarray(side) for side in (gallery, queries)]
    if (len(given[0]), len(given[1])) != (items, asked):
        raise InputError(f"{len(given[0])} and {len(given[1])} ids do not fit {items} items and {asked} queries")
    numbers = np.unique(np.concatenate(given), return_inverse=True)[1].astype(np.int64)
    return numbers[:items], numbers[items:]


def _first(values: NDArray[Any], k: int) -> NDArray[Any]:
    if k < 1 or values.shape[1] < k:
        raise InputError(f"{values.shape[1]} ranks are given and the first {k} are asked for")
    return values[:, :k]


def _within(relevant: NDArray[np.bool_], totals: Int64) -> NDArray[np.bool_]:
    """Return which ranks are among the first R of their query. Raises InputError for R of 0 or beyond the ranks."""
    if totals.min() < 1 or totals.max() > relevant.shape[1]:
        raise InputError(
            f"the gallery holds {totals.min()}..{totals.max()} fitting items a query and {relevant.shape[1]} ranks are "
            "given; look as deep as there are fitting items, and leave out queries without any"
        )
    inside: NDArray[np.bool_] = np.arange(relevant.shape[1]) < totals[:, None]
    return inside


def _matrix(vectors: ArrayLike) -> NDArray[np.float32]:
    matrix = np.asarray(vectors, np.float32)
    if matrix.ndim != 2 or not len(matrix):
        raise InputError(f"vectors of shape {list(matrix.shape)} are no matrix [n, d] of at least one row")
    return matrix

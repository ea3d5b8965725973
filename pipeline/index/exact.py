"""Exact nearest rows by NumPy alone: the truth that recall is measured against."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .latents import Float32, Float64, LatentArrays, Rows
from .metric import Metric

Values = NDArray[np.floating[Any]]

_QUERIES = 256  # queries and
_PAIR_BLOCK = 1 << 22  # float64 values of a temporary array of pairs
_ROWS = 1 << 15  # rows multiplied at a time: 64 MiB of float64 values
_PARTED = 16  # queries whose largest values are picked at a time
_MERGED = 4  # rows a query, in parts of those kept, that are merged into them one by one, not picked anew
_SPARE = 16  # rows kept beyond k, so that rounding of the matrix product cannot push a true neighbour out,
_WIDER = 8  # and how many more where the metric's own bound says that these are too few


def nearest_exact(
    metric: Metric,
    items: LatentArrays,
    queries: LatentArrays,
    k: int,
    *,
    exclude: Rows | None = None,
) -> tuple[Rows, Float64]:
    """Return the k nearest rows of every query, ids int64 [q, k] and exact scores float64 [q, k], nearest first.

    Ties go to the lower row. exclude: one row a query [q] that must not be returned (the query itself), or None.
    A k above the number of rows left gives that many columns.
    """
    k = max(0, min(k, len(items) - (exclude is not None)))
    ids = np.zeros((len(queries), k), np.int64)
    scores = np.zeros(ids.shape, np.float64)
    if k == 0:
        return ids, scores
    item_features, query_features = metric.item_features(items), metric.query_features(queries)
    for start in range(0, len(queries), _QUERIES):
        block = np.s_[start : start + _QUERIES]
        left_out = None if exclude is None else exclude[block]
        found = _nearest_of(metric, items, item_features, queries.take(block), query_features[block], k, left_out)
        ids[block], scores[block] = found
    return ids, scores


def _nearest_of(
    metric: Metric,
    items: LatentArrays,
    item_features: Float32,
    queries: LatentArrays,
    query_features: Float32,
    k: int,
    exclude: Rows | None,
) -> tuple[Rows, Float64]:
    """Return `nearest_exact` of a block of queries.

    Candidates come of a product in float32, where the metric bounds what that can have moved; queries whose k-th row
    is not further than this bound leaves room for, and all where large terms cancel, have one in float64.
    """
    ids, scores = np.zeros((len(queries), k), np.int64), np.zeros((len(queries), k))
    pending, count = np.arange(len(queries)), k + _SPARE
    wide = metric.cancels
    while len(pending):
        asked, left_out = queries.take(pending), None if exclude is None else exclude[pending]
        own = query_features[pending]
        found, values = _likely(metric, item_features, own, count, left_out, wide=wide)
        exact = _pairs(metric, asked, items, found)
        if left_out is not None:
            exact = np.where(found == left_out[:, None], -np.inf, exact)
        order = np.lexsort((found, -exact), axis=-1)[:, :k]
        ids[pending] = np.take_along_axis(found, order, axis=1)
        scores[pending] = np.take_along_axis(exact, order, axis=1)
        if found.shape[1] >= len(items) or (wide and not metric.cancels):
            break
        last = values.min(axis=1).astype(np.float64)
        if metric.geometry == "l2":
            last = np.sum(np.square(own, dtype=np.float64), axis=1) - last
        behind = metric.ceiling(last, asked, own)
        pending, count, wide = pending[behind > scores[pending, -1]], _WIDER * count if wide else count, True
    return ids, scores


def _pairs(metric: Metric, queries: LatentArrays, items: LatentArrays, found: Rows) -> Float64:
    """Return the exact scores of each query's own rows [q, n], a few queries at a time."""
    scores = np.empty(found.shape)
    step = max(1, _PAIR_BLOCK // max(1, found.shape[1] * (metric.width or items.mean.shape[1])))
    for start in range(0, len(found), step):
        block = np.s_[start : start + step]
        scores[block] = metric.pair_scores(queries.take(block).take(np.s_[:, None]), items.take(found[block]))
    return scores


def _likely(
    metric: Metric, items: Float32, queries: Float32, count: int, exclude: Rows | None, *, wide: bool
) -> tuple[Rows, Values]:
    """Return the `count` rows (or all) nearest by a matrix product, and what it gave, in no order; wide: in float64.

    Of squared distances it is |q|^2 less them.
    """
    kind: type[np.floating[Any]] = np.float64 if wide else np.float32
    asked = queries.astype(kind)
    best = np.empty((len(queries), 0), kind)
    rows = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(items), _ROWS):
        block = items[start : start + _ROWS].astype(kind, copy=False)
        near: Values = asked @ block.T
        if metric.geometry == "l2":
            near *= 2.0
            near -= np.sum(np.square(block, dtype=np.float64), axis=1).astype(kind)
        if exclude is not None:
            inside = np.flatnonzero((exclude >= start) & (exclude < start + len(block)))
            near[inside, exclude[inside] - start] = -np.inf
        best, rows = _with_more(best, rows, near, start, count)
        del near, block  # else they would be there beside the next ones
    return rows, best


def _with_more(best: Values, rows: Rows, near: Values, start: int, count: int) -> tuple[Values, Rows]:
    """Return the `count` best of what there is and of the rows from `start` on, whose values are `near` [q, n]."""
    if best.shape[1] == count:
        # Most blocks have few rows that are nearer than the last one kept: these alone are looked at.
        owner, place = np.divmod(np.flatnonzero(near > best.min(axis=1)[:, None]), near.shape[1])
        if len(owner) <= _MERGED * best.size:
            owners = np.concatenate([np.repeat(np.arange(len(best)), count), owner])
            values = np.concatenate([best.ravel(), near[owner, place]])
            numbers = np.concatenate([rows.ravel(), place + start])
            order = np.lexsort((-values, owners))
            first = np.searchsorted(owners[order], np.arange(len(best)))
            kept = order[first[:, None] + np.arange(count)]
            return values[kept], numbers[kept]
    picked = _largest(near, count)
    best = np.concatenate([best, np.take_along_axis(near, picked, axis=1)], axis=1)
    rows = np.concatenate([rows, picked + start], axis=1)
    kept = _largest(best, count)
    return np.take_along_axis(best, kept, axis=1), np.take_along_axis(rows, kept, axis=1)


def _largest(values: Values, count: int) -> Rows:
    """Return the positions of the `count` largest values of every row (all, where there are no more)."""
    width = values.shape[1]
    if count >= width:
        return np.broadcast_to(np.arange(width), values.shape)
    found = np.empty((len(values), count), np.int64)
    for start in range(0, len(values), _PARTED):  # each row alone, so that numbers of all values are never held
        block = values[start : start + _PARTED]
        found[start : start + _PARTED] = np.argpartition(block, width - count, axis=1)[:, width - count :]
    return found

"""Exact nearest rows by NumPy alone: the truth that recall is measured against."""

from __future__ import annotations

import numpy as np

from .latents import Float32, Float64, LatentArrays, Rows
from .metric import Metric
from .products import TOGETHER, Values, in_blocks, largest_products

_PAIR_BLOCK = 1 << 22  # float64 values of a temporary array of pairs
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
    for start in range(0, len(queries), TOGETHER):
        block = np.s_[start : start + TOGETHER]
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
        if found.shape[1] >= len(items):
            break
        last = values.min(axis=1).astype(np.float64)
        if metric.geometry == "l2":
            last = np.sum(np.square(own, dtype=np.float64), axis=1) - last
        kth = scores[pending, -1]
        tied = exact.min(axis=1) >= kth  # perhaps with rows behind them, too: which are lower?
        again = metric.ceiling(last, asked, own) > kth
        if wide:
            again &= metric.cancels
            slack = metric.rounding(last, asked, own)
            for at in np.flatnonzero(tied & ~again).tolist():
                one = asked.take(np.s_[at : at + 1]), own[at : at + 1], None if left_out is None else left_out[at]
                ids[pending[at]] = _first_tied(
                    metric, items, item_features, one, found[at], values[at].min() - slack[at], k
                )
        else:
            again |= tied
        pending, count, wide = pending[again], _WIDER * count if wide else count, True
    return ids, scores


def _first_tied(
    metric: Metric,
    items: LatentArrays,
    item_features: Float32,
    query: tuple[LatentArrays, Float32, np.int64 | None],
    found: Rows,
    least: float,
    k: int,
) -> Rows:
    """Return the k nearest of the rows `found` and of all rows as near as the k-th of these, ties to the lower.

    query: its latents, its features [1, f] and the row that it does not find; least: no product of such a row is less.
    """
    latents, features, left_out = query
    best = metric.pair_scores(latents, items.take(found))
    kth = np.partition(best, -k)[-k]
    rows, start = list[int](), 0
    for block in in_blocks(item_features):
        _, values = largest_products(iter([block]), features.astype(np.float64), len(block), l2=metric.geometry == "l2")
        near = start + np.flatnonzero(values[0] >= least)
        rows += near[metric.pair_scores(latents, items.take(near)) >= kth].tolist()
        start += len(block)
        if len(rows) > k:
            break
    every = np.setdiff1d(np.union1d(found, rows), [] if left_out is None else [left_out])
    scores = metric.pair_scores(latents, items.take(every))
    return every[np.lexsort((every, -scores))[:k]]


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
    """Return the `count` rows (or all) nearest by a matrix product, and what it gave, in no order; wide: in float64."""
    asked: Values = queries.astype(np.float64 if wide else np.float32)
    return largest_products(in_blocks(items), asked, count, l2=metric.geometry == "l2", exclude=exclude)

"""Which new rows come before the last of an answer that is known: what an old answer must be held against, exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .latents import Float32, Float64, LatentArrays, Rows
from .metric import Metric

_PAIR_BLOCK = 1 << 22  # float64 values of a temporary array of pairs
_HALVINGS = 26  # of the values among which a query's bound lies: float32 has no more digits


@dataclass(frozen=True, slots=True)
class Entering:
    """Pairs of a query and a row, by query: both int64 [p]; scores: exact, float64 [p]."""

    queries: Rows
    rows: Rows
    scores: Float64


def entering(metric: Metric, features: Float32, queries: LatentArrays, floors: Float64) -> Entering:
    """Return every pair of a query [q] and a row of features [m, f] whose exact score is at least the query's floor.

    floors: float64 [q], -inf where every row counts. One float32 product of all with all; the metric's own bound says
    which of its values can be of such a pair, and only those are scored. Held are a few times q x m values.
    """
    asked = metric.query_features(queries)
    near = _values(metric, features, asked)
    if metric.geometry != "inner_product":
        np.negative(near, out=near)
    # Of one axis: NumPy finds what is true in two a dozen times slower.
    near_enough = np.flatnonzero(near > _bounds(metric, near, queries, asked, floors)[:, None])
    pairs, rows = np.divmod(near_enough, len(features))
    items, scores = metric.recover(features), np.empty(len(pairs))
    step = max(1, _PAIR_BLOCK // max(1, features.shape[1]))
    for start in range(0, len(pairs), step):
        block = np.s_[start : start + step]
        scores[block] = metric.pair_scores(queries.take(pairs[block]), items.take(rows[block]))
    kept = scores >= floors[pairs]
    return Entering(pairs[kept], rows[kept], scores[kept])


def _values(metric: Metric, features: Float32, asked: Float32) -> Float32:
    """Return what FAISS would give of each pair, float32 [q, m]."""
    values: Float32 = asked @ features.T
    if metric.geometry == "l2":
        values *= np.float32(-2.0)
        values += np.square(asked).sum(axis=1)[:, None]
        values += np.square(features).sum(axis=1)[None]
    return values


def _bounds(metric: Metric, near: Float32, queries: LatentArrays, asked: Float32, floors: Float64) -> Float32:
    """Return for each query [q] what `near` [q, m] (larger is nearer) exceeds where a pair may reach its floor."""
    sign = 1.0 if metric.geometry == "inner_product" else -1.0

    def reaches(rows: Rows, bounds: Float64) -> np.ndarray:
        return metric.ceiling(sign * bounds, queries.take(rows), asked[rows]) >= floors[rows]

    found = np.full(len(near), np.inf, np.float32)
    if not near.size:
        return found
    every = np.arange(len(near))
    found[np.isneginf(floors)] = -np.inf
    highest = near.max(axis=1).astype(np.float64)
    open_rows = every[reaches(every, highest) & ~np.isneginf(floors)]
    low, high = near.min(axis=1)[open_rows].astype(np.float64), highest[open_rows]
    low -= 1e-3 * (1.0 + np.abs(low))  # below every value: what this reaches, all do
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        reached = reaches(open_rows, middle)
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    # Rounded down, so that float32 leaves out none.
    found[open_rows] = np.nextafter(low.astype(np.float32), np.float32(-np.inf))
    return found

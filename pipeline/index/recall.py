"""The recall of an index: exact truth for sampled queries, the share that is found, and how sure that share is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from .exact import nearest_exact
from .filters import RowFilter
from .latents import Float64, LatentArrays, Rows
from .metric import Metric
from .search import SearchIndex

_UNSEEN_LOSS = 0.2  # of a query that was not drawn; less of it, and the end of the interval is too high too often
_ONE_SIDED_95 = 1.6448536269514722  # the normal quantile of 0.95


@dataclass(frozen=True, slots=True)
class Truth:
    """Queries, and the score of each one's k-th nearest row of the index but itself.

    rows: int64 [q], -1 for a query whose row is left out; queries: their latents [q]; kth: float64 [q] (fewer
    neighbours than k: of the last one). left_out: the rows that no answer may have, ascending; kept: all others, None
    where that is every row.
    """

    rows: Rows
    queries: LatentArrays
    kth: Float64
    neighbours: int
    left_out: Rows = field(default_factory=lambda: np.empty(0, np.int64))
    kept: RowFilter | None = None

    def thinned(self, most: int) -> Truth:
        """Return the truth of about so many of the queries, all where there are fewer."""
        some = np.s_[:: max(1, len(self.rows) // most)]
        return replace(self, rows=self.rows[some], queries=self.queries.take(some), kth=self.kth[some])


def truth_of(latents: LatentArrays, metric: Metric, rows: Rows, k: int, *, block: int | None = None) -> Truth:
    """Return the exact k-th scores of these rows' neighbours, each row itself left out.

    block: rows whose features are held at a time; None: all.
    """
    queries = latents.take(rows)
    if block is None:
        _, scores = nearest_exact(metric, latents, queries, k, exclude=rows)
    else:
        _, scores = nearest_in_blocks(metric, latents, queries, k, exclude=rows, block=block)
    return Truth(rows, queries, *_kth(scores))


def truth_without(
    latents: LatentArrays,
    metric: Metric,
    rows: Rows,
    left_out: Rows,
    k: int,
    *,
    block: int | None = None,
    near: tuple[Rows, Float64] | None = None,
) -> Truth:
    """Return the exact k-th scores of these rows' neighbours among all that are not left out; block: as above.

    near: what is known, the nearest of all rows [q, w] and their scores. Only rows of which fewer than k of these stay
    are looked for once more.
    """
    kept = np.ones(len(latents), np.bool_)
    kept[left_out] = False
    queries = latents.take(rows)
    neighbours = min(k, int(kept.sum()))
    kth, unknown = np.empty(len(rows)), np.arange(len(rows))
    if near is not None and neighbours:
        stays = np.cumsum(kept[near[0]], axis=1)
        enough = stays[:, -1] >= neighbours
        kth[enough] = near[1][enough, (stays[enough] >= neighbours).argmax(axis=1)]
        unknown = np.flatnonzero(~enough)
    if len(unknown) and neighbours:
        asked, size = queries.take(unknown), block or max(1, len(latents))
        kth[unknown] = nearest_in_blocks(metric, latents, asked, k, kept=kept, block=size)[1][:, -1]
    if not neighbours:
        kth = np.empty(0)
    return Truth(np.full(len(rows), -1), queries, kth, neighbours, left_out, RowFilter(kept))


def _kth(scores: Float64) -> tuple[Float64, int]:
    neighbours = scores.shape[1]
    return (scores[:, -1] if neighbours else np.empty(0)), neighbours


def nearest_in_blocks(
    metric: Metric,
    latents: LatentArrays,
    queries: LatentArrays,
    k: int,
    *,
    block: int,
    exclude: Rows | None = None,
    kept: NDArray[np.bool_] | None = None,
) -> tuple[Rows, Float64]:
    """Return the k nearest rows and their scores [q, k] as `nearest_exact`, a block of rows at a time.

    exclude: a row for each query that it does not find; kept: the rows that may be found, None: all.
    """
    best, near = np.empty((len(queries), 0)), np.empty((len(queries), 0), np.int64)
    there, own = len(latents) if kept is None else int(kept.sum()), int(exclude is not None)
    for start in range(0, len(latents), block):
        stop = min(start + block, len(latents))
        here = np.arange(start, stop) if kept is None else start + np.flatnonzero(kept[start:stop])
        if not len(here):
            continue
        held = latents.take(np.s_[start:stop] if len(here) == stop - start else here)
        ids, scores = nearest_exact(metric, held, queries, k + own)
        ids = here[ids]
        if exclude is not None:
            scores = np.where(ids == exclude[:, None], -np.inf, scores)
        best, near = np.concatenate([best, scores], axis=1), np.concatenate([near, ids], axis=1)
        order = np.lexsort((near, -best), axis=-1)[:, : k + own]
        best, near = np.take_along_axis(best, order, axis=1), np.take_along_axis(near, order, axis=1)
    # One column of a short catalogue is the query's own -inf.
    return near[:, : min(k, there - own)], best[:, : min(k, there - own)]


def recalls(index: SearchIndex, truth: Truth) -> Float64:
    """Return for each query the share of its k nearest rows that the index finds, float64 [q] in 0..1.

    A row counts when its exact score reaches that of the true k-th neighbour, so rows at the same distance (copies of
    one photo) count alike whichever the index returns. The query itself is left out, where it is a row, as is what the
    truth leaves out. 1 where there are no neighbours.
    """
    if truth.neighbours == 0 or len(truth.rows) == 0:
        return np.ones(len(truth.rows))
    hits = index.search(truth.queries, truth.neighbours + int(truth.rows[0] >= 0), allowed=truth.kept)
    others = hits.ids != truth.rows[:, None]
    # The index scores its own float32 features, the truth the latents: they differ by that rounding only.
    reached = hits.scores >= (truth.kth - 1e-6 * np.maximum(1.0, np.abs(truth.kth)))[:, None]
    good = np.minimum(np.sum(others & reached & (hits.ids >= 0), axis=1), truth.neighbours)
    return np.asarray(good / truth.neighbours, np.float64)


def recall_at_k(index: SearchIndex, truth: Truth) -> float:
    """Return the mean of `recalls`; 1 where there are no queries."""
    return mean_of(recalls(index, truth))


def mean_of(found: Float64) -> float:
    """Return the mean of recalls [q]; 1 where there are none."""
    return float(found.sum() / len(found)) if len(found) else 1.0


def recall_at_least(index: SearchIndex, found: Float64, truth: Truth) -> float:
    """Return the recall that an index has at least, given its recalls [q]: 1 where every search scores every row."""
    exact = truth.neighbours == 0 or index.planner.all_exact(truth.neighbours + 1)
    return 1.0 if exact else recall_low(found, truth.neighbours)


def recall_low(found: Float64, k: int) -> float:
    """Return the lower end of the one-sided 95 % interval of the mean of recalls [q] at k.

    Wilson's, over as many independent draws as the queries are worth: a query's k neighbours are found or lost
    together, so they count as k only as far as the recalls vary less than whole queries lost would (the design effect
    of Kish). Few queries mostly hold none of those that lose much, and so vary less than all would: one more that lost
    a fifth is counted in. With no query lost in part, all q * k count. 1 without queries.
    """
    if len(found) == 0:
        return 1.0
    mean, queries = float(found.mean()), len(found)
    lost = queries > 1 and found.min() < found.max()
    variance = float(np.append(found, 1.0 - _UNSEEN_LOSS).var(ddof=1)) if lost else 0.0
    worth = queries * min(float(k), max(1.0, mean * (1.0 - mean) / variance)) if variance > 0 else queries * float(k)
    square = _ONE_SIDED_95**2 / worth
    spread = np.sqrt(square * (mean * (1.0 - mean) + square / 4.0))
    return float((mean + square / 2.0 - spread) / (1.0 + square))

"""The recall of an index: exact truth for sampled queries, the share that is found, and how sure that share is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .config import IndexConfig
from .exact import nearest_exact
from .latents import Float64, LatentArrays, Rows
from .metric import Metric
from .search import SearchIndex

# Work of the brute-force truth, in products: a catalogue of millions gets fewer queries rather than a slow night.
_TRUTH_PRODUCTS = 64_000_000_000
_ONE_SIDED_95 = 1.6448536269514722  # the normal quantile of 0.95


@dataclass(frozen=True, slots=True)
class Truth:
    """Queries, and the score of each one's k-th nearest row of the index but itself.

    rows: int64 [q], -1 for a query that is no row of it; queries: their latents [q]; kth: float64 [q] (fewer neighbours
    than k: of the last one).
    """

    rows: Rows
    queries: LatentArrays
    kth: Float64
    neighbours: int

    def thinned(self, most: int) -> Truth:
        """Return it for at most so many of its queries, evenly taken."""
        step = max(1, -(-len(self.rows) // most))
        return Truth(self.rows[::step], self.queries.take(np.s_[::step]), self.kth[::step], self.neighbours)


def truth_of(latents: LatentArrays, metric: Metric, rows: Rows, k: int, *, block: int | None = None) -> Truth:
    """Return the exact k-th scores of these rows' neighbours, each row itself left out.

    block: rows whose features are held at a time; None: all.
    """
    queries = latents.take(rows)
    if block is None:
        _, scores = nearest_exact(metric, latents, queries, k, exclude=rows)
    else:
        scores = _nearest_in_blocks(metric, latents, queries, k, rows, block)
    neighbours = scores.shape[1]
    kth = scores[:, -1] if neighbours else np.empty(0)
    return Truth(rows=rows, queries=queries, kth=kth, neighbours=neighbours)


def _nearest_in_blocks(
    metric: Metric, latents: LatentArrays, queries: LatentArrays, k: int, exclude: Rows, block: int
) -> Float64:
    """Return the scores [q, k] of the nearest rows, each query's own row left out; a block of rows at a time."""
    best = np.empty((len(queries), 0))
    for start in range(0, len(latents), block):
        ids, scores = nearest_exact(metric, latents.take(np.s_[start : start + block]), queries, k + 1)
        scores = np.where(ids + start == exclude[:, None], -np.inf, scores)
        best = -np.sort(-np.concatenate([best, scores], axis=1), axis=1)[:, : k + 1]
    # One column of a short catalogue is the query's own -inf.
    return best[:, : min(k, len(latents) - 1)]


def unseen(truth: Truth, kept: LatentArrays, metric: Metric, k: int) -> Truth:
    """Return the truth of the same queries over `kept`, rows among which they are not."""
    _, scores = nearest_exact(metric, kept, truth.queries, k)
    neighbours = scores.shape[1]
    kth = scores[:, -1] if neighbours else np.empty(0)
    return Truth(rows=np.full(len(truth.rows), -1), queries=truth.queries, kth=kth, neighbours=neighbours)


def sampled(
    latents: LatentArrays, metric: Metric, config: IndexConfig, *, block: int | None = None
) -> tuple[Truth, Truth]:
    """Return two disjoint samples of queries: one to tune by (none for `flat`), one to measure by; block: as above."""
    affordable = _TRUTH_PRODUCTS // max(1, 2 * latents.mean.size)
    count = min(config.queries, max(100, affordable), (len(latents) + 1) // 2)
    drawn = np.random.default_rng(config.seed).permutation(len(latents))[: 2 * count]
    tuning = np.sort(drawn[: len(drawn) // 2]) if config.kind != "flat" else drawn[:0]
    measuring = np.sort(drawn[len(drawn) // 2 :])
    drawn_pair = (truth_of(latents, metric, rows, config.k, block=block) for rows in (tuning, measuring))
    return next(drawn_pair), next(drawn_pair)


def recalls(index: SearchIndex, truth: Truth) -> Float64:
    """Return for each query the share of its k nearest rows that the index finds, float64 [q] in 0..1.

    A row counts when its exact score reaches that of the true k-th neighbour, so rows at the same distance (copies of
    one photo) count alike whichever the index returns. The query itself is left out, where it is a row. 1 where there
    are no neighbours.
    """
    if truth.neighbours == 0 or len(truth.rows) == 0:
        return np.ones(len(truth.rows))
    hits = index.search(truth.queries, truth.neighbours + int(truth.rows[0] >= 0))
    others = hits.ids != truth.rows[:, None]
    # The index scores its own float32 features, the truth the latents: they differ by that rounding only.
    reached = hits.scores >= (truth.kth - 1e-6 * np.maximum(1.0, np.abs(truth.kth)))[:, None]
    good = np.minimum(np.sum(others & reached & (hits.ids >= 0), axis=1), truth.neighbours)
    return np.asarray(good / truth.neighbours, np.float64)


def recall_at_k(index: SearchIndex, truth: Truth) -> float:
    """Return the mean of `recalls`; 1 where there are no queries."""
    found = recalls(index, truth)
    return float(found.sum() / len(found)) if len(found) else 1.0


def recall_at_least(index: SearchIndex, found: Float64, truth: Truth) -> float:
    """Return the recall that an index has at least, given its recalls [q]: 1 where every search scores every row."""
    exact = truth.neighbours == 0 or index.planner.all_exact(truth.neighbours + 1)
    return 1.0 if exact else recall_low(found, truth.neighbours)


def recall_low(found: Float64, k: int) -> float:
    """Return the lower end of the one-sided 95 % interval of the mean of recalls [q] at k.

    Wilson's, over as many independent draws as the queries are worth: a query's k neighbours are found or lost
    together, so they count as k only as far as the recalls vary less than whole queries lost would (the design effect
    of Kish). With no query lost in part, all q * k count. 1 without queries.
    """
    if len(found) == 0:
        return 1.0
    mean, queries = float(found.mean()), len(found)
    variance = float(found.var(ddof=1)) if queries > 1 else 0.0
    worth = queries * min(float(k), max(1.0, mean * (1.0 - mean) / variance)) if variance > 0 else queries * float(k)
    square = _ONE_SIDED_95**2 / worth
    spread = np.sqrt(square * (mean * (1.0 - mean) + square / 4.0))
    return float((mean + square / 2.0 - spread) / (1.0 + square))

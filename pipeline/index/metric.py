"""What a metric is: the contract that every row of the table `metrics.METRICS` keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .latents import Float32, Float64, LatentArrays

_PAIR_BLOCK = 1 << 22  # float64 values of a temporary array of pairs


@dataclass(frozen=True, slots=True)
class Apart:
    """How the features of a metric of Gaussians are made of its latents, each by itself, for codes of single latents.

    count: terms a latent, t; feature a * d + j is term a of latent j. folded: whether of the last term there is only
    the sum over latents, feature (t - 1) d. terms: latents [n, d] -> float32 [n, d, t]. recover: features [n, f] ->
    the mean and log variance that they are of, [n, d], also where a mask keeps only some latents in them.
    """

    count: int
    folded: bool
    terms: Callable[[LatentArrays], Float32]
    recover: Callable[[Float32], LatentArrays]

    def dim(self, width: int) -> int:
        """Return d of f features."""
        return (width - 1) // (self.count - 1) if self.folded else width // self.count


@dataclass(frozen=True, slots=True)
class Metric:
    """One way to compare photos.

    name: what a manifest calls it; see `metrics.metric_named`. geometry: what FAISS computes between features (`l2` is
    squared). needs: the latents it reads. symmetric: whether the score of (a, b) is that of (b, a). item_features,
    query_features: latents [n, ...] -> float32 [n, f]. recover: item features float32 [..., f] -> latents that
    `pair_scores` accepts, so that an index which stores its features can score exactly without the latents parts.
    pair_scores: exact float64 scores of queries [..., d] against items [..., d], the leading axes broadcast. score:
    FAISS values float [q, k] and their queries [q] -> float64 scores. rounding: FAISS values [q], their queries [q] and
    query features [q, f] -> how far float32 can have moved each value. barycentre: latents [n] and weights
    float64 [n] -> the one query [1] nearest to all of them. cancels: whether large terms of FAISS's sum cancel, so that
    a search must look past its k rows until none behind them can be nearer. width: f, where the metric was fitted to
    the codes of a catalogue, and means of any width do not matter to it; None where f follows from d. apart: where
    features are inner products of terms of single latents, how they lie.
    """

    name: str
    geometry: Literal["inner_product", "l2"]
    needs: tuple[str, ...]
    symmetric: bool
    item_features: Callable[[LatentArrays], Float32]
    query_features: Callable[[LatentArrays], Float32]
    recover: Callable[[Float32], LatentArrays]
    pair_scores: Callable[[LatentArrays, LatentArrays], Float64]
    score: Callable[[Float64, LatentArrays], Float64]
    rounding: Callable[[Float64, LatentArrays, Float32], Float64]
    barycentre: Callable[[LatentArrays, Float64], LatentArrays]
    cancels: bool = False
    width: int | None = None
    apart: Apart | None = None

    def exact(self, queries: LatentArrays, items: LatentArrays) -> Float64:
        """Return the exact score of every query against every item, float64 [q, n], without FAISS."""
        scores = np.empty((len(queries), len(items)), np.float64)
        across = queries.take(np.s_[:, None])
        step = max(1, _PAIR_BLOCK // max(1, len(queries) * (self.width or items.mean.shape[1])))
        for start in range(0, len(items), step):
            block = np.s_[start : start + step]
            scores[:, block] = self.pair_scores(across, items.take(block).take(None))
        return scores

    def ceiling(self, values: Float64, queries: LatentArrays, features: Float32) -> Float64:
        """Return the highest exact score [q] of a row that FAISS ranked at or behind `values` [q]."""
        slack = self.rounding(values, queries, features)
        nearer = values + slack if self.geometry == "inner_product" else values - slack
        scores: Float64 = self.score(nearer[:, None], queries)
        return scores[:, 0]


def float32_error(features: Float32) -> float:
    """Return the relative error bound of a float32 sum over f products, (f + 8) units in the last place."""
    return float((features.shape[1] + 8) * 2.0**-24)

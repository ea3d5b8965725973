"""The metrics: how two photos are compared, and the FAISS geometry that finds the nearest by it.

A metric is item features and query features whose inner product or squared L2 distance in FAISS puts rows in the
metric's order, a map from FAISS's values to scores, and the exact score in float64. Larger scores are nearer, always:
the cosine itself, otherwise minus the metric's value (the L2 distance is not squared).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .latents import Float32, Float64, LatentArrays

_BLOCK = 1 << 16  # rows converted to float64 at a time
_PAIR_BLOCK = 1 << 22  # float64 values of a temporary array of pairs


@dataclass(frozen=True, slots=True)
class Metric:
    """One way to compare photos.

    geometry: what FAISS computes between features (`l2` is squared). needs: the latents it reads. symmetric: whether
    the score of (a, b) is that of (b, a). item_features, query_features: latents [n, ...] -> float32 [n, f]. recover:
    item features float32 [..., f] -> latents that `pair_scores` accepts, so that an index which stores its features
    can score exactly without the latents parts. pair_scores: exact float64 scores of queries [..., d] against items
    [..., d], the leading axes broadcast. score: FAISS values float [q, k] and their queries [q] -> float64 scores.
    rounding: FAISS values [q] and query features [q, f] -> how far float32 can have moved each value. barycentre:
    latents [n] and weights float64 [n] -> the one query [1] nearest to all of them.
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
    rounding: Callable[[Float64, Float32], Float64]
    barycentre: Callable[[LatentArrays, Float64], LatentArrays]

    def exact(self, queries: LatentArrays, items: LatentArrays) -> Float64:
        """Return the exact score of every query against every item, float64 [q, n], without FAISS."""
        scores = np.empty((len(queries), len(items)), np.float64)
        across = queries.take(np.s_[:, None])
        step = max(1, _PAIR_BLOCK // max(1, len(queries) * items.mean.shape[1]))
        for start in range(0, len(items), step):
            block = np.s_[start : start + step]
            scores[:, block] = self.pair_scores(across, items.take(block).take(None))
        return scores

    def ceiling(self, values: Float64, queries: LatentArrays, features: Float32) -> Float64:
        """Return the highest exact score [q] of a row that FAISS ranked at or behind `values` [q]."""
        slack = self.rounding(values, features)
        nearer = values + slack if self.geometry == "inner_product" else values - slack
        scores: Float64 = self.score(nearer[:, None], queries)
        return scores[:, 0]


def _unit(latents: LatentArrays) -> Float32:
    """Return the means at length 1, float32 [n, d]; a zero vector stays zero (its cosine with anything is 0)."""
    mean = latents.mean
    features = np.empty(mean.shape, np.float32)
    for start in range(0, len(mean), _BLOCK):
        block = np.s_[start : start + _BLOCK]
        features[block] = _at_length_one(mean[block].astype(np.float64))
    return features


def _at_length_one(vectors: Float64) -> Float64:
    lengths = np.sqrt(np.sum(vectors * vectors, axis=-1, keepdims=True))
    # Not x / max(length, tiny): a very short vector still has a direction.
    unit: Float64 = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return unit


def _raw(latents: LatentArrays) -> Float32:
    return np.ascontiguousarray(latents.mean, np.float32)


def _as_mean(features: Float32) -> LatentArrays:
    return LatentArrays(mean=features)


def _cosine_pairs(queries: LatentArrays, items: LatentArrays) -> Float64:
    # Sums of products, not a matrix product: equal vectors must have equal scores to the bit, whatever the shapes.
    left, right = (_at_length_one(side.mean.astype(np.float64)) for side in (queries, items))
    cosines: Float64 = np.clip(np.sum(left * right, axis=-1), -1.0, 1.0)
    return cosines


def _l2_pairs(queries: LatentArrays, items: LatentArrays) -> Float64:
    apart = queries.mean.astype(np.float64) - items.mean.astype(np.float64)
    distances: Float64 = np.sqrt(np.sum(apart * apart, axis=-1))
    return 0.0 - distances  # 0.0 -: no negative zero


def _cosine_score(values: Float64, queries: LatentArrays) -> Float64:
    return np.clip(values.astype(np.float64), -1.0, 1.0)


def _l2_score(values: Float64, queries: LatentArrays) -> Float64:
    distances: Float64 = np.sqrt(np.maximum(values.astype(np.float64), 0.0))
    return 0.0 - distances


def _float32_error(features: Float32) -> float:
    """Return the relative error bound of a float32 sum over f products, (f + 8) units in the last place."""
    return float((features.shape[1] + 8) * 2.0**-24)


def _cosine_rounding(values: Float64, features: Float32) -> Float64:
    return np.full(len(values), 2.0 * _float32_error(features))


def _l2_rounding(values: Float64, features: Float32) -> Float64:
    # FAISS may expand |q - x|^2 into |q|^2 + |x|^2 - 2 q.x, whose terms round; |x| is at most |q| + distance.
    lengths = np.sqrt(np.sum(np.square(features, dtype=np.float64), axis=1))
    distances = np.sqrt(np.maximum(values, 0.0))
    bound: Float64 = _float32_error(features) * (lengths**2 + (lengths + distances) ** 2)
    return bound


def _mean_of(vectors: Float64, weights: Float64) -> LatentArrays:
    centre = np.sum(vectors * (weights / weights.sum())[:, None], axis=0, keepdims=True)
    return LatentArrays(mean=centre.astype(np.float32))


def _l2_barycentre(latents: LatentArrays, weights: Float64) -> LatentArrays:
    """The mean minimises the weighted sum of squared L2 distances."""
    return _mean_of(latents.mean.astype(np.float64), weights)


def _cosine_barycentre(latents: LatentArrays, weights: Float64) -> LatentArrays:
    """The mean of the unit vectors points where the weighted sum of cosines is largest."""
    return _mean_of(_at_length_one(latents.mean.astype(np.float64)), weights)


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            name="l2",
            geometry="l2",
            needs=("mean",),
            symmetric=True,
            item_features=_raw,
            query_features=_raw,
            recover=_as_mean,
            pair_scores=_l2_pairs,
            score=_l2_score,
            rounding=_l2_rounding,
            barycentre=_l2_barycentre,
        ),
        Metric(
            name="cosine",
            geometry="inner_product",
            needs=("mean",),
            symmetric=True,
            item_features=_unit,
            query_features=_unit,
            recover=_as_mean,
            pair_scores=_cosine_pairs,
            score=_cosine_score,
            rounding=_cosine_rounding,
            barycentre=_cosine_barycentre,
        ),
    )
}

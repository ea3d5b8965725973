"""Metrics of means: the L2 distance and the cosine."""

from __future__ import annotations

import numpy as np

from .latents import Float32, Float64, LatentArrays
from .metric import Metric, float32_error

_BLOCK = 1 << 12  # rows converted to float64 at a time: few enough to stay in the processor's cache


def _unit(latents: LatentArrays) -> Float32:
    """Return the means at length 1, float32 [n, d]; a zero vector stays zero (its cosine with anything is 0)."""
    mean = latents.mean
    features = np.empty(mean.shape, np.float32)
    for start in range(0, len(mean), _BLOCK):
        block = np.s_[start : start + _BLOCK]
        features[block] = at_length_one(mean[block].astype(np.float64))
    return features


def at_length_one(vectors: Float64) -> Float64:
    """Return vectors float64 [..., d] at length 1; a zero vector stays zero."""
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
    left, right = (at_length_one(side.mean.astype(np.float64)) for side in (queries, items))
    cosines: Float64 = np.clip(np.sum(left * right, axis=-1), -1.0, 1.0)
    return cosines


def _l2_pairs(queries: LatentArrays, items: LatentArrays) -> Float64:
    apart = queries.mean.astype(np.float64) - items.mean.astype(np.float64)
    distances: Float64 = np.sqrt(np.sum(apart * apart, axis=-1))
    return 0.0 - distances  # 0.0 -: no negative zero


def _cosine_score(values: Float64, queries: LatentArrays) -> Float64:
    return np.clip(values.astype(np.float64), -1.0, 1.0)


def l2_score(values: Float64, queries: LatentArrays) -> Float64:
    """Return minus the distance, from squared distances float [q, k]."""
    distances: Float64 = np.sqrt(np.maximum(values.astype(np.float64), 0.0))
    return 0.0 - distances


def _cosine_rounding(values: Float64, queries: LatentArrays, features: Float32) -> Float64:
    return np.full(len(values), 2.0 * float32_error(features))


def l2_rounding(values: Float64, queries: LatentArrays, features: Float32) -> Float64:
    """Return how far float32 moves squared distances [q] between features."""
    # FAISS may expand |q - x|^2 into |q|^2 + |x|^2 - 2 q.x, whose terms round; |x| is at most |q| + distance.
    lengths = np.sqrt(np.sum(np.square(features, dtype=np.float64), axis=1))
    distances = np.sqrt(np.maximum(values, 0.0))
    bound: Float64 = float32_error(features) * (lengths**2 + (lengths + distances) ** 2)
    return bound


def _mean_of(vectors: Float64, weights: Float64) -> LatentArrays:
    centre = np.sum(vectors * (weights / weights.sum())[:, None], axis=0, keepdims=True)
    return LatentArrays(mean=centre.astype(np.float32))


def _l2_barycentre(latents: LatentArrays, weights: Float64) -> LatentArrays:
    """The mean minimises the weighted sum of squared L2 distances."""
    return _mean_of(latents.mean.astype(np.float64), weights)


def _cosine_barycentre(latents: LatentArrays, weights: Float64) -> LatentArrays:
    """The mean of the unit vectors points where the weighted sum of cosines is largest."""
    return _mean_of(at_length_one(latents.mean.astype(np.float64)), weights)


L2 = Metric(
    name="l2",
    geometry="l2",
    needs=("mean",),
    symmetric=True,
    item_features=_raw,
    query_features=_raw,
    recover=_as_mean,
    pair_scores=_l2_pairs,
    score=l2_score,
    rounding=l2_rounding,
    barycentre=_l2_barycentre,
)
COSINE = Metric(
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
)

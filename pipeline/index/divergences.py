"""Divergences between diagonal Gaussians as exact inner products.

Each is a sum over latents of an offset of the query alone less products of a term of the query and one of the item, so
a maximum inner product search ranks exactly; for KL as in Zamani and Bendersky 2023 (arXiv 2304.14522). Terms are never
standardised, centred or rounded below float32: that would be another metric.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .gaussians import (
    LOG_VAR_CEILING,
    LOG_VAR_FLOOR,
    Gaussian,
    below_median,
    gaussian,
    jeffreys_centre,
    matched_moments,
    w2_centre,
    weighted_by_precision,
)
from .latents import Float32, Float64, LatentArrays
from .means import l2_rounding, l2_score
from .metric import Apart, Metric, float32_error

_BLOCK = 1 << 14  # rows converted to float64 at a time
_VAR_FLOOR, _VAR_CEILING = math.exp(LOG_VAR_FLOOR), math.exp(LOG_VAR_CEILING)
_NEEDS = ("mean", "log_var")

Terms = tuple[Float64, ...]
Kept = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Form:
    """A divergence as offset(query) - sum of products, each latent by itself; arrays float64 [..., d].

    apart: the divergence's share of each latent, from its definition. item: its terms. query: those that multiply them,
    but for the last, which is multiplied by 1. recover: the terms float32 -> latents; folded: whether it does without
    the last, which may then be one number, summed over the latents. rooted: the value is the root of the sum. size: of
    queries [n, d], which latents count [n, d] and the value [n], a bound of the sum of absolute products over items
    that are no further than this value. symmetric, centre: as in `Metric`.
    """

    apart: Callable[[Gaussian, Gaussian], Float64]
    item: Callable[[Gaussian], Terms]
    query: Callable[[Gaussian], Terms]
    offset: Callable[[Gaussian], Float64]
    recover: Callable[[tuple[Float32, ...]], LatentArrays]
    size: Callable[[Gaussian, Kept, Float64], Float64]
    centre: Callable[[LatentArrays, Float64], LatentArrays]
    symmetric: bool = True
    folded: bool = False
    rooted: bool = False


def _all(given: Gaussian) -> Kept:
    return np.ones(given.mean.shape, np.bool_)


def _narrow(given: Gaussian) -> Kept:
    return below_median(given.log_var)


def _in_blocks(latents: LatentArrays, rows_of: Callable[[Gaussian], Float64]) -> Float32:
    """Return the features of latents [n], computed in float64 and a block of rows at a time."""
    blocks = []
    for start in range(0, max(1, len(latents)), _BLOCK):
        with np.errstate(over="ignore"):
            blocks.append(rows_of(gaussian(latents.take(np.s_[start : start + _BLOCK]))).astype(np.float32))
    return np.concatenate(blocks)


def _as_metric(name: str, form: _Form, kept_by: Callable[[Gaussian], Kept], *, folded: bool) -> Metric:
    """Return a form as a metric over the latents that each query keeps; folded: its last term is one number."""

    def item_rows(given: Gaussian) -> Float64:
        *first, last = form.item(given)
        return np.concatenate([*first, np.sum(last, axis=-1, keepdims=True) if folded else last], axis=-1)

    def query_rows(given: Gaussian) -> Float64:
        kept = kept_by(given)
        terms = [np.where(kept, term, 0.0) for term in form.query(given)]
        last = np.ones((len(kept), 1)) if folded else kept.astype(np.float64)
        return np.concatenate([*terms, last], axis=-1)

    def recover(features: Float32) -> LatentArrays:
        terms = len(form.item(Gaussian(np.zeros((0, 0)), np.zeros((0, 0)))))
        dim = (features.shape[-1] - 1) // (terms - 1) if folded else features.shape[-1] // terms
        return form.recover(tuple(features[..., at * dim : (at + 1) * dim] for at in range(terms)))

    def terms(latents: LatentArrays) -> Float32:
        return np.stack(form.item(gaussian(latents)), axis=-1).astype(np.float32)

    def value(total: Float64) -> Float64:
        total = np.maximum(total, 0.0)
        return 0.0 - (np.sqrt(total) if form.rooted else total)  # 0.0 -: no negative zero

    def pair_scores(queries: LatentArrays, items: LatentArrays) -> Float64:
        asked, given = gaussian(queries), gaussian(items)
        parts = form.apart(asked, given)
        return value(np.sum(np.where(kept_by(asked), parts, 0.0), axis=-1))

    def score(values: Float64, queries: LatentArrays) -> Float64:
        asked = gaussian(queries)
        offset = np.sum(np.where(kept_by(asked), form.offset(asked), 0.0), axis=-1, keepdims=True)
        return value(offset - values.astype(np.float64))

    def rounding(values: Float64, queries: LatentArrays, features: Float32) -> Float64:
        # Only a row that is nearer than its FAISS value says can lift the ceiling, so none wider apart needs a bound.
        asked, reached = gaussian(queries), 0.0 - score(values[:, None], queries)[:, 0]
        return float32_error(features) * form.size(asked, kept_by(asked), reached)

    return Metric(
        name=name,
        geometry="inner_product",
        needs=_NEEDS,
        symmetric=form.symmetric and kept_by is _all,
        item_features=lambda latents: _in_blocks(latents, item_rows),
        query_features=lambda latents: _in_blocks(latents, query_rows),
        recover=recover,
        pair_scores=pair_scores,
        score=score,
        rounding=rounding,
        barycentre=form.centre,
        cancels=True,
        apart=Apart(len(form.query(Gaussian(np.zeros((0, 0)), np.zeros((0, 0))))) + 1, folded, terms, recover),
    )


def _from_precision(terms: tuple[Float32, ...]) -> LatentArrays:
    """Latents of precisions and precision-weighted means."""
    precision = terms[0].astype(np.float64)
    mean = np.divide(terms[1], precision, out=np.zeros_like(precision), where=precision > 0)
    return LatentArrays(mean=mean.astype(np.float32), log_var=_log_var(precision, -1.0))


def _log_var(positive: Float64, power: float) -> Float32:
    """Return power * log of what is a power of a variance; what a damaged file holds instead stays finite."""
    return np.asarray(power * np.log(np.maximum(positive, 1e-30)), np.float32)


def _kl(wide: Gaussian, narrow: Gaussian) -> Float64:
    """Return KL(wide, narrow) of each latent, in nats: expm1 keeps the digits of nearly equal ones."""
    ratio = wide.log_var - narrow.log_var
    moved = (wide.mean - narrow.mean) ** 2 * np.exp(-narrow.log_var)
    parts: Float64 = 0.5 * (np.expm1(ratio) - ratio + moved)
    return parts


def _widest(value: Float64) -> Float64:
    """Return a bound [n, 1] of a ratio r of variances whose share of a divergence is at most value [n].

    (r - 1 - log r) / 2 <= value, and log r <= r / 4 - 1 + log 4.
    """
    bound: Float64 = (4.0 / 3.0 * (2.0 * value + math.log(4.0)))[:, None]
    return bound


def _summed(parts: Float64, kept: Kept) -> Float64:
    total: Float64 = np.sum(np.where(kept, parts, 0.0), axis=-1)
    return total


def _precision_size(asked: Gaussian, kept: Kept, value: Float64) -> Float64:
    """(s^2 + m^2) / 2 t^2, |m n| / t^2 and n^2 / 2 t^2 of an item (n, t) with KL((m, s), (n, t)) <= value.

    r = s^2 / t^2 is bounded, and |n| / t <= |m| / t + sqrt(2 KL) in each latent.
    """
    ratio = np.minimum(_widest(value), asked.var / _VAR_FLOOR)
    return _summed(0.5 * ratio + 3.0 * ratio * asked.mean**2 / asked.var, kept) + 3.0 * value


def _moment_size(asked: Gaussian, kept: Kept, value: Float64) -> Float64:
    """(t^2 + n^2) / 2 s^2 and |m n| / s^2 of an item (n, t) with KL((n, t), (m, s)) <= value."""
    ratio = np.minimum(_widest(value), _VAR_CEILING / asked.var)
    return _summed(0.5 * ratio + 2.5 * asked.mean**2 / asked.var, kept) + 3.0 * value


def _log_size(asked: Gaussian, kept: Kept, value: Float64) -> Float64:
    """|log t^2| / 2 of an item within value, either way round."""
    return _summed(0.5 * np.abs(asked.log_var) + 0.5, kept) + value


_KL_FORM = _Form(
    apart=_kl,
    item=lambda x: (1.0 / x.var, x.mean / x.var, -0.5 * (x.mean**2 / x.var + x.log_var)),
    query=lambda q: (-0.5 * (q.var + q.mean**2), q.mean),
    offset=lambda q: -0.5 * (q.log_var + 1.0),
    recover=_from_precision,
    size=lambda q, kept, value: _precision_size(q, kept, value) + _log_size(q, kept, value),
    centre=weighted_by_precision,
    symmetric=False,
    folded=True,
)
# Not folded: the variance cannot be had back from t^2 + n^2, where it may lie below the last digit.
_REVERSE_FORM = _Form(
    apart=lambda q, x: _kl(x, q),
    item=lambda x: (x.var + x.mean**2, x.mean, 0.5 * x.log_var),
    query=lambda q: (-0.5 / q.var, q.mean / q.var),
    offset=lambda q: 0.5 * (q.log_var + q.mean**2 / q.var - 1.0),
    recover=lambda terms: LatentArrays(mean=terms[1], log_var=2.0 * terms[2]),
    size=lambda q, kept, value: _moment_size(q, kept, value) + _log_size(q, kept, value),
    centre=matched_moments,
    symmetric=False,
)
_JEFFREYS_FORM = _Form(
    apart=lambda q, x: _kl(q, x) + _kl(x, q),
    item=lambda x: (1.0 / x.var, x.mean / x.var, x.var + x.mean**2, x.mean, -0.5 * x.mean**2 / x.var),
    query=lambda q: (-0.5 * (q.var + q.mean**2), q.mean, -0.5 / q.var, q.mean / q.var),
    offset=lambda q: 0.5 * q.mean**2 / q.var - 1.0,
    recover=lambda terms: replace(_from_precision(terms), mean=terms[3]),
    size=lambda q, kept, value: _precision_size(q, kept, value) + _moment_size(q, kept, value),
    centre=jeffreys_centre,
    folded=True,
)


def _length_size(squares: Float64, kept: Kept, value: Float64) -> Float64:
    """2 |q| |x| + |x|^2 of an item x whose distance from q is at most value."""
    length = np.sqrt(_summed(squares, kept))
    bound: Float64 = 2.0 * length * (length + value) + (length + value) ** 2
    return bound


_W2_FORM = _Form(
    apart=lambda q, x: (q.mean - x.mean) ** 2 + (q.sigma - x.sigma) ** 2,
    item=lambda x: (x.mean, x.sigma, -(x.mean**2 + x.var)),
    query=lambda q: (2.0 * q.mean, 2.0 * q.sigma),
    offset=lambda q: q.mean**2 + q.var,
    recover=lambda terms: LatentArrays(mean=terms[0], log_var=_log_var(terms[1].astype(np.float64), 2.0)),
    size=lambda q, kept, value: _length_size(q.mean**2 + q.var, kept, value),
    centre=w2_centre,
    rooted=True,
)
# The log variance is multiplied by nothing: an item that asks needs it for its own mask.
_L2_FORM = _Form(
    apart=lambda q, x: (q.mean - x.mean) ** 2 + 0.0 * x.log_var,
    item=lambda x: (x.mean, x.log_var, -(x.mean**2)),
    query=lambda q: (2.0 * q.mean, 0.0 * q.mean),
    offset=lambda q: q.mean**2,
    recover=lambda terms: LatentArrays(mean=terms[0], log_var=terms[1]),
    size=lambda q, kept, value: _length_size(q.mean**2, kept, value),
    centre=w2_centre,
    rooted=True,
)


def _means_and_deviations(latents: LatentArrays) -> Float32:
    return _in_blocks(latents, lambda given: np.concatenate([given.mean, given.sigma], axis=-1))


def _from_deviations(features: Float32) -> LatentArrays:
    dim = features.shape[-1] // 2
    return _W2_FORM.recover((features[..., :dim], features[..., dim:]))


KL = _as_metric("kl", _KL_FORM, _all, folded=True)
REVERSE_KL = _as_metric("reverse_kl", _REVERSE_FORM, _all, folded=False)
JEFFREYS = _as_metric("jeffreys", _JEFFREYS_FORM, _all, folded=True)
W2 = replace(  # the L2 distance of (mean, deviation): no terms that cancel
    _as_metric("w2", _W2_FORM, _all, folded=False),
    geometry="l2",
    item_features=_means_and_deviations,
    query_features=_means_and_deviations,
    recover=_from_deviations,
    score=l2_score,
    rounding=l2_rounding,
    cancels=False,
    apart=None,
)

QUERY_MEDIAN = {
    name: _as_metric(f"{name}/query_median", form, _narrow, folded=False)
    for name, form in (
        ("l2", _L2_FORM),
        ("kl", _KL_FORM),
        ("reverse_kl", _REVERSE_FORM),
        ("jeffreys", _JEFFREYS_FORM),
        ("w2", _W2_FORM),
    )
}

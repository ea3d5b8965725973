"""The metrics: how two photos are compared, and the FAISS geometry that finds the nearest by it.

A metric is item features and query features whose inner product or squared L2 distance in FAISS puts rows in the
metric's order, a map from FAISS's values to scores, and the exact score in float64. Larger scores are nearer, always:
the cosine itself, otherwise minus the metric's value (the L2 and W2 distances not squared, divergences in nats).

A mask leaves out the latents of large variance: `query_median` those whose variance in the query is not below the
median over the query's latents, `catalogue_median` those whose mean variance over the catalogue is not below the median
over all. A masked metric's name says all of it: `kl/query_median`, `kl/catalogue_median:10:b3c0` with the number of
latents and a bit for each in hexadecimal, so that an index and its name are enough to search.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, IntegrityError
from .codes import FITTED, NEEDS, bag_metric, cells_metric
from .divergences import JEFFREYS, KL, QUERY_MEDIAN, REVERSE_KL, W2
from .gaussians import below_median, gaussian
from .latents import Float32, Float64, LatentArrays
from .means import COSINE, L2
from .metric import Metric

_BLOCK = 1 << 16  # rows whose variances are summed at a time
_CELLS = re.compile(r"codes_hamming:([1-9][0-9]*)x([1-9][0-9]*)")
_FIXED = re.compile(r"([a-z0-9_]+)/catalogue_median:([0-9]+):([0-9a-f]*)")

METRICS: Mapping[str, Metric] = {metric.name: metric for metric in (L2, COSINE, KL, REVERSE_KL, JEFFREYS, W2)}
# A cosine over latents that each query chooses has item lengths that depend on the query: no inner product is equal.
MASKED: Mapping[str, tuple[str, ...]] = {
    name: ("none", "query_median", "catalogue_median") if name in QUERY_MEDIAN else ("none", "catalogue_median")
    for name in METRICS
} | dict.fromkeys(FITTED, ("none",))  # codes have no variances to choose by
WITH_CODE = "photos_with_code"  # of an index by `codes`, in its parameters: what its weights follow from
PHOTOS_FITTED = "photos_fitted"  # and of how many photos, where that is not the index's own number


def fitted_metric(name: str, mask: str, latents: LatentArrays) -> Metric:
    """Return a metric under a mask, for the catalogue of these latents [n]; `catalogue_median` needs their log_var.

    Raises ConfigError for a metric or a mask that there is not.
    """
    _check(name, mask)
    if name in FITTED:
        return FITTED[name](latents)
    if mask == "none":
        return METRICS[name]
    if mask == "query_median":
        return QUERY_MEDIAN[name]
    total = np.zeros(latents.mean.shape[1])
    for start in range(0, len(latents), _BLOCK):
        total += gaussian(latents.take(np.s_[start : start + _BLOCK])).var.sum(axis=0)
    return within(METRICS[name], below_median(total))


def metric_named(name: str) -> Metric:
    """Return the metric of a manifest's name. Raises ConfigError for a name that this version does not know.

    That of `codes` has no weights yet; see `metric_of_index`.
    """
    if name in METRICS:
        return METRICS[name]
    if name == "codes":
        return bag_metric(np.zeros(1, np.int64), 0)
    if cells := _CELLS.fullmatch(name):
        return cells_metric(int(cells[1]), int(cells[2]))
    base, _, mask = name.partition("/")
    if mask == "query_median" and base in QUERY_MEDIAN:
        return QUERY_MEDIAN[base]
    fixed = _FIXED.fullmatch(name)
    if fixed and fixed[1] in METRICS and len(fixed[3]) == 2 * -(-int(fixed[2]) // 8):
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(fixed[3]), np.uint8), count=int(fixed[2]))
        return within(METRICS[fixed[1]], bits.astype(np.bool_))
    known = [base if mask == "none" else f"{base}/{mask}" for base, masks in MASKED.items() for mask in masks]
    raise ConfigError(f"unknown metric {name!r}; one of {', '.join(known)}")


def metric_of_index(name: str, parameters: Mapping[str, Any], photos: int) -> Metric:
    """Return the metric of an index of so many photos, by its name and parameters in a manifest.

    Where the parameters say to how many photos it was fitted, that counts.

    Raises ConfigError as `metric_named`, IntegrityError where the weights of `codes` are not among the parameters.
    """
    if name != "codes":
        return metric_named(name)
    try:
        counts = np.array([int(count) for count in str(parameters[WITH_CODE]).split(",")], np.int64)
    except (KeyError, ValueError) as error:
        raise IntegrityError(
            f"an index by 'codes' has no index_parameters.{WITH_CODE} that can be read; roll the channel back"
        ) from error
    return bag_metric(counts, int(parameters.get(PHOTOS_FITTED, photos)))


def needs_of(name: str, mask: str) -> tuple[str, ...]:
    """Return the latents that a metric under a mask compares."""
    if name in FITTED:
        return NEEDS
    return METRICS[name].needs if mask == "none" else ("mean", "log_var")


def within(metric: Metric, kept: NDArray[np.bool_]) -> Metric:
    """Return a metric that sees only the latents kept, bool [d]; what it recovers holds 0 for the others."""

    def cut(latents: LatentArrays) -> LatentArrays:
        log_var = None if latents.log_var is None else latents.log_var[..., kept]
        return LatentArrays(mean=latents.mean[..., kept], log_var=log_var)

    def widened(latents: LatentArrays) -> LatentArrays:
        log_var = None if latents.log_var is None else _spread(latents.log_var, kept)
        return LatentArrays(mean=_spread(latents.mean, kept), log_var=log_var)

    def barycentre(latents: LatentArrays, weights: Float64) -> LatentArrays:
        return widened(metric.barycentre(cut(latents), weights))

    bits = np.packbits(kept).tobytes().hex()
    return replace(
        metric,
        name=f"{metric.name}/catalogue_median:{len(kept)}:{bits}",
        item_features=lambda latents: metric.item_features(cut(latents)),
        query_features=lambda latents: metric.query_features(cut(latents)),
        recover=lambda features: widened(metric.recover(features)),
        pair_scores=lambda queries, items: metric.pair_scores(cut(queries), cut(items)),
        score=lambda values, queries: metric.score(values, cut(queries)),
        rounding=lambda values, queries, features: metric.rounding(values, cut(queries), features),
        barycentre=barycentre,
    )


def _spread(values: Float32, kept: NDArray[np.bool_]) -> Float32:
    whole: NDArray[Any] = np.zeros((*values.shape[:-1], len(kept)), values.dtype)
    if values.shape[-1] == np.count_nonzero(kept):
        whole[..., kept] = values
        return whole
    return values  # of an index that does not fit its name; whoever opens it sees the width


def _check(name: str, mask: str) -> None:
    if name not in MASKED:
        raise ConfigError(f"unknown metric {name!r}; one of {', '.join(MASKED)}")
    if mask not in MASKED[name]:
        raise ConfigError(
            f"index.mask {mask!r} does not go with index.metric {name!r}, which allows {', '.join(MASKED[name])}"
        )

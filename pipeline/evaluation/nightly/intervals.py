"""Intervals of 95 % in closed form, for shares, quantiles and areas under curves."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

NORMAL = 1.959963984540054  # the normal quantile of 0.975


def wilson(hits: float, asked: int) -> tuple[float, float]:
    """Return the interval of a share of which `hits` of `asked` draws were seen (Wilson 1927); asked: at least 1."""
    share, square = hits / asked, NORMAL**2 / asked
    middle = (share + square / 2) / (1 + square)
    half = math.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))  # rounding aside


def quantile_interval(values: Float64, share: float) -> tuple[float, float, float]:
    """Return a quantile of values [n] and its interval by order statistics, which no distribution is assumed for.

    The value is the inverted empirical distribution; the ends are the values at the ranks n p -+ z sqrt(n p (1 - p)),
    rounded outwards and kept inside (Hahn and Meeker 1991, section 5.2).
    """
    ordered, count = np.sort(values), len(values)
    spread = NORMAL * math.sqrt(count * share * (1 - share))
    ranks = (math.ceil(count * share) - 1, math.floor(count * share - spread) - 1, math.ceil(count * share + spread))
    value, low, high = (float(ordered[min(max(rank, 0), count - 1)]) for rank in ranks)
    return value, low, high


def auc_interval(lower: Float64, upper: Float64) -> tuple[float, float, float]:
    """Return how often a score of `upper` [m] is above one of `lower` [n], ties half, and its interval.

    The area under the ROC curve and its variance by DeLong et al. 1988, from the ranks (Sun and Xu 2014).
    """
    m, n = len(upper), len(lower)
    everyone = _midranks(np.concatenate([upper, lower]))
    above = (everyone[:m] - _midranks(upper)) / n
    below = 1.0 - (everyone[m:] - _midranks(lower)) / m
    value = float(above.mean())
    variance = float(above.var(ddof=1) / m + below.var(ddof=1) / n) if min(m, n) > 1 else 1.0
    half = NORMAL * math.sqrt(variance)
    return value, max(0.0, value - half), min(1.0, value + half)


def _midranks(values: Float64) -> Float64:
    """Return ranks from 1, equal values sharing the middle of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    middles: Float64 = (2 * last - counts + 1) / 2
    return middles[places]

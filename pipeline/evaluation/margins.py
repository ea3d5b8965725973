"""How much of the difference between two measured values chance may explain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

from .measured import Measured

LEVEL = 0.95  # of the intervals that measures carry
_TAIL = (1 - LEVEL) / 2


def margin_of_rise(before: Measured, now: Measured, *, comparisons: int = 1) -> float:
    """Return by how much `now` may stand above `before` by chance alone, at LEVEL.

    sqrt((now - low(now))^2 + (high(before) - before)^2): the lower end of the interval of a difference of two
    independent values, from their own intervals (MOVER: Zou & Donner, Statistics in Medicine 27, 2008). For shares with
    Wilson's intervals it is Newcombe's hybrid score interval (ibid. 17, 1998, method 10), for means with normal ones
    the unpooled interval. Both nights draw their samples by one seed, so that most queries are the same: the difference
    then varies less than this says. A value without an interval is counted and adds nothing. comparisons: how many are
    judged together, see `widening`.
    """
    return widening(comparisons) * math.hypot(_below(now), _above(before))


def margin_of_fall(before: Measured, now: Measured, *, comparisons: int = 1) -> float:
    """Return by how much `now` may stand below `before` by chance alone; as `margin_of_rise`."""
    return widening(comparisons) * math.hypot(_above(now), _below(before))


def margin_above(now: Measured, *, comparisons: int = 1) -> float:
    """Return by how much a value may stand above the true one by chance alone."""
    return widening(comparisons) * _below(now)


def margin_below(now: Measured, *, comparisons: int = 1) -> float:
    """Return by how much a value may stand below the true one by chance alone."""
    return widening(comparisons) * _above(now)


def widening(comparisons: int) -> float:
    """Return how much wider intervals are when so many are judged together and all are to hold at LEVEL.

    Bonferroni: each at 1 - (1 - LEVEL) / comparisons. The half widths are stretched by the ratio of the normal
    quantiles, exact for normal intervals.
    """
    normal = NormalDist()
    return normal.inv_cdf(1 - _TAIL / comparisons) / normal.inv_cdf(1 - _TAIL)


def share_of(name: str, part: int, whole: int, *, examples: Sequence[str] = ()) -> Measured:
    """Return a share of so many things as a measure, with Wilson's interval (JASA 22, 1927)."""
    z = NormalDist().inv_cdf(1 - _TAIL)
    share = part / whole
    middle = (share + z * z / (2 * whole)) / (1 + z * z / whole)
    half = z * math.sqrt(share * (1 - share) / whole + z * z / (4 * whole * whole)) / (1 + z * z / whole)
    # The ends meet 0 and 1 there exactly, but for rounding.
    low, high = (0.0 if not part else middle - half), (1.0 if part == whole else middle + half)
    return Measured(name, share, low, high, n=whole, examples=tuple(examples))


def pooled(members: Sequence[Measured], category: str) -> Measured:
    """Return the mean of several categories' values by their n, as one category's; its interval by MOVER.

    Raises ValueError when one has no n.
    """
    counts = [one.n for one in members if one.n is not None]
    total = sum(counts)
    if len(counts) != len(members) or not total:
        raise ValueError("categories are pooled by the number of things that each was measured on")
    weights = [count / total for count in counts]
    value = sum(weight * one.value for weight, one in zip(weights, members, strict=True))
    below = math.hypot(*(weight * _below(one) for weight, one in zip(weights, members, strict=True)))
    above = math.hypot(*(weight * _above(one) for weight, one in zip(weights, members, strict=True)))
    return replace(
        members[0],
        value=value,
        low=value - below,
        high=value + above,
        category=category,
        n=total,
        examples=tuple(example for one in members for example in one.examples[:1]),
    )


def _below(one: Measured) -> float:
    return 0.0 if one.low is None else max(0.0, one.value - one.low)


def _above(one: Measured) -> float:
    return 0.0 if one.high is None else max(0.0, one.high - one.value)

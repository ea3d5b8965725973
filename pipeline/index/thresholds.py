"""How near is near: the scores of pairs of items drawn at random, and thresholds by score or by their quantile.

A score means something within one model only, so a threshold that was found with one bundle says nothing of the next.
The share of random pairs that are less alike does carry over: `min_quantile=0.999` keeps what is nearer than 999 of
1,000 pairs of items. The scores at fixed quantiles are measured when the index is built, and stand in the manifest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import ConfigError
from ..ordering import run_starts
from .groups import GroupHits
from .latents import Float64, Rows
from .search import SearchIndex

QUANTILES = (0.5, 0.9, 0.99, 0.999, 0.9999)
_KEY = "pair_score_q"  # before the quantile, in a manifest's index_parameters
_PAIRS = 100_000  # of items: ten lie above the last quantile
_VALUES = 1 << 22  # float64 values of a block of pairs


def pair_quantiles(index: SearchIndex, item_ids: pa.ChunkedArray) -> dict[str, float]:
    """Return the scores at QUANTILES of pairs of different items, by the names that they have in a manifest.

    item_ids: of each row of the index, in order. All pairs where there are at most 100,000, else so
    many drawn with a fixed seed; a pair's score is its best pair of photos. Of the q-quantile's score at least the
    share q of the pairs is no nearer (no interpolation). Nothing where there are fewer than two items.
    """
    starts = np.flatnonzero(run_starts(item_ids))
    if len(starts) < 2:
        return {}
    counts = np.diff(starts, append=len(item_ids))
    first, second = _pairs(len(starts))
    scores = np.sort(_best_scores(index, starts, counts, first, second))
    return {_name(q): float(scores[max(0, math.ceil(q * len(scores) - 1e-9) - 1)]) for q in QUANTILES}


def _pairs(items: int) -> tuple[Rows, Rows]:
    """Return two different items a pair: all pairs, or 100,000 of them."""
    if items * (items - 1) // 2 <= _PAIRS:
        first, second = np.triu_indices(items, 1)
        return first.astype(np.int64), second.astype(np.int64)
    generator = np.random.default_rng(0)
    first = generator.integers(0, items, _PAIRS)
    return first, (first + generator.integers(1, items, _PAIRS)) % items


def _best_scores(index: SearchIndex, starts: Rows, counts: Rows, first: Rows, second: Rows) -> Float64:
    """Return the score of the best pair of photos of each pair of items."""
    widths = counts[first] * counts[second]
    best = np.full(len(first), -np.inf)
    step = max(1, _VALUES // max(1, index.dim * int(widths.max())))
    for start in range(0, len(first), step):
        block = np.s_[start : start + step]
        owners = np.repeat(np.arange(len(widths[block])), widths[block])
        place = np.arange(len(owners)) - np.repeat(np.cumsum(widths[block]) - widths[block], widths[block])
        wide = counts[second[block]][owners]
        left = starts[first[block]][owners] + place // wide
        right = starts[second[block]][owners] + place % wide
        scores = index.metric.pair_scores(index.latents(left), index.latents(right))
        np.maximum.at(best[block], owners, scores)
    return best


def least_score(
    parameters: Mapping[str, Any], release_id: str, min_score: float | None, min_quantile: float | None
) -> float | None:
    """Return the score below which nothing is answered, None where everything is; the higher one of two.

    parameters: a manifest's index_parameters. Between two quantiles that were measured the score is interpolated along
    the logarithm of the share that lies above. Raises ConfigError for what is no number, for a quantile that was not
    measured, and for a release from before there were any.
    """
    asked = [] if min_score is None else [_number("min_score", min_score)]
    if min_quantile is not None:
        asked.append(_score_at(_measured(parameters), _number("min_quantile", min_quantile), release_id))
    return max(asked, default=None)


def near_enough(answer: GroupHits, least: float | None) -> GroupHits:
    """Return an answer without what scores below a threshold."""
    if least is None:
        return answer
    count = int(np.count_nonzero(answer.scores >= least))  # nearest first
    return GroupHits(answer.groups[:count], answer.scores[:count])


def _measured(parameters: Mapping[str, Any]) -> dict[float, float]:
    names = {_name(quantile): quantile for quantile in QUANTILES}
    return {names[name]: float(value) for name, value in parameters.items() if name in names}


def _score_at(measured: Mapping[float, float], quantile: float, release_id: str) -> float:
    if not measured:
        raise ConfigError(
            f"min_quantile is {quantile:g}, and release {release_id} has no scores of random pairs in its manifest "
            "(it was made by an earlier version, or has fewer than two items); use min_score, or open a newer release"
        )
    known = sorted(measured)
    if not known[0] <= quantile <= known[-1]:
        raise ConfigError(
            f"min_quantile is {quantile:g}, and release {release_id} knows the scores of random pairs from the "
            f"quantile {known[0]:g} to {known[-1]:g}; choose one between, for example 0.99, or use min_score"
        )
    tails = [-math.log(1.0 - each) for each in known]
    return float(np.interp(-math.log(1.0 - quantile), tails, [measured[each] for each in known]))


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not np.isfinite(value):
        raise ConfigError(f"{name} is {value!r:.80}; it must be a finite number")
    return float(value)


def _name(quantile: float) -> str:
    return f"{_KEY}{quantile:g}"

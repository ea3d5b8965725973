"""Is everybody offered, or do a few products stand in all lists and others in none?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..measured import Measured
from .intervals import wilson
from .sampling import by_kind
from .tonight import Found, LeftOut, Tonight

_EXAMPLES = 10


def hubness(tonight: Tonight) -> Found:
    """Return `hub_skew`, `hub_robin_hood` and `antihub_share`, the last also by category, of the sampled items.

    All are asked of all by the release's metric, exactly, itself left out; k-occurrence (Radovanovic et al. 2010, JMLR
    11) grows with how many there are, so a catalogue larger than the sample is told by the sample and not by itself.
    Examples: the items in the most lists, and such as are in none.
    """
    rows = tonight.sample
    if len(rows) < 3:
        return LeftOut(f"{len(rows)} items have no hubs; it takes 3")
    counts = occurrences(tonight.sample_near)
    most = tonight.names(rows[np.argsort(-counts, kind="stable")[:_EXAMPLES]])
    found = [
        Measured("hub_skew", skew(counts), n=len(rows), examples=most),
        Measured("hub_robin_hood", robin_hood(counts), n=len(rows), examples=most),
    ]
    for category, asked in [(None, np.arange(len(rows))), *by_kind(tonight.labels, tonight.kinds, rows)]:
        nowhere = asked[counts[asked] == 0]
        low, high = wilson(len(nowhere), len(asked))
        examples = tonight.names(rows[nowhere[:_EXAMPLES]])
        share = len(nowhere) / len(asked)
        found.append(Measured("antihub_share", share, low, high, category, len(asked), examples))
    return found


def occurrences(near: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return in how many lists each of n items is, int64 [n]; near: int64 [n, k], their lists."""
    return np.bincount(near.ravel(), minlength=len(near)).astype(np.int64)


def skew(counts: NDArray[np.int64]) -> float:
    """Return the third standardised moment of counts [n]; 0 where all are equal."""
    apart = counts - counts.mean()
    variance = float(np.mean(apart**2))
    return float(np.mean(apart**3)) / variance**1.5 if variance > 0 else 0.0


def robin_hood(counts: NDArray[np.int64]) -> float:
    """Return the share of places that would have to be dealt anew for all to have equally many (Hoover 1936)."""
    total = float(counts.sum())
    return float(np.abs(counts - counts.mean()).sum()) / 2 / total if total > 0 else 0.0

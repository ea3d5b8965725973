"""Do views of one photo find each other among the views of all others?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...index import LatentArrays, Metric, nearest_exact
from ..measured import Measured
from .intervals import wilson
from .sampling import by_kind
from .tonight import Found, LeftOut, Tonight

_EXAMPLES = 10


def view_agreement(tonight: Tonight) -> Found:
    """Return `view_agreement`, also by category; examples: items whose views do not find each other."""
    looked = tonight.looked
    if isinstance(looked, LeftOut):
        return looked
    count = len(looked.second)
    if count < 2:
        return LeftOut(f"{count} photos have two views, and agreement is among at least 2")
    agreeing = agreements(tonight.night.index.metric, looked.first.take(np.s_[:count]), looked.second)
    rows = looked.rows[:count]
    found = []
    for category, asked in [(None, np.arange(count)), *by_kind(tonight.labels, tonight.kinds, rows)]:
        hits = int(agreeing[asked].sum())
        lost = asked[~agreeing[asked]][:_EXAMPLES]
        examples = tonight.names(rows[lost])
        found.append(
            Measured("view_agreement", hits / len(asked), *wilson(hits, len(asked)), category, len(asked), examples)
        )
    return found


def agreements(metric: Metric, first: LatentArrays, second: LatentArrays) -> NDArray[np.bool_]:
    """Return whether each photo's second view is the nearest of all second views to its first one, bool [n]."""
    nearest, _ = nearest_exact(metric, second, first, 1)
    same: NDArray[np.bool_] = nearest[:, 0] == np.arange(len(first))
    return same

"""How near the nearest other item is: quantiles of its score, and how they have shifted since the parent."""

from __future__ import annotations

import numpy as np

from ..measured import Measured
from .intervals import quantile_interval
from .tonight import Found, LeftOut, Tonight

QUANTILES = {"score_q01": 0.01, "score_q50": 0.5, "score_q99": 0.99}
_EXAMPLES = 10


def scores(tonight: Tonight) -> Found:
    """Return QUANTILES of the asked items' best scores, and `_shift`, how much higher than the parent's they are.

    A threshold on scores that holds in one space says nothing in another, so there is no shift against a parent of
    another bundle or metric. Examples: the items farthest from every other one (q01) and the nearest to one (q99).
    """
    asked = tonight.asked
    there = np.flatnonzero(asked.near[:, 0] >= 0)
    if not len(there):
        return LeftOut("no item has another one beside it")
    best = asked.scores[there, 0]
    order = there[np.argsort(best, kind="stable")]
    shown = {"score_q01": order[:_EXAMPLES], "score_q99": order[::-1][:_EXAMPLES]}
    parent, found = tonight.night.parent, []
    for name, share in QUANTILES.items():
        value, low, high = quantile_interval(best, share)
        examples = tonight.names(tonight.firsts[asked.items[shown[name]]]) if name in shown else ()
        found.append(Measured(name, value, low, high, n=len(best), examples=examples))
        if parent is not None and tonight.same_space and name in parent.measures:
            found.append(Measured(f"{name}_shift", value - parent.measures[name], n=len(best)))
    return found

"""How far a model's decoder is from the photos, and in which categories the most."""

from __future__ import annotations

import numpy as np

from ..measured import Measured
from ..retrieval import interval
from .sampling import by_kind
from .tonight import Found, LeftOut, Tonight

_EXAMPLES = 10


def reconstruction(tonight: Tonight) -> Found:
    """Return `reconstruction_mse`, also by category, and the worst and the best category's; examples: the worst photos.

    The rows by category stand from the worst to the best.
    """
    looked = tonight.looked
    if isinstance(looked, LeftOut):
        return looked
    if looked.mse is None:
        return LeftOut("the model draws no pictures")
    errors, found = looked.mse, []
    for category, asked in [(None, np.arange(looked.uniform)), *by_kind(tonight.labels, tonight.kinds, looked.rows)]:
        low, high = interval(errors[asked], seed=tonight.config.seed)
        worst = asked[np.argsort(-errors[asked], kind="stable")[:_EXAMPLES]]
        value, examples = float(errors[asked].mean()), tonight.names(looked.rows[worst])
        found.append(Measured("reconstruction_mse", value, low, high, category, len(asked), examples))
    whole, apart = found[0], sorted(found[1:], key=lambda one: -one.value)
    ends = [("reconstruction_worst", apart[0]), ("reconstruction_best", apart[-1])] if apart else []
    named = [Measured(name, one.value, n=one.n, examples=one.examples) for name, one in ends]
    return [whole, *apart, *named]

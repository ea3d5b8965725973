"""The retrieval measures by the catalogue's categories, over all of them and of each."""

from __future__ import annotations

import numpy as np

from ..category import category_answers
from ..measured import Measured
from ..retrieval import interval
from .intervals import wilson
from .sampling import by_kind
from .tonight import Found, LeftOut, Tonight

_EXAMPLES = 10
_SHARES = ("category_knn", "category_probe")


def category(tonight: Tonight) -> Found:
    """Return `category_answers` as measures, also by category; examples: the items that were answered the worst.

    The probe names few items of each category, so that it is told of all together only.
    """
    night = tonight.night
    if tonight.labels is None or night.category is None:
        return LeftOut("catalogue.category names no column")
    seed, found = tonight.config.seed, []
    answered = category_answers(night.items, night.latents.mean, night.category, seed=seed)
    for name, answers in answered.items():
        kinds = by_kind(tonight.labels, tonight.kinds, answers.rows) if name != "category_probe" else []
        for kind, asked in [(None, np.arange(len(answers.rows))), *kinds]:
            values = answers.values[asked]
            ends = wilson(float(values.sum()), len(values)) if name in _SHARES else interval(values, seed=seed)
            worst = asked[np.argsort(values, kind="stable")[:_EXAMPLES]]
            examples = tonight.names(answers.rows[worst[answers.values[worst] < 1]])
            found.append(Measured(name, float(values.mean()), *ends, kind, len(values), examples))
    return found if found else LeftOut("fewer than two items have a category")

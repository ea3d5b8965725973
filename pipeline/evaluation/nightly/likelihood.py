"""How likely the bundle's prior finds photos' codes: what is unlike the catalogue that it has learned."""

from __future__ import annotations

import numpy as np

from ..measured import Measured
from ..retrieval import interval
from .code_use import codes_of, readable
from .sampling import by_kind
from .tonight import Found, LeftOut, Tonight

_EXAMPLES = 10


def likelihood(tonight: Tonight) -> Found:
    """Return `code_nats`, also by category, and the worst and the best category's; examples: the least likely photos.

    Of `measures.queries` items, those whose codes lie in few parts (`code_use`). The rows by category stand from the
    least likely to the likeliest.
    """
    if isinstance(tonight.prior, LeftOut):
        return tonight.prior
    rows = readable(tonight, tonight.sample[: tonight.config.queries])
    nats, found = tonight.prior(rows, codes_of(tonight, rows)), []
    for category, asked in [(None, np.arange(len(rows))), *by_kind(tonight.labels, tonight.kinds, rows)]:
        low, high = interval(nats[asked], seed=tonight.config.seed)
        least = asked[np.argsort(-nats[asked], kind="stable")[:_EXAMPLES]]
        value, examples = float(nats[asked].mean()), tonight.names(rows[least])
        found.append(Measured("code_nats", value, low, high, category, len(asked), examples))
    whole, apart = found[0], sorted(found[1:], key=lambda one: -one.value)
    ends = [("code_nats_worst", apart[0]), ("code_nats_best", apart[-1])] if apart else []
    return [whole, *apart, *(Measured(name, one.value, n=one.n, examples=one.examples) for name, one in ends)]

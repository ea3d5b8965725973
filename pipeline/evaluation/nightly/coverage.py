"""Which items of the catalogue have no usable photo, so that nobody is offered them?"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from ...ordering import ranks, run_starts, take_column
from ..measured import Measured
from .intervals import wilson
from .sampling import by_kind
from .tonight import Found, LeftOut, Tonight

_EXAMPLES = 10


def coverage(tonight: Tonight) -> Found:
    """Return `coverage`, also by category; examples: items without a usable photo.

    All items are looked at; the intervals are for a catalogue of which these were drawn, so that a small one may lose
    an item.
    """
    catalogue, category = tonight.catalogue, tonight.night.category
    if not catalogue.num_rows:
        return LeftOut("no item was asked for")
    rows = np.flatnonzero(run_starts(catalogue["item_id"]))
    ids = take_column(catalogue["item_id"], rows)
    covered = tonight.numbers_of(ids) >= 0
    named = category is not None and category in catalogue.column_names
    labels, kinds = (
        (None, list[str]()) if not named else ranks(take_column(catalogue[str(category)], rows).cast(pa.string()))
    )
    everyone, found = np.arange(len(rows)), []
    for name, asked in [(None, everyone), *by_kind(labels, kinds, everyone)]:
        lost = asked[~covered[asked]][:_EXAMPLES]
        examples = tuple(take_column(ids, lost).to_pylist())
        count = int(covered[asked].sum())
        ends = wilson(count, len(asked))
        found.append(Measured("coverage", count / len(asked), *ends, name, len(asked), examples))
    return found

"""Do products keep their keys? Pictures that now belong to other items than the night before."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...ordering import as_numpy
from ...release import read_table
from ..measured import Measured
from .identical import numbered
from .intervals import wilson
from .tonight import Found, LeftOut, Tonight

_COLUMNS = ["item_id", "digest"]
_EXAMPLES = 10


def rekeyed(tonight: Tonight) -> Found:
    """Return `rekeyed_share`: of pictures in both releases, those none of whose items had them before.

    Whatever a model thinks of them, click logs and baskets of such items are others' from now on. Examples: items that
    have such a picture.
    """
    night = tonight.night
    if night.parent is None:
        return LeftOut("there is no parent")
    now = night.items.select(_COLUMNS)
    if not pc.any(pc.equal(night.changes["change"], "added")).as_py():  # no photo has come to an item
        return [Measured("rekeyed_share", 0.0, *wilson(0, max(1, now.num_rows)), n=now.num_rows)]
    before = read_table(tonight.store, night.parent, "items", columns=_COLUMNS)
    there = as_numpy(pc.is_in(now["digest"], value_set=before["digest"].combine_chunks())).astype(np.bool_)
    kept = as_numpy(pc.is_in(_pairs(now), value_set=_pairs(before).combine_chunks())).astype(np.bool_)
    pictures = numbered(now["digest"])
    both, same = np.unique(pictures[there]), np.unique(pictures[kept])
    if not len(both):
        return LeftOut("no picture is in both releases")
    moved = np.flatnonzero(there & ~np.isin(pictures, same))
    count = len(both) - len(same)
    examples = tonight.names(moved[:_EXAMPLES])
    return [Measured("rekeyed_share", count / len(both), *wilson(count, len(both)), None, len(both), examples)]


def _pairs(photos: pa.Table) -> pa.ChunkedArray:
    # Digests are of one length, so that no two pairs read alike.
    wide = [photos[name].cast(pa.large_string()) for name in ("digest", "item_id")]
    return pc.binary_join_element_wise(*wide, pa.scalar("/", pa.large_string()))

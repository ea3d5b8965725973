"""Do products keep their keys? Pictures that now belong to other items than the night before."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ...ordering import aligned_slices, as_numpy, joined
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
    pictures, known = np.split(numbered(_behind(now["digest"], before["digest"])), [now.num_rows])
    there = _marked(known, int(pictures.max(initial=0)) + 1)[pictures]
    # Cut at the same items, so that pairs are compared where both would stand.
    slices = aligned_slices("item_id", now, before)
    kept = np.concatenate([_among(_pairs(ours), _pairs(theirs)) for ours, theirs in slices])
    both, same = np.unique(pictures[there]), np.unique(pictures[kept])
    if not len(both):
        return LeftOut("no picture is in both releases")
    moved = np.flatnonzero(there & ~np.isin(pictures, same))
    count = len(both) - len(same)
    examples = tonight.names(moved[:_EXAMPLES])
    return [Measured("rekeyed_share", count / len(both), *wilson(count, len(both)), None, len(both), examples)]


def _behind(first: pa.ChunkedArray, second: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([*first.chunks, *(chunk.cast(first.type) for chunk in second.chunks)], type=first.type)


def _marked(numbers: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Return which of the numbers below `count` are there."""
    marked = np.zeros(count, np.bool_)
    marked[numbers[numbers < count]] = True
    return marked


def _among(asked: pa.ChunkedArray, known: pa.ChunkedArray) -> NDArray[np.bool_]:
    return as_numpy(pc.is_in(asked, value_set=joined(known))).astype(np.bool_)


def _pairs(photos: pa.Table) -> pa.ChunkedArray:
    # Digests are of one length, so that no two pairs read alike.
    wide = [photos[name].cast(pa.large_string()) for name in ("digest", "item_id")]
    return pc.binary_join_element_wise(*wide, pa.scalar("/", pa.large_string()))

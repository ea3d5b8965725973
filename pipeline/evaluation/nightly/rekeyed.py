"""Do products keep their keys? Pictures that now belong to other items than the night before."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ...ordering import as_numpy, joined
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
    there, kept = (_among(of(now), of(before)) for of in (_digests, _pairs))
    pictures = numbered(now["digest"])
    both, same = np.unique(pictures[there]), np.unique(pictures[kept])
    if not len(both):
        return LeftOut("no picture is in both releases")
    moved = np.flatnonzero(there & ~np.isin(pictures, same))
    count = len(both) - len(same)
    examples = tonight.names(moved[:_EXAMPLES])
    return [Measured("rekeyed_share", count / len(both), *wilson(count, len(both)), None, len(both), examples)]


def _among(asked: pa.ChunkedArray, known: pa.ChunkedArray) -> NDArray[np.bool_]:
    return as_numpy(pc.is_in(asked, value_set=joined(known))).astype(np.bool_)


def _digests(photos: pa.Table) -> pa.ChunkedArray:
    return photos["digest"].cast(pa.large_string())


def _pairs(photos: pa.Table) -> pa.ChunkedArray:
    # Digests are of one length, so that no two pairs read alike.
    wide = [_digests(photos), photos["item_id"].cast(pa.large_string())]
    return pc.binary_join_element_wise(*wide, pa.scalar("/", pa.large_string()))

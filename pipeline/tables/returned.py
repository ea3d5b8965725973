"""Which of a night's new items had been there before: their photos are listed in `changes` as `returned` too."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import NotFound
from ..index.latents import Rows
from ..ordering import SLICE_ROWS, as_numpy, joined, take_column, take_rows
from ..release import Manifest, read_manifest
from ..release.tables import read_files
from ..schema import changes_schema
from ..storage import Store
from .tonight import Night

RETURNED = "returned"
_ANCESTORS = 100  # releases that are looked through at most
_GONE = pa.array(["removed", "quarantined"])


def with_returned(store: Store, night: Night) -> pa.Table:
    """Return the night's table `changes` with another row for each photo of a returned item, in the table's order.

    Returned is an item that the parent did not hold and that an earlier release removed, or had in quarantine. A
    release that has expired ends the search.
    """
    new = pa.array([], pa.large_string()) if night.parent is None else _new_items(night)
    returned = pa.array([], new.type)
    for gone in _gone(store, night.parent) if len(new) else ():
        known = pc.is_in(new, value_set=joined(gone).cast(new.type))
        returned, new = pa.concat_arrays([returned, new.filter(known)]), new.filter(pc.invert(known))
        if not len(new):
            break
    return _said_again(night.changes.cast(changes_schema()), returned)


def _said_again(changes: pa.Table, returned: pa.Array) -> pa.Table:
    """Return the table, in order still, with another row behind each of some items, whose rows all say `added`."""
    if not len(returned):  # as on most nights
        return changes
    mine = _places(changes["item_id"], returned) >= 0
    rows = np.repeat(np.arange(len(changes)), 1 + mine)
    second = np.diff(rows, prepend=-1) == 0
    twice = take_rows(changes, rows)
    told = pc.if_else(pa.array(second), RETURNED, twice["change"])
    return twice.set_column(twice.column_names.index("change"), changes.schema.field("change"), told)


def _new_items(night: Night) -> pa.Array:
    """Return the item_ids of which every photo was added tonight and nothing else happened to any."""
    changes = night.changes
    added = pc.equal(changes["change"], "added")
    there = joined(changes["item_id"].filter(added)).value_counts()
    others = joined(changes["item_id"].filter(pc.invert(added)))
    there = there.filter(pc.invert(pc.is_in(there.field("values"), value_set=others)))
    rows = _photos(night.items["item_id"], there.field("values"))
    whole = there.field("values").filter(pa.array(rows == as_numpy(there.field("counts"))))
    return whole.take(pc.array_sort_indices(whole))


def _photos(item_ids: pa.ChunkedArray, wanted: pa.Array) -> Rows:
    """Return how many rows each wanted item has, int64."""
    places = _places(item_ids, wanted)
    return np.bincount(places[places >= 0], minlength=len(wanted)).astype(np.int64)


def _places(item_ids: pa.ChunkedArray, wanted: pa.Array) -> np.ndarray:
    """Return the place of every row's item among the wanted ones, int32 [rows], -1 where it is none of them."""
    places = np.full(len(item_ids), -1, np.int32)
    for start in range(0, len(item_ids) if len(wanted) else 0, SLICE_ROWS):
        part = item_ids.slice(start, SLICE_ROWS).cast(wanted.type)  # no more text than this is held once more
        places[start : start + len(part)] = as_numpy(pc.index_in(part, value_set=wanted), missing=-1)
    return places


def _gone(store: Store, manifest: Manifest | None) -> Iterator[pa.ChunkedArray]:
    """Yield item_ids that a release has in quarantine, then those that it and those before it lost, newest first.

    Their tables are read a file at a time.
    """
    if manifest is not None:
        for refused in read_files(store, manifest, "quarantine", columns=["item_id"]):
            yield refused["item_id"]
    for _ in range(_ANCESTORS):
        if manifest is None:
            return
        if any(manifest.counts.get(name) != 0 for name in _GONE.to_pylist()):
            for lost in read_files(store, manifest, "changes", columns=["item_id", "change"]):
                rows = np.flatnonzero(as_numpy(pc.is_in(lost["change"], value_set=_GONE)))
                yield take_column(lost["item_id"], rows)
        try:
            manifest = read_manifest(store, manifest.parent) if manifest.parent else None
        except NotFound:
            return

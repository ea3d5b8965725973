"""Which of a night's new items had been there before: their photos are listed in `changes` as `returned` too."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import NotFound
from ..ordering import as_numpy, joined, take_column, take_rows
from ..release import Manifest, read_manifest, read_table
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
    new = _new_items(night)
    returned = pa.array([], new.type)
    for gone in _gone(store, night.parent) if len(new) else ():
        known = pc.is_in(new, value_set=joined(gone).cast(new.type))
        returned, new = pa.concat_arrays([returned, new.filter(known)]), new.filter(pc.invert(known))
        if not len(new):
            break
    mine = night.changes.filter(pc.is_in(joined(night.changes["item_id"]), value_set=returned))
    again = pa.table([mine["item_id"], mine["uri"], pa.repeat(pa.scalar(RETURNED), mine.num_rows)], changes_schema())
    both = pa.concat_tables([night.changes.cast(changes_schema()), again])
    by = [("item_id", "ascending"), ("uri", "ascending"), ("change", "ascending")]
    return take_rows(both, pc.sort_indices(both, by))


def _new_items(night: Night) -> pa.Array:
    """Return the item_ids of which every photo was added tonight and nothing else happened to any."""
    changes = night.changes
    added = pc.equal(changes["change"], "added")
    there = changes.filter(added)["item_id"].value_counts()
    counts = dict(zip(there.field("values").to_pylist(), there.field("counts").to_pylist(), strict=True))
    others = set(changes.filter(pc.invert(added))["item_id"].to_pylist())
    wanted = pa.array(sorted(counts.keys() - others), pa.large_string())
    held = joined(night.items["item_id"])
    rows = held.filter(pc.is_in(held, value_set=wanted)).value_counts()
    sizes = dict(zip(rows.field("values").to_pylist(), rows.field("counts").to_pylist(), strict=True))
    return pa.array([item_id for item_id in wanted.to_pylist() if sizes.get(item_id) == counts[item_id]], wanted.type)


def _gone(store: Store, manifest: Manifest | None) -> Iterator[pa.ChunkedArray]:
    """Yield item_ids that a release has in quarantine, then those that it and those before it lost, newest first."""
    if manifest is not None:
        yield read_table(store, manifest, "quarantine", columns=["item_id"])["item_id"]
    for _ in range(_ANCESTORS):
        if manifest is None:
            return
        if any(manifest.counts.get(name) != 0 for name in _GONE.to_pylist()):
            lost = read_table(store, manifest, "changes", columns=["item_id", "change"])
            rows = np.flatnonzero(as_numpy(pc.is_in(lost["change"], value_set=_GONE)))
            yield take_column(lost["item_id"], rows)
        try:
            manifest = read_manifest(store, manifest.parent) if manifest.parent else None
        except NotFound:
            return

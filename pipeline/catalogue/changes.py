"""What changed between two releases, photo by photo, from their items and quarantine tables."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from ..ordering import aligned_slices, sorted_by, take_rows
from ..schema import CHANGES, attribute_fields, changes_schema
from .difference import column_or_nulls, differs, pair_keys

_KEYS = ["item_id", "uri"]


def changes_between(
    items: pa.Table, quarantine: pa.Table, parent_items: pa.Table | None, parent_quarantine: pa.Table | None
) -> pa.Table:
    """Return a table of schema.CHANGES sorted by (item_id, uri).

    added: lives now and did not; removed: lived and does not; changed: its token differs; relabelled: only its view or
    attributes differ; quarantined: refused now and was not (a photo that lived and is refused now is both removed and
    quarantined). Without a parent everything is added or quarantined. Tables are compared slice by
    slice, all cut at the same keys.
    """
    if parent_items is None or parent_quarantine is None:
        parent_items, parent_quarantine = items.slice(0, 0), quarantine.slice(0, 0)
    tables = [sorted_by(table, "item_id") for table in (items, parent_items, quarantine, parent_quarantine)]
    found = [_changes(*slices) for slices in aligned_slices("item_id", *tables)]
    return pa.concat_tables(found).combine_chunks().cast(changes_schema())


def _changes(items: pa.Table, parent_items: pa.Table, quarantine: pa.Table, parent_quarantine: pa.Table) -> pa.Table:
    found = [
        _named(_without(items, parent_items), "added"),
        _named(_without(parent_items, items), "removed"),
        *_altered(items, parent_items),
        _named(_without(quarantine, parent_quarantine), "quarantined"),
    ]
    return pa.concat_tables(found).sort_by([("item_id", "ascending"), ("uri", "ascending"), ("change", "ascending")])


def _without(left: pa.Table, right: pa.Table) -> pa.Table:
    """Return the keys of `left` that `right` has not."""
    if not right.num_rows or not left.num_rows:
        return left.select(_KEYS)
    return left.select(_KEYS).filter(pc.invert(pc.is_in(pair_keys(left), value_set=pair_keys(right))))


def _altered(items: pa.Table, parent: pa.Table) -> list[pa.Table]:
    found = pc.index_in(pair_keys(items), value_set=pair_keys(parent))
    now, before = items.filter(pc.is_valid(found)), take_rows(parent, pc.drop_null(found))
    moved = pc.not_equal(now["token"], before["token"])
    relabelled = pc.not_equal(now["view"], before["view"])
    names = [field.name for field in (*attribute_fields(items.schema), *attribute_fields(parent.schema))]
    for name in dict.fromkeys(names):
        relabelled = pc.or_(relabelled, differs(column_or_nulls(now, name), column_or_nulls(before, name)))
    only_labels = pc.and_(relabelled, pc.invert(moved))
    return [_named(now.filter(moved), "changed"), _named(now.filter(only_labels), "relabelled")]


def _named(keys: pa.Table, change: str) -> pa.Table:
    keys = keys.select(_KEYS)
    return keys.append_column(CHANGES.field("change"), pa.repeat(pa.scalar(change), keys.num_rows)).cast(CHANGES)

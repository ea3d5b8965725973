"""What changed between two releases, photo by photo, from their items and quarantine tables."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from ..schema import CHANGES, changes_schema
from .difference import differs

_KEYS = ["item_id", "uri"]


def changes_between(
    items: pa.Table, quarantine: pa.Table, parent_items: pa.Table | None, parent_quarantine: pa.Table | None
) -> pa.Table:
    """Return a table of schema.CHANGES sorted by (item_id, uri).

    added: lives now and did not; removed: lived and does not; changed: its token differs; relabelled: only its view or
    attributes differ; quarantined: refused now and was not (a photo that lived and is refused now is both removed and
    quarantined). Without a parent everything is added or quarantined.
    """
    if parent_items is None or parent_quarantine is None:
        parent_items, parent_quarantine = items.slice(0, 0), quarantine.slice(0, 0)
    found = [
        _named(_without(items, parent_items), "added"),
        _named(_without(parent_items, items), "removed"),
        *_altered(items, parent_items),
        _named(_without(quarantine, parent_quarantine), "quarantined"),
    ]
    table = pa.concat_tables(found).sort_by([("item_id", "ascending"), ("uri", "ascending"), ("change", "ascending")])
    return table.combine_chunks().cast(changes_schema())


def _without(left: pa.Table, right: pa.Table) -> pa.Table:
    """Return the keys of `left` that `right` has not."""
    if not right.num_rows or not left.num_rows:
        return left.select(_KEYS)
    return left.select(_KEYS).join(right.select(_KEYS), keys=_KEYS, join_type="left anti")


def _altered(items: pa.Table, parent: pa.Table) -> list[pa.Table]:
    labels = [name for name in items.column_names if name not in {*_KEYS, "token", "digest", *_places(items)}]
    lost = [name for name in parent.column_names if name not in items.column_names and name not in _places(parent)]
    shared = [name for name in labels if name in parent.column_names]
    pairs = items.select([*_KEYS, "token", *labels]).join(
        parent.select([*_KEYS, "token", *shared]), keys=_KEYS, join_type="inner", right_suffix="_before"
    )
    moved = pc.not_equal(pairs["token"], pairs["token_before"])
    relabelled = pa.chunked_array([pa.repeat(len(shared) != len(labels) or bool(lost), pairs.num_rows)])
    for name in shared:
        relabelled = pc.or_(relabelled, differs(pairs[name], pairs[f"{name}_before"]))
    only_labels = pc.and_(relabelled, pc.invert(moved))
    return [_named(pairs.filter(moved), "changed"), _named(pairs.filter(only_labels), "relabelled")]


def _places(table: pa.Table) -> set[str]:
    return {name for name in table.column_names if name.endswith(("_part", "_row"))}


def _named(keys: pa.Table, change: str) -> pa.Table:
    keys = keys.select(_KEYS)
    return keys.append_column(CHANGES.field("change"), pa.repeat(pa.scalar(change), keys.num_rows)).cast(CHANGES)

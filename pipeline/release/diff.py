"""What changed from one release to another: items, their photos and attributes, measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..ordering import ranks, take_column
from ..schema import RESERVED, SEGMENT_PLACE
from ..storage import Store
from .manifest import Manifest
from .tables import read_table

_UNREAD = ("view", "latents_part", "latents_row", "pixels_part", "pixels_row", *SEGMENT_PLACE.names)
_LINEAGE = ("model_id", "model_kind", "metric", "index_kind", "transform_id", "code_version")

Flags = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ReleaseDiff:
    """What is in `after` and not as it was in `before`; item_ids in order.

    changed: items whose photos differ, in number, uri or content. relabelled: items of the same photos with another
    attribute; attributes: in how many items, of those in both, an attribute has another value.
    attributes_added, attributes_removed: columns. measures, counts, lineage: (before, after) of those that differ, None
    where one has it not.
    """

    before: str
    after: str
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    relabelled: tuple[str, ...]
    same: int
    attributes: dict[str, int]
    attributes_added: tuple[str, ...]
    attributes_removed: tuple[str, ...]
    measures: dict[str, tuple[float | None, float | None]]
    counts: dict[str, tuple[int | None, int | None]]
    lineage: dict[str, tuple[str, str]]


class _Side:
    """One release's items, its rows grouped by item; items are numbered over both releases."""

    def __init__(self, table: pa.Table, codes: Rows, items: int) -> None:
        self.table = table
        self.sizes = np.bincount(codes, minlength=items)
        self._rows = np.argsort(codes, kind="stable")
        self._owners = codes[self._rows]
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)])

    def rows(self, wanted: Flags) -> tuple[Rows, Rows]:
        """Return (all rows of the items wanted, the item of each), by item and then as in the table."""
        kept = wanted[self._owners]
        return self._rows[kept], self._owners[kept]

    def first_rows(self, items: Rows) -> Rows:
        """Return the first row of each item: an item's attributes are those of its first row."""
        rows: Rows = self._rows[self._starts[items]]
        return rows

    @property
    def attributes(self) -> list[str]:
        return [name for name in self.table.column_names if name not in RESERVED]


def diff_releases(store: Store, before: Manifest, after: Manifest) -> ReleaseDiff:
    """Compare the items of two releases, column by column, and what their manifests measure.

    Both items tables are held without their parts. A photo has changed when its uri or its content's digest has;
    photos of an item are compared in the tables' order. Raises IntegrityError for tables that are not the manifests'.
    """
    tables = [read_table(store, manifest, "items", without=_UNREAD) for manifest in (before, after)]
    ids = pa.chunked_array([chunk for table in tables for chunk in table["item_id"].chunks], pa.string())
    codes, names = ranks(ids)
    count = tables[0].num_rows
    old, new = (_Side(*pair, len(names)) for pair in zip(tables, (codes[:count], codes[count:]), strict=True))
    both = (old.sizes > 0) & (new.sizes > 0)
    as_many = both & (old.sizes == new.sizes)
    changed = both & ~as_many
    (old_rows, owners), (new_rows, _) = old.rows(as_many), new.rows(as_many)
    for name in ("uri", "digest"):
        changed[owners[_differs(old.table[name], new.table[name], old_rows, new_rows)]] = True
    staying = np.flatnonzero(both)
    attributes, relabelled = dict[str, int](), np.zeros(len(names), np.bool_)
    for name in (name for name in old.attributes if name in new.attributes):
        other = _differs(old.table[name], new.table[name], old.first_rows(staying), new.first_rows(staying))
        relabelled[staying[other]] = True
        if other.any():
            attributes[name] = int(other.sum())
    relabelled &= ~changed
    return ReleaseDiff(
        before.release_id,
        after.release_id,
        added=_named(names, old.sizes == 0),
        removed=_named(names, new.sizes == 0),
        changed=_named(names, changed),
        relabelled=_named(names, relabelled),
        same=int((both & ~changed & ~relabelled).sum()),
        attributes=attributes,
        attributes_added=tuple(name for name in new.attributes if name not in old.attributes),
        attributes_removed=tuple(name for name in old.attributes if name not in new.attributes),
        measures=_pairs(before.measures, after.measures),
        counts=_pairs(before.counts, after.counts),
        lineage=_pairs(*({name: getattr(manifest, name) for name in _LINEAGE} for manifest in (before, after))),
    )


def diff_text(found: ReleaseDiff, *, shown: int = 10) -> str:
    """Return a difference as lines for people; shown: how many items of each sort are named."""
    lines = [f"from {found.before} to {found.after}"]
    for sort in ("added", "removed", "changed", "relabelled"):
        items = getattr(found, sort)
        named = ", ".join(items[:shown]) + (f", and {len(items) - shown:,} more" if len(items) > shown else "")
        lines.append(f"  {sort:<11}{len(items):>10,} items{': ' + named if items else ''}")
    lines.append(f"  {'same':<11}{found.same:>10,} items")
    lines += [f"  attribute {name}: another value in {number:,} items" for name, number in found.attributes.items()]
    lines += [f"  attribute {name}: new" for name in found.attributes_added]
    lines += [f"  attribute {name}: no longer there" for name in found.attributes_removed]
    facts: dict[str, tuple[Any, Any]] = {**found.lineage, **found.counts, **found.measures}
    lines += [f"  {name}: {_shown(old)} -> {_shown(new)}" for name, (old, new) in facts.items()]
    return "\n".join(lines)


def _differs(old: pa.ChunkedArray, new: pa.ChunkedArray, old_rows: Rows, new_rows: Rows) -> Flags:
    """Return whether the values in rows that face each other differ; null and NaN equal themselves."""
    left, right = (take_column(column, rows) for column, rows in ((old, old_rows), (new, new_rows)))
    try:
        if left.type != right.type:
            right = right.cast(left.type)
        other = pc.fill_null(pc.not_equal(left, right), pa.scalar(False))
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):  # lists, or a column that has become of another kind
        pairs = zip(left.to_pylist(), right.to_pylist(), strict=True)
        return np.fromiter((a != b for a, b in pairs), np.bool_, len(left))
    other = pc.or_(other, pc.not_equal(pc.is_null(left), pc.is_null(right)))
    if pa.types.is_floating(left.type):
        both = pc.and_(pc.is_nan(left), pc.is_nan(right))
        other = pc.and_not(other, pc.fill_null(both, pa.scalar(False)))
    return np.asarray(other.to_numpy(), np.bool_)


def _named(names: list[str], chosen: Flags) -> tuple[str, ...]:
    return tuple(names[item] for item in np.flatnonzero(chosen).tolist())


def _pairs(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = [*before, *(name for name in after if name not in before)]
    return {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)

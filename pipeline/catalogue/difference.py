"""Comparing tonight's photos with the parent release: what is new, what stays, what is gone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..column_types import same_kind, text_column
from ..ordering import SLICE_ROWS, aligned_slices, as_numpy, sorted_by
from ..refusals import KEPT
from ..schema import ITEMS, PHOTOS, QUARANTINE, REFUSAL, attribute_fields, held_table, plan_schema

COUNTS = ("added", "changed", "same", "refused", "removed", "relabelled", "held")
CARRIED = ("digest", "latents_part", "latents_row", "pixels_part", "pixels_row")
_LATENTS = ("latents_part", "latents_row")
_REMOVED = pa.schema([PHOTOS.field("item_id"), PHOTOS.field("uri")])


@dataclass(frozen=True, slots=True)
class Difference:
    """Tonight's photos against the parent release.

    rows: schema.plan_schema with `shard` null, in the order of the photos. removed: (item_id, uri) of the parent's
    living photos that are named no longer. relabelled: (item_id, uri) of `same` photos whose view or attributes
    differ. counts: photos by COUNTS; held: those of `same` that are unreachable.
    """

    rows: pa.Table
    removed: pa.Table
    relabelled: pa.Table
    counts: dict[str, int]


def compare(
    photos: pa.Table,
    parent_items: pa.Table | None,
    parent_quarantine: pa.Table | None,
    *,
    relabel: bool = True,
    told: str | None = None,
) -> Difference:
    """Compare resolved photos (see `resolve_tokens`), sorted by item_id, with the parent release's tables.

    same: item_id, uri and token are the parent's; digest, parts and rows are carried over. changed: another token, or
    an embedded photo whose bytes differ at the same (item_id, view). refused: refused tonight already, or refused by
    the decoder or the model in the parent with this token, whose reason is carried. added: all else; `retried` where
    the parent could not have the photo for a reason that may pass. A photo that lived and is `unreachable` tonight is
    `same`, with the parent's token and tonight's reason beside it: what is not known to be gone stays. A caller whose
    transform differs from the parent's passes no parent_quarantine, since another decoder may take what the last one
    refused; one whose model differs leaves out what the model refused. relabel: False spares comparing views and
    attributes. told: the
    column that a conditional model was told; a `same` photo in which it differs loses its latents (`latents_part` and
    `latents_row` are null) and keeps the rest.

    Tables are cut at the same keys and compared slice by slice, so what is held beside them does not grow with them.
    """
    items = held_table(sorted_by(ITEMS.empty_table() if parent_items is None else parent_items, "item_id"))
    refused = sorted_by(QUARANTINE.empty_table() if parent_quarantine is None else parent_quarantine, "item_id")
    photos = sorted_by(_with_refusal(photos), "item_id")
    slices = [
        _compare_slice(*tables, relabel=relabel, told=told)
        for tables in aligned_slices("item_id", photos, items, refused, rows=SLICE_ROWS)
    ]
    counts = sum((part.counts for part in slices), Counter[str]())
    rows = pa.concat_tables([part.rows for part in slices])
    return Difference(
        rows=rows,
        removed=pa.concat_tables([part.removed for part in slices]),
        relabelled=pa.concat_tables([part.relabelled for part in slices]),
        counts={name: int(counts[name]) for name in COUNTS},
    )


@dataclass(frozen=True, slots=True)
class _Slice:
    rows: pa.Table
    removed: pa.Table
    relabelled: pa.Table
    counts: Counter[str]


def _compare_slice(
    photos: pa.Table, items: pa.Table, quarantine: pa.Table, *, relabel: bool, told: str | None
) -> _Slice:
    photos, items, quarantine = photos.combine_chunks(), items.combine_chunks(), quarantine.combine_chunks()
    keys = pair_keys(photos)
    found = pc.index_in(keys, value_set=pair_keys(items))  # the parent row of each photo, or null
    named = as_numpy(pc.is_valid(found))
    held_over = named & as_numpy(pc.fill_null(pc.equal(photos.column("reason"), "unreachable"), False))
    unusable = as_numpy(pc.is_valid(photos.column("stage"))) & ~held_over
    before = items.column("token").take(found)
    photos = _with_tokens(photos, before, held_over)
    equal = as_numpy(pc.fill_null(pc.equal(photos.column("token"), before), False))
    same = named & equal & ~unusable
    held = np.zeros(items.num_rows, dtype=np.bool_)
    held[as_numpy(found.drop_null())] = True
    replaced = _replaced_bytes(photos, items, ~named & ~unusable, held)
    changed = (named & ~equal & ~unusable) | replaced
    refusal, retried = _refused_before(photos, quarantine, keys, ~(same | changed | unusable))
    refused = (unusable | as_numpy(pc.is_valid(refusal.column("stage")))) & ~held_over
    retried &= ~refused
    status = np.select([refused, changed, same], ["refused", "changed", "same"], "added")
    relabelled = _relabelled(photos, items, found, same) if relabel else np.zeros(photos.num_rows, dtype=np.bool_)
    counts = Counter(dict(zip(*np.unique(status, return_counts=True), strict=True)))
    counts.update(removed=int((~held).sum()), relabelled=int(relabelled.sum()), held=int(held_over.sum()))
    return _Slice(
        rows=_plan_rows(photos, items, found, same, status, retried, refusal, told),
        removed=items.select(_REMOVED.names).filter(pa.array(~held)).cast(_REMOVED),
        relabelled=photos.select(_REMOVED.names).filter(pa.array(relabelled)).cast(_REMOVED),
        counts=counts,
    )


def named_in(rows: pa.Table, table: pa.Table) -> np.ndarray:
    """Return which rows' (item_id, uri) another table holds, bool [n]; memory grows with `rows`, not with the table."""
    if not rows.num_rows:
        return np.zeros(0, dtype=np.bool_)
    named = pc.is_in(table["item_id"], value_set=pc.unique(rows["item_id"]))
    near = table.select(["item_id", "uri"]).filter(named)
    return as_numpy(pc.is_in(pair_keys(rows), value_set=pair_keys(near))).astype(np.bool_)


def _with_tokens(photos: pa.Table, before: Any, held_over: np.ndarray) -> pa.Table:
    """Give photos that are unreachable the token of the parent, whose latents they keep."""
    if not held_over.any():
        return photos
    token = pc.if_else(pa.array(held_over), before, photos.column("token"))
    return photos.set_column(photos.schema.get_field_index("token"), photos.schema.field("token"), token)


def _with_refusal(photos: pa.Table) -> pa.Table:
    for field in REFUSAL:
        if field.name not in photos.column_names:
            photos = photos.append_column(field, pa.nulls(photos.num_rows, field.type))
    return photos


def pair_keys(table: pa.Table) -> pa.ChunkedArray:
    """Return one text for each (item_id, uri), different for different pairs: the key's length keeps them apart."""
    item_id = table.column("item_id").cast(pa.large_string())
    length = pc.binary_length(item_id).cast(pa.large_string())
    uri = table.column("uri").cast(pa.large_string())
    empty, colon = pa.scalar("", pa.large_string()), pa.scalar(":", pa.large_string())
    return pc.binary_join_element_wise(length, colon, item_id, uri, empty)


def _view_keys(table: pa.Table) -> pa.ChunkedArray:
    view = table.column("view").cast(pa.large_string())
    item_id = table.column("item_id").cast(pa.large_string())
    return pc.binary_join_element_wise(view, item_id, pa.scalar(":", pa.large_string()))


def _replaced_bytes(photos: pa.Table, items: pa.Table, unnamed: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Find embedded photos that replace the parent's at the same (item_id, view), and mark those in `held`.

    An embedded photo's uri is its content's digest, so other bytes are another uri: left to itself, a changed photo
    would count as one added and one removed.
    """
    candidates = unnamed & as_numpy(pc.starts_with(photos.column("uri"), "sha256:"))
    gone = ~held & as_numpy(pc.starts_with(items.column("uri"), "sha256:"))
    replaced = np.zeros(photos.num_rows, dtype=np.bool_)
    if candidates.any() and gone.any():
        parents = np.flatnonzero(gone)
        found = pc.index_in(
            _view_keys(photos.filter(pa.array(candidates))), value_set=_view_keys(items.filter(pa.array(gone)))
        )
        replaced[np.flatnonzero(candidates)[as_numpy(pc.is_valid(found))]] = True
        held[parents[as_numpy(found.drop_null())]] = True
    return replaced


def _refused_before(
    photos: pa.Table, quarantine: pa.Table, keys: pa.ChunkedArray, open_rows: np.ndarray
) -> tuple[pa.Table, np.ndarray]:
    """Return the refusal columns of every photo (tonight's or carried), and where a failed fetch is tried again."""
    found = pc.index_in(keys, value_set=pair_keys(quarantine))
    found = pc.if_else(pa.array(open_rows), found, pa.scalar(None, pa.int32()))
    before = quarantine.take(found) if quarantine.num_rows else None
    own = photos.select(REFUSAL.names)
    if before is None:
        return own, np.zeros(photos.num_rows, dtype=np.bool_)
    decoded = pc.is_in(before.column("reason"), value_set=pa.array(sorted(KEPT)))
    equal = pc.fill_null(pc.equal(before.column("token"), photos.column("token")), False)
    carried = pc.and_(decoded, equal)
    columns = [pc.if_else(carried, before.column(name), own.column(name)).cast(pa.string()) for name in REFUSAL.names]
    retried = pc.and_(pc.is_valid(found), pc.invert(decoded))
    return pa.table(columns, schema=REFUSAL), as_numpy(retried).copy()


def _plan_rows(
    photos: pa.Table,
    items: pa.Table,
    found: pa.ChunkedArray,
    same: np.ndarray,
    status: np.ndarray,
    retried: np.ndarray,
    refusal: pa.Table,
    told: str | None,
) -> pa.Table:
    where = pc.if_else(pa.array(same), found, pa.scalar(None, pa.int32()))
    known = dict.fromkeys(CARRIED, where)
    if told is not None:
        stale = differs(_texts(photos, told), _texts(items, told).take(where))
        known |= dict.fromkeys(_LATENTS, pc.if_else(stale, pa.scalar(None, pa.int32()), where))
    columns: dict[str, Any] = {
        "status": pa.array(status, pa.string()),
        "shard": pa.nulls(photos.num_rows, pa.int32()),
        "retried": pa.array(retried),
        **{name: items.column(name).take(rows) for name, rows in known.items()},
        **{name: refusal.column(name) for name in REFUSAL.names},
    }
    attributes = attribute_fields(photos.schema)
    schema = plan_schema(attributes)
    for field in [*PHOTOS, *attributes]:
        columns[field.name] = photos.column(field.name)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _relabelled(photos: pa.Table, items: pa.Table, found: pa.ChunkedArray, same: np.ndarray) -> np.ndarray:
    """Return where a `same` photo's view or attributes differ; a column that one side lacks is null there."""
    rows = pa.array(np.flatnonzero(same))
    now, before = photos.take(rows), items.take(found.take(rows))
    marks = pc.not_equal(now.column("view"), before.column("view"))
    names = [field.name for field in (*attribute_fields(photos.schema), *attribute_fields(items.schema))]
    for name in dict.fromkeys(names):
        marks = pc.or_(marks, differs(column_or_nulls(now, name), column_or_nulls(before, name)))
    marked = np.zeros(photos.num_rows, dtype=np.bool_)
    marked[np.flatnonzero(same)[as_numpy(marks)]] = True
    return marked


def _texts(table: pa.Table, name: str) -> pa.ChunkedArray:
    """Return a column as text, nulls where the table lacks it."""
    return text_column(column_or_nulls(table, name))


def column_or_nulls(table: pa.Table, name: str) -> pa.ChunkedArray:
    """Return a column, nulls where the table lacks it."""
    if name in table.column_names:
        return table.column(name)
    return pa.chunked_array([pa.nulls(table.num_rows, pa.string())])


def differs(now: Any, before: Any) -> Any:
    """Return where two plain columns differ; a null equals a null and a NaN a NaN. See `column_types.same_kind`."""
    now, before = same_kind(now, before)
    differ = pc.fill_null(pc.not_equal(now, before), False)
    if pa.types.is_floating(now.type):
        both = pc.and_(pc.fill_null(pc.is_nan(now), False), pc.fill_null(pc.is_nan(before), False))
        differ = pc.and_(differ, pc.invert(both))
    return pc.or_(differ, pc.xor(pc.is_null(now), pc.is_null(before)))

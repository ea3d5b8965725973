"""From a batch of a table's rows to rows of photos, all in Arrow."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..column_types import photo_bytes, photo_paths, shown_cell, stored_column, text_column, text_lists, unusable_values
from ..errors import InputError
from ..ordering import as_numpy, take_rows
from .addresses import split_addresses
from .cells import blank_as_null, decode_data_uri, lists_in_text, unreadable
from .columns import Columns, null_text, same_text
from .config import CatalogueConfig
from .formats import Place
from .uris import Uris, absolute_uris, shown_rows

# A photo on its way into schema.PHOTOS. `uri` is null where a row holds no photo; `row` is the number of the file
# times 2^40 plus the row in it, counted from 0.
ROWS = pa.schema(
    [
        pa.field("item_id", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("token", pa.string()),
        pa.field("source", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
        pa.field("signed_uri", pa.string()),
        pa.field("row", pa.int64()),
    ]
)
ROW_BITS = 40


@dataclass(frozen=True, slots=True)
class Counted:
    """How often something was found, and where; weight: what chooses among several places."""

    number: int
    where: str
    weight: int = 0


@dataclass(slots=True)
class Tally:
    """What a source passed over, so that nothing is dropped in silence.

    skipped: files or tar members by suffix; skipped_columns: columns that cannot be kept (no plain values, or a
    name that releases use); listed: names listed; counted: whatever else was dropped, merged or read in another way
    than it seems, in words, with where it is.
    """

    skipped: Counter[str] = field(default_factory=Counter)
    skipped_columns: set[str] = field(default_factory=set)
    listed: int = 0
    counted: dict[str, Counted] = field(default_factory=dict)

    def count(self, what: str, number: int, where: str, *, weight: int = 0) -> None:
        """Add to the count of `what`; `where` is kept from the first call, or from the one of the greatest weight."""
        known = self.counted.get(what)
        if known is None:
            self.counted[what] = Counted(number, where, weight)
        elif weight > known.weight:
            self.counted[what] = Counted(known.number + number, where, weight)
        else:
            self.counted[what] = Counted(known.number + number, known.where, known.weight)


@dataclass(frozen=True, slots=True)
class Lines:
    """Where in a JSON lines file the rows of a batch lie. start, length: int64 [n], bytes."""

    start: np.ndarray
    length: np.ndarray


@dataclass(frozen=True, slots=True)
class _Cells:
    """Photos of a batch. parent: int64 [m], the batch row of each, ascending; the arrays are as in ROWS."""

    parent: np.ndarray
    uri: pa.Array
    token: pa.Array
    offset: pa.Array
    length: pa.Array
    signed: pa.Array
    embedded: np.ndarray


def photo_rows(
    batch: pa.Table,
    columns: Columns,
    place: Place,
    config: CatalogueConfig,
    *,
    first_row: int,
    lines: Lines | None = None,
) -> pa.Table:
    """Return one row a photo (schema ROWS, then the attributes); a row without a photo gives one with a null uri.

    batch: the columns `columns.read`; first_row: its first row's number in the file. An image cell that cannot be read
    has a URI that says so (`cells.unreadable`), a photo without a version the token "". Raises InputError for values
    that no later step can hold.
    """
    cells = _cells(batch.column(columns.image), columns, place, config, first_row=first_row, lines=lines)
    token = cells.token
    if columns.version is not None:
        token = _version_tokens(batch.column(columns.version), columns.version, cells, place, first_row)
    key = _usable(text_column(batch.column(columns.item_id)), columns.item_id, place, first_row)
    count = len(cells.parent)
    held = {
        "item_id": pc.if_else(pc.equal(key, ""), pa.scalar(None, pa.string()), key),
        **{
            name: _usable(
                stored_column(batch.column(name), "category" if name == config.category else "attribute"),
                name,
                place,
                first_row,
            )
            for name in columns.attributes
        },
    }
    parents = pa.table(held)
    if count != batch.num_rows or not np.array_equal(cells.parent, np.arange(count)):
        parents = take_rows(parents, pa.array(cells.parent))
    source = null_text(count)
    if cells.embedded.any():
        source = pc.if_else(pa.array(cells.embedded), same_text(place.uri, count), source)
    numbers = (place.number << ROW_BITS) + first_row + cells.parent
    made = [
        parents.column("item_id"),
        cells.uri,
        token,
        source,
        cells.offset,
        cells.length,
        cells.signed,
        pa.array(numbers, pa.int64()),
        *(parents.column(name) for name in columns.attributes),
    ]
    return pa.table(made, names=[*ROWS.names, *columns.attributes])


def _cells(
    column: pa.ChunkedArray,
    columns: Columns,
    place: Place,
    config: CatalogueConfig,
    *,
    first_row: int,
    lines: Lines | None,
) -> _Cells:
    if columns.image_kind == "struct":
        return _structs(column, columns, place, config, first_row=first_row)
    if columns.image_kind == "bytes":
        digests = [_digest(value) for chunk in photo_bytes(column).chunks for value in chunk]
        return _embedded(digests, np.arange(len(digests)), first_row=first_row)
    if columns.image_kind == "uris":
        parent, texts = _flatten(_one(text_lists(column)))
        _usable(pa.chunked_array([texts]), columns.image, place, first_row, rows=parent)
    else:
        texts = _one(_usable(text_column(column), columns.image, place, first_row))
        texts = blank_as_null(texts)
        parent = np.arange(len(texts))
        if config.image_separator is not None:
            parent, texts = _flatten(split_addresses(texts, config.image_separator))
        # Before lists are opened: one photo a line is found again by its line.
        data = as_numpy(pc.fill_null(pc.starts_with(texts, "data:"), False)) if lines is not None else None
        lists = lists_in_text(texts)
        if lists is not None:
            within, texts = _flatten(lists)
            parent = parent[within]
            data = None if data is None else data[within]
        if data is not None and data.any() and lines is not None:
            return _with_data(parent, texts, data, lines, place, config)
    uris = _resolved(texts, place, config)
    none = pa.nulls(len(texts), pa.int64())
    return _Cells(
        parent=parent,
        uri=uris.identity,
        token=pa.nulls(len(texts), pa.string()),
        offset=none,
        length=none,
        signed=uris.signed,
        embedded=np.zeros(len(texts), dtype=np.bool_),
    )


def _usable(
    column: pa.ChunkedArray, name: str, place: Place, first_row: int, *, rows: np.ndarray | None = None
) -> pa.ChunkedArray:
    """Return a stored column; raises InputError naming the rows whose values no later step can hold.

    rows: int64 [n], the batch row of each value; None: they stand in order.
    """
    found = unusable_values(column)
    if found is None:
        return column
    bad, why = found
    numbers = (np.arange(len(column)) if rows is None else rows) + first_row
    first = int(np.flatnonzero(bad)[0])
    raise InputError(
        f"{shown_rows(numbers, bad, place.uri)}: the column {name!r} holds {shown_cell(column[first])}, which {why}"
    )


def _embedded(digests: list[str | None], offsets: np.ndarray, *, first_row: int) -> _Cells:
    names = pa.array([None if digest is None else f"sha256:{digest}" for digest in digests], pa.string())
    held = np.array([digest is not None for digest in digests], dtype=np.bool_)
    offset = pa.array(offsets + first_row, pa.int64(), mask=~held)
    none = pa.nulls(len(digests), pa.int64())
    return _Cells(np.arange(len(digests)), names, names, offset, none, none.cast(pa.string()), held)


def _structs(
    column: pa.ChunkedArray, columns: Columns, place: Place, config: CatalogueConfig, *, first_row: int
) -> _Cells:
    """Photos as {bytes, path}: the bytes where there are some, else the path, which starts at the table's folder."""
    digests = [_digest(value) for chunk in photo_bytes(column).chunks for value in chunk]
    held = _embedded(digests, np.arange(len(digests)), first_row=first_row)
    paths = _one(_usable(photo_paths(column), columns.image, place, first_row))
    uris = _resolved(blank_as_null(paths), place, config)
    return replace(held, uri=pc.coalesce(held.uri, uris.identity), signed=uris.signed)


def _with_data(
    parent: np.ndarray,
    texts: pa.Array,
    data: np.ndarray,
    lines: Lines,
    place: Place,
    config: CatalogueConfig,
) -> _Cells:
    """JSON lines may hold photos as base64 `data:` URIs, each found again by its line's bytes."""
    named = {number: _data_name(texts[number].as_py()) for number in np.flatnonzero(data).tolist()}
    data = data.copy()
    data[[number for number, name in named.items() if not name.startswith("sha256:")]] = False
    names = pa.array([named.get(number) for number in range(len(texts))], pa.string())
    # What is no base64 is resolved like any other text: to a URI that says so.
    uris = _resolved(pc.if_else(pa.array(data), pa.scalar(None, pa.string()), pc.coalesce(names, texts)), place, config)
    embedded = pc.if_else(pa.array(data), names, pa.scalar(None, pa.string()))
    return _Cells(
        parent,
        pc.coalesce(embedded, uris.identity),
        embedded,
        pa.array(lines.start[parent], pa.int64(), mask=~data),
        pa.array(lines.length[parent], pa.int64(), mask=~data),
        uris.signed,
        data,
    )


def _data_name(text: str) -> str:
    try:
        return f"sha256:{hashlib.sha256(decode_data_uri(text)).hexdigest()}"
    except ValueError:
        return unreadable("data", text)


def _digest(value: Any) -> str | None:
    buffer = value.as_buffer()
    return None if buffer is None else hashlib.sha256(buffer).hexdigest()


def _resolved(texts: pa.Array, place: Place, config: CatalogueConfig) -> Uris:
    valid = pc.is_valid(texts)
    found = absolute_uris(texts.drop_null(), place.base, config)
    if pc.all(valid).as_py():
        return found
    none = pa.nulls(len(texts), pa.string())
    return Uris(pc.replace_with_mask(none, valid, found.identity), pc.replace_with_mask(none, valid, found.signed))


def _flatten(lists: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Return (batch row, text) of every member of a column of lists, in order; a list without any text gives a null."""
    rows = len(lists)
    parent = as_numpy(pc.list_parent_indices(lists)).astype(np.int64)
    texts = _one(pa.chunked_array([pc.list_flatten(lists)]).cast(pa.string()))
    texts = blank_as_null(texts)
    valid = as_numpy(pc.is_valid(texts))
    without = np.setdiff1d(np.arange(rows), parent[valid])
    texts = pa.concat_arrays([texts.drop_null(), pa.nulls(len(without), pa.string())])
    parent = np.concatenate([parent[valid], without])
    order = np.argsort(parent, kind="stable")
    return parent[order], texts.take(pa.array(order))


def _one(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return whole if isinstance(whole, pa.Array) else pa.concat_arrays(whole.chunks)


def _version_tokens(column: pa.ChunkedArray, name: str, cells: _Cells, place: Place, first_row: int) -> pa.Array:
    """Tokens of URIs are `version:<value>`; embedded photos keep their digests, which say more."""
    values = _one(_usable(text_column(column), name, place, first_row)).take(pa.array(cells.parent))
    values = blank_as_null(values)
    named = pc.binary_join_element_wise(pa.scalar("version:"), values, pa.scalar(""))
    named = pc.fill_null(named, "")  # refused later as `no_version`
    named = pc.if_else(pc.is_valid(cells.uri), named, pa.scalar(None, pa.string()))
    return pc.coalesce(cells.token, named)

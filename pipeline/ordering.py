"""Rows of Arrow tables: sorting, taking, ranking and slicing without ever joining 2 GB of text in one array."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Positions = npt.NDArray[np.int64]

# Rows handled at a time: bounds what is held beside a table of any length, and keeps every array of strings far
# below the 2 GB that 32-bit offsets can address.
SLICE_ROWS = 1 << 19
_WIDE = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}


def sorted_by(table: pa.Table, name: str) -> pa.Table:
    """Return the table ordered by one column (UTF-8 byte order for text); equal keys keep their order."""
    column = table.column(name)
    if len(column) < 2 or pc.all(pc.less_equal(column.slice(0, len(column) - 1), column.slice(1))).as_py():
        return table
    return take_rows(table, pc.sort_indices(column))


def take_rows(table: pa.Table, positions: Positions | pa.Array | pa.ChunkedArray) -> pa.Table:
    """Return the rows at `positions` in that order, with the table's own schema; a null position gives a row of nulls.

    `Table.take` joins a column's chunks first: it fails where its strings pass 2 GiB, about 10 million long URIs, and
    copies all of them however few are taken. Here what is held beside the result is a slice of it, and where half of a
    chunk or more is taken, its runs are shared, not copied.
    """
    plain = isinstance(positions, np.ndarray)
    places = (positions if plain else as_numpy(positions, missing=-1)).astype(np.int64, copy=False)
    if len(places) and (places.min() < (0 if plain else -1) or places.max() >= len(table)):
        raise IndexError(f"rows {places.min()} to {places.max()} are asked for, of {len(table)}")
    columns = [_take(column, places) for column in table.columns]
    return pa.Table.from_arrays(columns, schema=table.schema)


def take_column(column: pa.ChunkedArray, positions: Positions | pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the values at `positions`, as `take_rows` does for a table."""
    return take_rows(pa.table({"taken": column}), positions).column(0)


def joined(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return a column as one array, texts as large_string, whose offsets no number of rows can overflow."""
    chunks = [column] if isinstance(column, pa.Array) else column.chunks
    kind = _WIDE.get(column.type)
    if kind is None:
        return pa.concat_arrays([pa.nulls(0, column.type), *chunks])
    return pa.concat_arrays([pa.nulls(0, kind), *(pc.cast(chunk, kind) for chunk in chunks)])


def keep_rows(table: pa.Table, mask: np.ndarray) -> pa.Table:
    """Return the rows where a NumPy mask is true; the table itself when that is all of them."""
    return table if bool(mask.all()) else table.filter(pa.array(mask))


def run_starts(column: pa.ChunkedArray) -> np.ndarray:
    """Return bool [n]: whether a row's value differs from the row before; the first always does."""
    starts = np.ones(len(column), dtype=np.bool_)
    if len(column) > 1:
        differs = pc.not_equal(column.slice(1), column.slice(0, len(column) - 1))
        starts[1:] = as_numpy(differs)
    return starts


def positions_in_runs(starts: np.ndarray) -> np.ndarray:
    """Return int64 [n]: how many rows of its own run come before each row."""
    place = np.arange(len(starts), dtype=np.int64)
    return place - np.maximum.accumulate(np.where(starts, place, 0))


def as_numpy(column: Any, missing: Any = None) -> np.ndarray:
    """Return an Arrow column as a NumPy array, nulls as `missing`; without it the column has none."""
    filled = column if missing is None or not column.null_count else pc.fill_null(column, missing)
    chunked = isinstance(filled, pa.ChunkedArray)
    values: np.ndarray = filled.to_numpy() if chunked else filled.to_numpy(zero_copy_only=False)
    return values


def ranks(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Return (each row's rank among the column's distinct texts, in text order, -1 for null; those texts in order)."""
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    encoded = encoded.unify_dictionaries()
    words = encoded.chunk(0).dictionary if encoded.num_chunks else pa.array([], pa.string())
    chunks = [np.asarray(pc.fill_null(chunk.indices, len(words)).to_numpy()) for chunk in encoded.chunks]
    places = np.concatenate(chunks) if chunks else np.empty(0, dtype=np.int64)
    used = np.bincount(places, minlength=len(words) + 1)[:-1] > 0  # a dictionary may hold words of rows that are gone
    order = np.asarray(pc.sort_indices(words))
    order = order[used[order]]
    rank = np.full(len(words) + 1, -1, dtype=np.int64)  # the last one is that of a null
    rank[order] = np.arange(len(order))
    return rank[places], words.take(pa.array(order)).to_pylist()


def aligned_slices(name: str, *tables: pa.Table, rows: int = SLICE_ROWS) -> Iterator[tuple[pa.Table, ...]]:
    """Yield the tables, each sorted by the column `name`, slice by slice, all cut at the same keys.

    rows: of a slice of the longest table, about.
    """
    edges = [*item_boundaries(max(tables, key=len).column(name), rows), None]
    starts = [0] * len(tables)
    for edge in edges:
        ends = [len(table) if edge is None else first_at_least(table.column(name), edge) for table in tables]
        yield tuple(table.slice(a, b - a) for table, a, b in zip(tables, starts, ends, strict=True))
        starts = ends


def first_at_least(column: pa.ChunkedArray, key: str) -> int:
    """Return the first row of a sorted column of text whose value is not below `key`, by bisection."""
    low, high = 0, len(column)
    wanted = key.encode()
    while low < high:
        middle = (low + high) // 2
        if column[middle].as_py().encode() < wanted:
            low = middle + 1
        else:
            high = middle
    return low


def item_boundaries(keys: pa.ChunkedArray, rows: int = SLICE_ROWS) -> Iterator[str]:
    """Yield the keys at which a sorted table is cut into slices of about `rows` rows, never inside an item."""
    previous = None
    for start in range(rows, len(keys), rows):
        key = keys[start].as_py()
        if key != previous:
            yield key
        previous = key


def _take(column: pa.ChunkedArray, places: Positions) -> pa.ChunkedArray:
    """Return the values at `places`, null where a place is -1."""
    ends = np.cumsum([0, *(len(chunk) for chunk in column.chunks)])
    shared = _mostly_taken(ends, places)
    pieces = [
        piece
        for start in range(0, len(places), SLICE_ROWS)
        for piece in _take_slice(column, ends, places[start : start + SLICE_ROWS], shared)
    ]
    return pa.chunked_array(pieces, type=column.type)


def _mostly_taken(ends: Positions, places: Positions) -> npt.NDArray[np.bool_]:
    """Return for each chunk whether the result may hold on to it: half of its rows are in it or more, in order."""
    if not len(places) or places[0] < 0 or not (places[1:] > places[:-1]).all():
        return np.zeros(len(ends) - 1, np.bool_)
    return np.asarray(2 * np.diff(np.searchsorted(places, ends)) >= np.diff(ends))


def _take_slice(
    column: pa.ChunkedArray, ends: Positions, places: Positions, shared: npt.NDArray[np.bool_]
) -> list[pa.Array]:
    """Return the values at a slice of places, a piece a chunk; runs of `shared` chunks are not copied."""
    ascending = bool((places[1:] >= places[:-1]).all()) and places[0] >= 0
    order = np.arange(len(places)) if ascending else np.argsort(places, kind="stable")
    order = order[np.searchsorted(places[order], 0) :]  # without the nulls
    wanted = places[order]
    cuts = np.searchsorted(wanted, ends)
    found = []
    for number in np.flatnonzero(np.diff(cuts)).tolist():
        chunk, rows = column.chunk(number), wanted[cuts[number] : cuts[number + 1]] - ends[number]
        run = shared[number] and rows[-1] - rows[0] == len(rows) - 1
        found.append(chunk.slice(int(rows[0]), len(rows)) if run else chunk.take(pa.array(rows)))
    if ascending:
        return found
    back = np.full(len(places), -1, dtype=np.int64)
    back[order] = np.arange(len(order))
    whole = joined(pa.chunked_array(found, type=column.type)).take(pa.array(back, mask=back < 0))
    return [whole if whole.type == column.type else pc.cast(whole, column.type)]

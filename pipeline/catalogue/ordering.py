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


def sorted_by(table: pa.Table, name: str) -> pa.Table:
    """Return the table ordered by one column (UTF-8 byte order for text); equal keys keep their order."""
    column = table.column(name)
    if len(column) < 2 or pc.all(pc.less_equal(column.slice(0, len(column) - 1), column.slice(1))).as_py():
        return table
    return take_rows(table, pc.sort_indices(column))


def take_rows(table: pa.Table, positions: Positions | pa.Array) -> pa.Table:
    """Return the rows at `positions` (integers without nulls), in that order, with the table's own schema.

    `Table.take` joins a column's chunks first and fails where its strings pass 2 GiB, about 10 million long URIs.
    """
    indices = pa.array(positions, pa.int64()) if isinstance(positions, np.ndarray) else positions
    columns = [_take(column, indices) for column in table.columns]
    return pa.Table.from_arrays(columns, schema=table.schema)


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
    encoded = column.dictionary_encode().unify_dictionaries()
    words = encoded.chunk(0).dictionary if encoded.num_chunks else pa.array([], pa.string())
    order = np.asarray(pc.sort_indices(words))
    rank = np.empty(len(words) + 1, dtype=np.int64)
    rank[order] = np.arange(len(words))
    rank[-1] = -1  # where the index is null
    chunks = [np.asarray(pc.fill_null(chunk.indices, len(words)).to_numpy()) for chunk in encoded.chunks]
    codes = rank[np.concatenate(chunks)] if chunks else np.empty(0, dtype=np.int64)
    return codes, words.take(pa.array(order)).to_pylist()


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


def _take(column: pa.ChunkedArray, indices: Any) -> pa.ChunkedArray:
    wide = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}.get(column.type)
    whole = (column if wide is None else pc.cast(column, wide)).combine_chunks()
    pieces = []
    for start in range(0, len(indices), SLICE_ROWS):
        piece = whole.take(indices.slice(start, SLICE_ROWS))
        pieces.append(piece if wide is None else pc.cast(piece, column.type))
    return pa.chunked_array(pieces, type=column.type)

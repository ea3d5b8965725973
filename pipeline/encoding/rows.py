"""Rows of tables that may hold more text than one Arrow string array can (2 GiB): filter and take without overflow."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Positions = npt.NDArray[np.int64]

_BATCH = 500_000  # rows taken at a time; their strings must fit 32-bit offsets
_LARGE = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}


def take_rows(table: pa.Table, positions: Positions) -> pa.Table:
    """Return the rows at `positions`, in that order, with the table's own schema.

    `Table.take` joins a column's chunks first and fails where its strings pass 2 GiB, about 10 million long URIs.
    """
    joined = _widened(table).combine_chunks()  # once: `take` would join the chunks again for every batch
    batches = (positions[start : start + _BATCH] for start in range(0, len(positions), _BATCH))
    pieces = [joined.take(pa.array(batch, pa.int64())).cast(table.schema) for batch in batches]
    return pa.concat_tables(pieces) if pieces else table.schema.empty_table()


def to_numpy(column: pa.ChunkedArray, missing: Any = None) -> npt.NDArray[Any]:
    """Return a column of numbers or booleans as one NumPy array, nulls as `missing`."""
    filled = column if missing is None or not column.null_count else pc.fill_null(column, missing)
    return np.asarray(filled.to_numpy())


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


def _widened(table: pa.Table) -> pa.Table:
    fields = [field.with_type(_LARGE.get(field.type, field.type)) for field in table.schema]
    return table.cast(pa.schema(fields, table.schema.metadata))

"""Gathering the latents that an items table names, from many parts into one matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import IntegrityError
from ..parts import read_part
from ..storage import Store
from .latents import LatentArrays, Rows

_COLUMNS = ("mean", "log_var", "codes")


def gather_latents(
    store: Store, items: pa.Table, *, columns: Sequence[str] = ("mean",), threads: int = 8
) -> LatentArrays:
    """Return the latents of every row of `items`, in its order: mean float32 [n, d] and what else is asked.

    items: columns item_id, latents_part, latents_row. columns: of mean, log_var, codes (`mean` always comes along).
    Each part is read once, by at most `threads` readers; memory is the result and that many parts. No rows give
    mean [0, 0]. Raises IntegrityError when a part lacks a column or a named row, or holds another item there.
    """
    wanted = [name for name in _COLUMNS if name in {"mean", *columns}]
    if items.num_rows == 0:
        return LatentArrays(mean=np.empty((0, 0), np.float32))
    parts = items.column("latents_part").combine_chunks().dictionary_encode()
    ids = items.column("item_id")
    rows = items.column("latents_row").to_numpy().astype(np.int64)
    result: dict[str, NDArray[np.generic]] = {}
    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="gather") as pool:
        waiting: dict[Future[dict[str, NDArray[np.generic]]], Rows] = {}
        for part, places in _by_part(parts):
            if len(waiting) >= threads:  # a finished part is scattered before another is read
                _scatter(waiting, result, items.num_rows)
            expected = ids.take(pa.array(places))
            waiting[pool.submit(_read, store, part, rows[places], expected, wanted)] = places
        while waiting:
            _scatter(waiting, result, items.num_rows)
    return LatentArrays(
        mean=result["mean"].astype(np.float32, copy=False),
        log_var=result["log_var"].astype(np.float32, copy=False) if "log_var" in result else None,
        codes=result["codes"].astype(np.int32, copy=False) if "codes" in result else None,
    )


def part_rows(table: pa.Table, name: str) -> NDArray[np.generic]:
    """Return a column of fixed-size lists as a matrix [rows, size]."""
    column = table.column(name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # no chunk, or several in older Arrow
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    values: NDArray[np.generic] = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), column.type.list_size)


def _by_part(parts: pa.DictionaryArray) -> list[tuple[str, Rows]]:
    """Return every part's name with the places in `items` that it fills."""
    codes = parts.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    cuts = np.flatnonzero(np.diff(codes[order])) + 1
    names = parts.dictionary
    return [(names[int(codes[places[0]])].as_py(), places) for places in np.split(order, cuts)]


def _read(
    store: Store, part: str, rows: Rows, expected: pa.ChunkedArray, wanted: Sequence[str]
) -> dict[str, NDArray[np.generic]]:
    table = read_part(store, part, ["item_id", *wanted])
    if rows.max() >= table.num_rows or rows.min() < 0:
        raise IntegrityError(f"{part} has {table.num_rows} rows, but items names its row {rows.max()}")
    held = table.column("item_id").take(pa.array(rows))
    if not pc.all(pc.equal(held, expected.cast(held.type))).as_py():
        raise IntegrityError(f"{part} holds other items in the rows that items names; the two do not belong together")
    return {name: part_rows(table, name)[rows] for name in wanted}


def _scatter(
    waiting: dict[Future[dict[str, NDArray[np.generic]]], Rows], result: dict[str, NDArray[np.generic]], total: int
) -> None:
    """Move every finished part's rows to their places, once at least one has finished."""
    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
    for future in done:
        places = waiting.pop(future)
        for name, values in future.result().items():
            if name not in result:
                result[name] = np.empty((total, values.shape[1]), values.dtype)
            matrix = result[name]
            if matrix.shape[1] != values.shape[1]:
                raise IntegrityError(
                    f"parts hold {name} of {matrix.shape[1]} and of {values.shape[1]} values; one release has one model"
                )
            matrix[places] = values


def latents_table(places: pa.Table, path_of: Callable[[str], str], *, dim: int) -> pa.Table:
    """Return item_id, uri, view and the latents of every row of `places`, in its order.

    places: columns item_id, uri, view, latents_part, latents_row. path_of: a part's name -> its local path. dim: length
    of a mean, for a table without rows. Raises IntegrityError when a part holds another photo in a named row.
    """
    described = places.select(["item_id", "uri", "view"])
    names = np.asarray(places["latents_part"].to_pylist(), object)
    found = []
    for name in dict.fromkeys(names.tolist()):
        here = pa.array(np.flatnonzero(names == name))
        held = read_rows(path_of(name), places["latents_row"].take(here).to_numpy().astype(np.int64))
        for key in ("item_id", "uri"):
            if held[key].to_pylist() != places[key].take(here).to_pylist():
                raise IntegrityError(f"{name} holds other photos in the rows that items names")
        kept = [column for column in _COLUMNS if column in held.column_names]
        found.append(held.select(kept).append_column("place", here))
    if not found:
        return described.append_column("mean", pa.array([], pa.list_(pa.float32(), dim)))
    values = pa.concat_tables(found)
    values = values.take(pc.sort_indices(values["place"])).drop_columns(["place"])
    for column in values.column_names:
        described = described.append_column(values.schema.field(column), values[column])
    return described.combine_chunks()


def read_rows(source: Any, rows: Rows, columns: Sequence[str] | None = None) -> pa.Table:
    """Return these rows of a local Parquet file, in this order; only the row groups that hold them are read.

    source: its path, or an Arrow file of its bytes. Raises IntegrityError when the file has fewer rows.
    """
    with pq.ParquetFile(source) as file:
        meta = file.metadata
        if len(rows) and (rows.max() >= meta.num_rows or rows.min() < 0):
            raise IntegrityError(f"{source} has {meta.num_rows} rows, but row {rows.max()} is asked for")
        starts = np.cumsum([0, *(meta.row_group(group).num_rows for group in range(meta.num_row_groups))])
        holding = np.searchsorted(starts, rows, side="right") - 1
        groups = np.unique(holding)
        table = file.read_row_groups(groups.tolist(), columns=None if columns is None else list(columns))
    # Where each read group begins in `table`.
    offsets = np.concatenate([[0], np.cumsum(starts[groups + 1] - starts[groups])[:-1]]) if len(groups) else groups
    return table.take(pa.array(rows - starts[holding] + offsets[np.searchsorted(groups, holding)]))

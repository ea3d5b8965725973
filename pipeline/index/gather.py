"""Gathering the latents that an items table names, from many parts into one matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import IntegrityError
from ..ordering import ranks, take_column, take_rows
from ..parts import read_part, read_part_rows, read_rows
from ..storage import Store
from .latents import LatentArrays, Rows, latents_matrix

_COLUMNS = ("mean", "log_var", "codes")
_TYPES: Mapping[str, Any] = {"mean": np.float32, "log_var": np.float32, "codes": np.int32}


def gather_latents(
    store: Store, items: pa.Table, *, columns: Sequence[str] = ("mean",), threads: int = 8, some: bool = False
) -> LatentArrays:
    """Return the latents of every row of `items`, in its order: mean float32 [n, d] and what else is asked.

    items: columns item_id, latents_part, latents_row. columns: of mean, log_var, codes (`mean` always comes along).
    Each part is read once, by at most `threads` readers; memory is the result and that many parts, of a result above
    HELD_BYTES the parts alone: that one lies on the disk, where temporary files do. some: of each part only the row
    groups are read that hold what is asked. No rows give [0, 0]. Raises
    IntegrityError when a part lacks a column or a named row, or holds another item there; Unavailable for a full disk.
    """
    wanted = [name for name in _COLUMNS if name in {"mean", *columns}]
    if items.num_rows == 0:
        empty: dict[str, Any] = {name: np.empty((0, 0), np.int32 if name == "codes" else np.float32) for name in wanted}
        return LatentArrays(**empty)
    codes, names = ranks(items.column("latents_part"))
    order = np.argsort(codes, kind="stable")
    # Once in the parts' order, so that what a part is checked against is a slice.
    asked = take_rows(items.select(["item_id", "latents_row"]), order)
    bounds = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=len(names)))]).tolist()
    result: dict[str, Any] = {}
    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="gather") as pool:
        waiting: dict[Future[dict[str, NDArray[np.generic]]], Rows] = {}
        for name, start, end in zip(names, bounds[:-1], bounds[1:], strict=True):
            if len(waiting) >= threads:  # a finished part is scattered before another is read
                _scatter(waiting, result, items.num_rows)
            future = pool.submit(_read, store, name, asked.slice(start, end - start), wanted, some=some)
            waiting[future] = order[start:end]
        while waiting:
            _scatter(waiting, result, items.num_rows)
    return LatentArrays(**result)


def part_rows(table: pa.Table, name: str) -> NDArray[np.generic]:
    """Return a column of fixed-size lists as a matrix [rows, size]."""
    column = table.column(name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # no chunk, or several in older Arrow
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    values: NDArray[np.generic] = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), column.type.list_size)


def _read(
    store: Store, part: str, asked: pa.Table, wanted: Sequence[str], *, some: bool
) -> dict[str, NDArray[np.generic]]:
    """Return the latents of a part's rows; asked: item_id and latents_row of these, in the order of the result."""
    rows = asked["latents_row"].to_numpy().astype(np.int64)
    if some:
        table, rows = read_part_rows(store, part, rows, ["item_id", *wanted]), np.arange(len(rows))
    else:
        table = read_part(store, part, ["item_id", *wanted])
    if rows.max() >= table.num_rows or rows.min() < 0:
        raise IntegrityError(f"{part} has {table.num_rows} rows, but items names its row {rows.max()}")
    held = take_column(table["item_id"], rows)
    if not pc.all(pc.equal(held, asked["item_id"].cast(held.type))).as_py():
        raise IntegrityError(f"{part} holds other items in the rows that items names; the two do not belong together")
    return {name: part_rows(table, name)[rows] for name in wanted}


def _scatter(waiting: dict[Future[dict[str, NDArray[np.generic]]], Rows], result: dict[str, Any], total: int) -> None:
    """Move every finished part's rows to their places, once at least one has finished."""
    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
    for future in done:
        places = waiting.pop(future)
        for name, values in future.result().items():
            if name not in result:
                result[name] = latents_matrix(total, values.shape[1], _TYPES[name])
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

"""One vector an item: its photos combined as the metric says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ..index import LatentArrays, gather_latents
from ..index.latents import Float32, Float64
from ..index.means import at_length_one
from ..index.segments import TASK_BYTES
from ..index.space import BLOCK, Space
from ..mapping import Scratch, mapped_in_turn
from ..ordering import run_starts, take_column
from ..release import ReleaseFile
from ..release.tables import FILE_ROWS, FINE, table_files, write_table
from ..schema import vectors_schema
from ..storage import Store
from .pieces import Pieces, Waiting, packed, unpacked, waiting
from .stored_vectors import StoredVectors, Vectors
from .tonight import Night

_ROWS = 1 << 17  # photos whose latents are float64 at a time, about


@dataclass(frozen=True, slots=True)
class ItemVectors:
    """Items in the order of item_id. item_ids: text [n]; first_rows int64 [n]: of each item in items; vectors float32
    [n, d], of many items in the files of their table."""

    item_ids: pa.ChunkedArray
    first_rows: np.ndarray
    vectors: Vectors


def item_vectors(items: pa.Table, latents: LatentArrays, *, metric: str) -> ItemVectors:
    """Return one vector an item: the mean of its photos' latents; for `cosine` of their directions, at length 1.

    items: sorted by item_id, one row a photo; latents: of these rows. An item's vector depends on its own photos only,
    to the bit. Photos that point in opposite ways, so that nothing is left, give the zero vector.
    """
    first = np.flatnonzero(run_starts(items["item_id"]))
    vectors = np.empty((len(first), latents.mean.shape[1]), np.float32)
    ends = np.append(first[1:], items.num_rows)
    start = 0
    while start < len(first):
        stop = max(start + 1, int(np.searchsorted(ends, first[start] + _ROWS, side="right")))
        photos = latents.mean[first[start] : ends[stop - 1]].astype(np.float64)
        if metric == "cosine":
            photos = at_length_one(photos)
        counts = (ends[start:stop] - first[start:stop])[:, None]
        middle: Float64 = np.add.reduceat(photos, first[start:stop] - first[start], axis=0) / counts
        vectors[start:stop] = at_length_one(middle) if metric == "cosine" else middle
        start = stop
    return ItemVectors(take_column(items["item_id"], first), first, vectors)


def vectors_table(item_ids: pa.ChunkedArray, vectors: Float32) -> pa.Table:
    """Return the table `vectors`: item_id, vector [d]; one row an item, in the order of item_id."""
    schema = vectors_schema(vectors.shape[1])
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    return pa.table([item_ids, values], schema=schema)


@dataclass(frozen=True, slots=True)
class NightVectors:
    """A night's item vectors, and the files of the table `vectors`."""

    found: ItemVectors
    files: Iterator[ReleaseFile]


def night_vectors(store: Store, night: Night) -> NightVectors:
    """Return a night's vectors; of more items than a file holds Ray tasks make them, a file each, where Ray is.

    Such a task reads the latents of its items where they lie on the store. Raises what `gather_latents` does.
    """
    first = np.flatnonzero(run_starts(night.items["item_id"]))
    scratch = Scratch.of_run(store, night.run, -(-len(first) // FILE_ROWS))
    if scratch is None:
        found = item_vectors(night.items, night.latents, metric=night.metric)
        table = vectors_table(found.item_ids, np.asarray(found.vectors))
        return NightVectors(found, table_files(table, looked_up=True))
    asked = _Asked(scratch, night.metric, night.space)
    pieces = Pieces(scratch)
    tasks = list(_pieces_of(first, night.items.num_rows))
    photos = max(piece.stop - piece.start for piece in tasks)
    width = 4 * night.latents.mean.shape[1]
    for one in mapped_in_turn(
        _file_of,
        asked,
        (_rows(night.items, piece, rotated=night.space is not None) for piece in tasks),
        scratch=scratch,
        task_bytes=TASK_BYTES + width * (2 * photos + 3 * FILE_ROWS),
        while_doing="making the vectors of items",
    ):
        pieces.add(one)
    vectors = StoredVectors(store, pieces.waiting, night.latents.mean.shape[1])
    return NightVectors(ItemVectors(take_column(night.items["item_id"], first), first, vectors), pieces.files())


@dataclass(frozen=True, slots=True)
class _Asked:
    """What tasks share. space: the rotation that latents go through, None where they are as the model gave them."""

    scratch: Scratch
    metric: str
    space: Space | None


def _pieces_of(first: np.ndarray, photos: int) -> Iterator[range]:
    """Yield the rows of items of each file. first: the first row of every item."""
    ends = np.append(first, photos)
    for start in range(0, len(first), FILE_ROWS):
        yield range(int(ends[start]), int(ends[min(start + FILE_ROWS, len(first))]))


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of items as they travel. data: Arrow's stream of their places; wanted: those that are asked for."""

    data: pa.Buffer
    wanted: range


def _rows(items: pa.Table, wanted: range, *, rotated: bool) -> _Rows:
    """Return rows of items; where they are to be rotated, with those beside them that make up whole blocks."""
    start, stop = wanted.start, wanted.stop
    if rotated:
        start, stop = start - start % BLOCK, min(items.num_rows, stop + -stop % BLOCK)
    table = items.select(["item_id", "latents_part", "latents_row"]).slice(start, stop - start)
    return _Rows(packed(table), range(wanted.start - start, wanted.stop - start))


def _file_of(asked: _Asked, rows: _Rows) -> ReleaseFile | Waiting:
    """Make the file of some items: as the whole catalogue's vectors have them, to the bit."""
    items = unpacked(rows.data)
    latents = gather_latents(asked.scratch.store, items, threads=1, some=True)
    if asked.space is not None:
        latents = asked.space.rotated(latents)
    mine = latents.take(np.s_[rows.wanted.start : rows.wanted.stop])
    found = item_vectors(items.slice(rows.wanted.start, len(rows.wanted)), mine, metric=asked.metric)
    table = vectors_table(found.item_ids, np.asarray(found.vectors))
    file = ReleaseFile(write_table(table, group_rows=FINE), ".parquet", table.num_rows)
    return waiting(asked.scratch, "vectors", file)

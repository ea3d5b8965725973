"""One vector an item: its photos combined as the metric says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ..index import LatentArrays
from ..index.latents import Float32, Float64
from ..index.means import at_length_one
from ..ordering import run_starts, take_column
from ..schema import vectors_schema

_ROWS = 1 << 17  # photos whose latents are float64 at a time, about


@dataclass(frozen=True, slots=True)
class ItemVectors:
    """Items in the order of item_id. item_ids: text [n]; first_rows int64 [n]: of each item in items; vectors float32
    [n, d]."""

    item_ids: pa.ChunkedArray
    first_rows: np.ndarray
    vectors: Float32


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


def vectors_table(found: ItemVectors) -> pa.Table:
    """Return the table `vectors`: item_id, vector [d]; one row an item, in the order of item_id."""
    schema = vectors_schema(found.vectors.shape[1])
    values = pa.FixedSizeListArray.from_arrays(pa.array(found.vectors.reshape(-1)), found.vectors.shape[1])
    return pa.table([found.item_ids, values], schema=schema)

"""The nearest items of sampled items as the reader answers them, kept so that the next night can compare."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...index import Grouping, SearchIndex, nearest_groups
from ...index.metrics import WITH_CODE
from ...ordering import take_column
from ...schema import NEIGHBOURS, table_schema
from ...tables import Night

Rows = NDArray[np.int64]
ROLE = "asked_neighbours"


@dataclass(frozen=True, slots=True)
class AskedNeighbours:
    """Items and their nearest others. items [q]: item numbers, ascending; near int64 [q, k], -1 where there is none;
    scores float64 [q, k], larger is nearer, -inf there."""

    items: Rows
    near: Rows
    scores: NDArray[np.float64]


def ask_neighbours(index: SearchIndex, groups: Grouping, items: Rows, k: int) -> AskedNeighbours:
    """Return the k nearest other items of items [q] in the index whose row r belongs to the item groups.numbers[r].

    All photos of an item ask, and a pair's score is its best pair of photos, as the reader's `similar` has it.
    """
    rows = np.flatnonzero(np.isin(groups.numbers, items))
    owners = np.searchsorted(items, groups.numbers[rows])
    answers = nearest_groups(index, index.latents(rows), owners, k + 1, groups)
    near = np.full((len(items), k), -1, np.int64)
    scores = np.full((len(items), k), -np.inf)
    for place, (own, hits) in enumerate(zip(items.tolist(), answers, strict=True)):
        kept = np.flatnonzero(hits.groups != own)[:k]  # itself is no neighbour, wherever among the ties it stands
        near[place, : len(kept)], scores[place, : len(kept)] = hits.groups[kept], hits.scores[kept]
    return AskedNeighbours(items, near, scores)


def asked_table(found: AskedNeighbours, item_ids: pa.ChunkedArray) -> pa.Table:
    """Return the answers as a release's table, of schema.NEIGHBOURS; item_ids: text [items], by number."""
    there = found.near >= 0
    places, columns = np.nonzero(there)
    arrays = [
        take_column(item_ids, found.items[places]),
        pa.array(columns.astype(np.int32) + 1),
        take_column(item_ids, found.near[there]),
        pa.array(found.scores[there]),
    ]
    return pa.table(arrays, schema=table_schema(NEIGHBOURS))


def same_space(night: Night) -> bool:
    """Return whether the parent's scores are comparable: one bundle, one metric, and for `codes` one set of weights."""
    parent = night.parent
    if parent is None or parent.model_id != night.model_id or parent.metric != night.index.metric.name:
        return False
    # Rare codes weigh more, so that a score by `codes` depends on the whole catalogue.
    return WITH_CODE not in parent.index_parameters

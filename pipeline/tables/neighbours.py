"""The nearest items of every item, by the release's own index; of an exact one's lists those that stand are kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ..index import Grouping, SearchIndex, nearest_groups
from ..index.latents import Rows
from ..index.segments import TASK_BYTES
from ..mapping import Scratch, mapped_in_turn
from ..ordering import run_starts, take_column
from ..release import ReleaseFile
from ..release.tables import FILE_ROWS, write_table
from ..schema import NEIGHBOURS, table_schema
from ..storage import Store
from .pieces import Pieces, Waiting, waiting
from .standing import (
    BEYOND,
    BEYOND_ROLE,
    Fresh,
    Lists,
    Standing,
    carried_lists,
    exact_lists,
    fresh_of,
    joined_lists,
    standing,
)
from .tonight import Night

MOVED, ANEW = "neighbours_moved", "neighbours_anew"  # measures
# Values of photos asked for at a time, about: of 128,000 and more FAISS 1.15 makes one matrix product, of fewer it goes
# from photo to photo, in up to five times the time.
_ASKED = 1 << 18
_GROUP_ROWS = 1 << 17
_COMPARED_FILES = 4  # of the parent's table, about, where it is read for a measure alone
_ENTRY_BYTES = 300  # of a task, for each entry of its lists


@dataclass(frozen=True, slots=True)
class NeighbourTables:
    """files: of the tables `neighbours` and `neighbours_beyond`, by role. measures: by name; none without a parent's
    lists."""

    files: dict[str, Iterator[ReleaseFile]]
    measures: dict[str, float] = field(default_factory=dict)


class NeighbourFiles(NamedTuple):
    """The files of a range of items. beyond: None of an index that is not exact. anew: how many lists were made anew;
    stood, moved: of how many items the list was known, and how many of these lists changed."""

    near: ReleaseFile | Waiting
    beyond: ReleaseFile | Waiting | None
    anew: int
    stood: int
    moved: int


@dataclass(frozen=True, slots=True)
class _Catalogue:
    """What lists are made from. ids: of the items; first: the first row of each, and the end; beyond: how many entries
    after the first k are kept; held: the parent's lists; fresh: what they say nothing of, None where they are not kept;
    compared: the first items of the ranges whose lists are compared with the parent's; scratch: where files of Ray
    tasks wait."""

    index: SearchIndex
    groups: Grouping
    first: Rows
    ids: pa.ChunkedArray
    k: int
    beyond: int
    held: Standing | None
    fresh: Fresh | None
    compared: frozenset[int]
    scratch: Scratch | None


def neighbour_tables(store: Store, night: Night, k: int) -> NeighbourTables:
    """Return the tables `neighbours` and `neighbours_beyond`, made now; they wait until they are written.

    By an exact index, where the parent's lists stand (`standing`), made anew are those of new and changed items and
    those that lost more than they had beyond; into all others new items are put where they belong. Any other index is
    asked for all of them, and nothing is kept beyond: its table is what it answers, every night. Measures:
    neighbours_anew, the share of lists that were made anew; neighbours_moved, of the items whose list stood, the share
    whose first k are not what they were, or not in that order (where none is kept, of a few ranges of items, evenly
    spread).
    """
    anew, stood, moved = 0, 0, 0
    held = standing(store, night, k)
    scratch = Scratch.of_run(store, night.run, len(_ranges(_items(night.items), k)))
    near, beyond = Pieces(scratch), Pieces(scratch)
    for files in neighbour_files(night.items, night.index, k, held, scratch):
        near.add(files.near)
        if files.beyond is not None:
            beyond.add(files.beyond)
        anew, stood, moved = anew + files.anew, stood + files.stood, moved + files.moved
    measures = {} if held is None else {ANEW: anew / max(1, len(held.owners)), MOVED: moved / max(1, stood)}
    made = {"neighbours": near} | ({BEYOND_ROLE: beyond} if exact_lists(night.index, k) else {})
    return NeighbourTables({role: pieces.files() for role, pieces in made.items()}, measures)


def neighbour_files(
    items: pa.Table, index: SearchIndex, k: int, held: Standing | None = None, scratch: Scratch | None = None
) -> Iterator[NeighbourFiles]:
    """Yield the tables `neighbours` and `neighbours_beyond` range by range, each made when it is asked for.

    Columns: item_id, rank (from 1), neighbour_id, score. items: sorted by item_id, one row a photo; index: of these
    rows. An item's neighbours and scores are those that the reader's `similar` gives: all its photos ask, and an item's
    score is its best pair of photos. Fewer than k only when there are no more items. The second table goes on where the
    first one ends, for the next night; an index that is not exact has none. held: the parent's lists. scratch: Ray
    tasks make the files, side by side, and leave them there.
    """
    starts = run_starts(items["item_id"])
    groups = Grouping(np.cumsum(starts) - 1)
    first = np.append(np.flatnonzero(starts), items.num_rows)
    fresh = fresh_of(held, index, groups) if held is not None and held.kept else None
    beyond = BEYOND if exact_lists(index, k) else 0
    ids = take_column(items["item_id"], first[:-1])
    ranges = _ranges(len(first) - 1, k)
    compared = ranges if fresh is not None else ranges[:: -(-len(ranges) // _COMPARED_FILES)]
    starts_of = frozenset(one.start for one in compared)
    catalogue = _Catalogue(index, groups, first, ids, k, beyond, held, fresh, starts_of, scratch)
    yield from mapped_in_turn(
        _files,
        catalogue,
        ranges,
        scratch=scratch,
        task_bytes=TASK_BYTES + _ENTRY_BYTES * (FILE_ROWS // k) * (k + beyond),
        while_doing="finding the neighbours of items",
    )


def _items(items: pa.Table) -> int:
    return int(np.count_nonzero(run_starts(items["item_id"])))


def _ranges(items: int, k: int) -> list[range]:
    """Return the items of each file."""
    a_file = max(1, FILE_ROWS // k)
    return [range(start, min(start + a_file, items)) for start in range(0, max(1, items), a_file)]


def _files(catalogue: _Catalogue, items: range) -> NeighbourFiles:
    held, k = catalogue.held, catalogue.k
    known, stood, moved = _none(), 0, 0
    if held is not None and catalogue.fresh is not None:
        known = carried_lists(held, catalogue.fresh, catalogue.index, catalogue.groups, catalogue.first, items)
    counts = np.bincount(known.owners - items.start, minlength=len(items))
    whole = counts >= min(k, len(catalogue.ids) - 1)
    missing = np.flatnonzero(~whole) + items.start
    kept = known.take(np.flatnonzero(whole[known.owners - items.start]))
    found = joined_lists([kept, *_anew(catalogue, missing)])
    found = found.take(np.argsort(found.owners, kind="stable"))
    found = found.take(np.flatnonzero(found.ranks() < k + catalogue.beyond))
    if held is not None and items.start in catalogue.compared:
        stood, moved = _moved(held, found, items, k)
    inside = found.ranks() < k
    near = _table(found.take(np.flatnonzero(inside)), np.int32(1), catalogue.ids)
    beyond = _table(found.take(np.flatnonzero(~inside)), np.int32(k + 1), catalogue.ids)
    first, second = _file(near), _file(beyond) if catalogue.beyond else None
    return NeighbourFiles(
        waiting(catalogue.scratch, "neighbours", first),
        None if second is None else waiting(catalogue.scratch, BEYOND_ROLE, second),
        anew=len(missing),
        stood=stood,
        moved=moved,
    )


def _none() -> Lists:
    return Lists(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))


def _moved(held: Standing, found: Lists, items: range, k: int) -> tuple[int, int]:
    """Return (of how many items of a range the parent's list is known, of how many of them it is another now)."""
    old = held.lists(items)
    old = old.take(np.flatnonzero(old.ranks() < k))
    before = Lists(held.numbers[old.owners], held.numbers[old.items], old.scores)
    now = found.take(np.flatnonzero((found.ranks() < k) & np.isin(found.owners, before.owners)))
    lengths, others = (np.bincount(one.owners - items.start, minlength=len(items)) for one in (before, now))
    changed = lengths != others
    left, right = (one.take(np.flatnonzero(~changed[one.owners - items.start])) for one in (before, now))
    changed[left.owners[left.items != right.items] - items.start] = True
    return int(np.count_nonzero(lengths)), int(np.count_nonzero(changed & (lengths > 0)))


def _blocks(rows: Rows, photos: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of lists that have about so many photos. rows: how many each item has."""
    ends, start = np.cumsum(rows), 0
    while start < len(rows):
        most = (ends[start - 1] if start else 0) + photos
        stop = max(start + 1, int(np.searchsorted(ends, most, side="right")))
        yield start, stop
        start = stop


def _anew(catalogue: _Catalogue, items: Rows) -> Iterator[Lists]:
    """Yield the lists of some items, each without the item itself."""
    first, wanted = catalogue.first, catalogue.k + catalogue.beyond + 1
    for start, stop in _blocks(first[items + 1] - first[items], max(1, _ASKED // max(1, catalogue.index.dim))):
        block = items[start:stop]
        sizes = first[block + 1] - first[block]
        owners = np.repeat(np.arange(len(block)), sizes)
        rows = first[block[owners]] + np.arange(len(owners)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        hits = nearest_groups(catalogue.index, catalogue.index.latents(rows), owners, wanted, catalogue.groups)
        whose = np.repeat(block, [len(one.groups) for one in hits])
        near = np.concatenate([one.groups for one in hits])
        scores = np.concatenate([one.scores for one in hits])
        yield Lists(whose, near, scores).take(np.flatnonzero(near != whose))


def _table(lists: Lists, rank: np.int32, ids: pa.ChunkedArray) -> pa.Table:
    """Return entries as rows, those of each list from this rank on."""
    columns = [
        take_column(ids, lists.owners),
        pa.array(lists.ranks().astype(np.int32) + rank),
        take_column(ids, lists.items),
        pa.array(lists.scores),
    ]
    return pa.table(columns, schema=table_schema(NEIGHBOURS))


def _file(table: pa.Table) -> ReleaseFile:
    return ReleaseFile(write_table(table, group_rows=_GROUP_ROWS), ".parquet", table.num_rows)

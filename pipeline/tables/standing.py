"""What of the parent's table `neighbours` still stands tonight, and how new items find their places in it.

A list says which items come first of all, down to its last entry. Removed and changed items are taken out of it, and
new ones that come before that last entry are put in, so it still does. The release keeps some entries beyond those that
its table shows (`neighbours_beyond`), so that a list that lost a few need not be made anew.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import IntegrityError
from ..index import Grouping, SearchIndex
from ..index.entering import entering
from ..index.kept_space import release_latents, release_space
from ..index.latents import Float32, Float64, Rows
from ..ordering import (
    SLICE_ROWS,
    aligned_slices,
    as_numpy,
    joined,
    positions_in_runs,
    ranks,
    run_starts,
    take_column,
    take_rows,
)
from ..release import FileEntry, Manifest
from ..release.tables import read_file, read_table
from ..storage import Store
from .slots import places_among
from .tonight import Night

BEYOND_ROLE = "neighbours_beyond"
BEYOND = 16  # entries of a list that are kept besides those that the table shows
_VALUES = 1 << 24  # products of photos and new photos that are held at a time
_COMPARED = SLICE_ROWS  # rows of items that are compared at a time
_TEXT = pa.large_string()
_KEPT_FILES = 2  # of the parent's table that are held at a time
_ALTERED = ["added", "removed", "changed"]
_PLACES = ["item_id", "uri", "latents_part", "latents_row"]


@dataclass(frozen=True, slots=True)
class Lists:
    """Nearest items of some items: entries by (owner, rank). owners, items: numbers, int64 [n]; scores float64 [n]."""

    owners: Rows
    items: Rows
    scores: Float64

    def ranks(self) -> Rows:
        """Return the rank of every entry in its list, from 0."""
        return positions_in_runs(np.append(True, np.diff(self.owners) != 0)[: len(self.owners)])

    def take(self, rows: Rows) -> Lists:
        """Return these entries."""
        return Lists(self.owners[rows], self.items[rows], self.scores[rows])


@dataclass(slots=True)
class Standing:
    """A parent's lists. files, beyond: of both tables, in order; stops: int64, the number of the item after each file's
    last; ids: the parent's item_ids, in order.

    numbers: int64 [parent's items], tonight's number of each, -1 where its list and every entry of it is void. owners:
    int64 [tonight's items], the parent's number of each, -1 where it has no list of it. kept: whether the lists are
    gone on with, and not only compared with tonight's. places: where they are, float64, where each parent's item comes
    in tonight's order, between two numbers where it is gone.
    """

    store: Store
    files: tuple[FileEntry, ...]
    beyond: tuple[FileEntry, ...]
    stops: Rows
    ids: pa.Array
    numbers: Rows
    places: Float64
    owners: Rows
    kept: bool
    _read: OrderedDict[int, Lists] = field(default_factory=OrderedDict)

    def lists(self, items: range) -> Lists:
        """Return the lists of a range of tonight's items, by the parent's numbers of owners and entries."""
        wanted = self.owners[items.start : items.stop]
        wanted = wanted[wanted >= 0]
        if not len(wanted):
            return Lists(wanted, wanted, np.empty(0))
        low, high = np.searchsorted(self.stops, wanted[[0, -1]], side="right").tolist()
        held = joined_lists([self._file(number) for number in range(low, high + 1)])
        return held.take(np.flatnonzero(np.isin(held.owners, wanted)))

    def _file(self, number: int) -> Lists:
        if number not in self._read:
            both = self._entries([entries[number] for entries in (self.files, self.beyond) if entries], number)
            # Stable: the entries beyond come after those of the table.
            self._read[number] = both.take(np.argsort(both.owners, kind="stable"))
            while len(self._read) > _KEPT_FILES:
                self._read.popitem(last=False)
        return self._read[number]

    def _entries(self, files: Sequence[FileEntry], number: int) -> Lists:
        names = ["item_id", "neighbour_id"]
        read = (pa.BufferReader(read_file(self.store, entry)) for entry in files)
        table = pa.concat_tables(
            [pq.read_table(data, columns=[*names, "score"], read_dictionary=names) for data in read]
        )
        start, stop = int(self.stops[number - 1]) if number else 0, int(self.stops[number])
        owners = _numbers_of(table["item_id"], self.ids.slice(start, stop - start))
        items = _numbers_of(table["neighbour_id"], self.ids)
        if min(owners.min(initial=0), items.min(initial=0)) < 0:
            raise IntegrityError(f"{files[0].name} names items that its release has not; roll the channel back")
        return Lists(owners + start, items, as_numpy(table["score"]))


@dataclass(frozen=True, slots=True)
class Fresh:
    """Tonight's items of which no old list says anything. items: bool [all items]; rows: of their photos; features:
    float32 [their photos, f]."""

    items: np.ndarray
    rows: Rows
    features: Float32


def standing(store: Store, night: Night, k: int) -> Standing | None:
    """Return the parent's lists; None where none of them says anything of tonight's.

    That is where there are none of `k` entries, the model, metric or space is another, the metric's weights are fitted
    to each night's catalogue, the index is exact and the parent's was not, or most items are new. An item stands where
    no photo of it was added, removed or changed; where its latents lie elsewhere than before, they are compared. Lists
    of an index that is not exact are not kept: what such a one finds, tonight's need not, nor the other way round.
    """
    parent = night.parent
    if parent is None or not _comparable(store, parent, night, k):
        return None
    before = read_table(store, parent, "items", columns=_PLACES)
    ids, old = _item_ids(night.items), _item_ids(before)
    numbers = places_among(pa.chunked_array([old]), pa.chunked_array([ids]))
    kept = exact_lists(night.index, k)
    places = _places(old, ids, numbers) if kept else np.empty(0)
    numbers[as_numpy(pc.is_in(old, value_set=_void(store, parent, night, before))).astype(np.bool_)] = -1
    owners = np.full(len(ids), -1, np.int64)
    living = np.flatnonzero(numbers >= 0)
    owners[numbers[living]] = living
    if 2 * len(living) < len(ids):
        return None
    beyond = parent.files.get(BEYOND_ROLE, ()) if kept else ()
    files, length = parent.files["neighbours"], max(1, min(k, len(old) - 1))  # of every list
    stops = np.cumsum([entry.rows or 0 for entry in files]) // length
    if stops[-1] != len(old) or (beyond and len(beyond) != len(files)):
        return None
    return Standing(store, files, beyond, stops, old, numbers, places, owners, kept)


def exact_lists(index: SearchIndex, k: int) -> bool:
    """Return whether an index misses none of an item's k nearest others."""
    return index.planner.all_exact(k + 1)


def _comparable(store: Store, parent: Manifest, night: Night, k: int) -> bool:
    if "neighbours" not in parent.files or parent.config.get("tables", {}).get("neighbours") != k:
        return False
    metric = night.index.metric.name
    if parent.model_id != night.model_id or parent.metric != metric or metric == "codes":
        return False
    if parent.index_kind != "flat" and exact_lists(night.index, k):
        return False
    space = release_space(store, parent)
    return (space and space.digest) == (night.space and night.space.digest)


def _item_ids(items: pa.Table) -> pa.Array:
    return joined(take_column(items["item_id"], np.flatnonzero(run_starts(items["item_id"]))))


def _void(store: Store, parent: Manifest, night: Night, before: pa.Table) -> pa.Array:
    """Return the item_ids of which a photo is not what the parent had.

    Both tables are compared range by range of items: their texts are not held once more.
    """
    altered = joined(night.changes["item_id"].filter(pc.is_in(night.changes["change"], value_set=pa.array(_ALTERED))))
    moved, now_start, old_start = [_Moved(np.empty(0, np.int64), np.empty(0, np.int64))], 0, 0
    for now, old in aligned_slices("item_id", night.items.select(_PLACES), before.select(_PLACES), rows=_COMPARED):
        found = _moved(now, old, altered)
        if found is None:  # the same photos in another order, say
            return _item_ids(night.items)
        moved.append(_Moved(found.now + now_start, found.old + old_start))
        now_start, old_start = now_start + now.num_rows, old_start + old.num_rows
    rows, old_rows = (np.concatenate([getattr(one, name) for one in moved]) for name in ("now", "old"))
    if not len(rows):
        return altered
    columns = [name for name in ("log_var", "codes") if getattr(night.latents, name) is not None]
    theirs = release_latents(store, parent, take_rows(before, old_rows), columns=("mean", *columns))
    mine = night.latents.take(rows)
    differ = np.zeros(len(mine), np.bool_)
    for name in ("mean", *columns):
        left, right = getattr(mine, name), getattr(theirs, name)
        differ |= True if right is None else (left != right).any(axis=1)
    return pa.concat_arrays([altered, joined(take_column(night.items["item_id"], rows[differ])).cast(altered.type)])


@dataclass(frozen=True, slots=True)
class _Moved:
    """Rows int64 of tonight's items and of the parent's, of the same photos, whose latents lie elsewhere now."""

    now: Rows
    old: Rows


def _moved(now: pa.Table, old: pa.Table, altered: pa.Array) -> _Moved | None:
    """Return of a range of both tables what has moved of other items; None where they have not the same photos."""
    rows, old_rows = (
        np.flatnonzero(as_numpy(pc.invert(pc.is_in(table["item_id"].cast(altered.type), value_set=altered))))
        for table in (now, old)
    )
    now, old = take_rows(now, rows), take_rows(old, old_rows)
    # As they compare, whatever they were read as.
    if any(not now[name].cast(_TEXT).equals(old[name].cast(_TEXT)) for name in _PLACES[:2]):
        return None
    codes, names = ranks(now["latents_part"])
    before_codes, before_names = ranks(old["latents_part"])
    number = {name: code for code, name in enumerate(names)}
    moved = codes != np.array([number.get(name, -1) for name in before_names], np.int64)[before_codes]
    moved |= as_numpy(now["latents_row"]) != as_numpy(old["latents_row"])
    return _Moved(rows[moved], old_rows[moved])


def _places(old: pa.Array, ids: pa.Array, numbers: Rows) -> Float64:
    """Return where each old item comes among tonight's: its number, or halfway between those it comes between."""
    places = numbers.astype(np.float64)
    gone = np.flatnonzero(numbers < 0)
    both = pa.concat_arrays([ids, old.take(pa.array(gone))])
    order = as_numpy(pc.array_sort_indices(both)).astype(np.int64)
    before = np.cumsum(order < len(ids))
    late = np.flatnonzero(order >= len(ids))
    places[gone[order[late] - len(ids)]] = before[late] - 0.5
    return places


def _numbers_of(column: pa.ChunkedArray, ids: pa.Array) -> Rows:
    """Return the number of every text among item_ids, int64, -1 where it is none.

    Each row group has a dictionary of its own; all item_ids are gone through once for all of them.
    """
    if not len(column):
        return np.empty(0, np.int64)
    whole = column.unify_dictionaries()
    words = whole.chunk(0).dictionary.cast(ids.type)
    places = places_among(pa.chunked_array([ids]), pa.chunked_array([words]))
    there = np.flatnonzero(places >= 0)
    numbers = np.full(len(words), -1, np.int64)
    numbers[places[there]] = there
    found: Rows = numbers[np.concatenate([as_numpy(chunk.indices) for chunk in whole.chunks])]
    return found


def fresh_of(held: Standing, index: SearchIndex, groups: Grouping) -> Fresh:
    """Return tonight's items whose lists are made anew since they are new or changed."""
    items = held.owners < 0
    rows = np.flatnonzero(items[groups.numbers])
    return Fresh(items, rows, index.features_of(rows))


def carried_lists(
    held: Standing, fresh: Fresh, index: SearchIndex, groups: Grouping, first: Rows, items: range
) -> Lists:
    """Return the lists of a range of tonight's items as far as they are known, by tonight's numbers.

    first: the first row of each item, and the end. A list that is shorter than asked for must be made anew, as must
    those of fresh items, which have no entry here.
    """
    old = held.lists(items)
    if not len(old.owners):
        return old
    ends = np.flatnonzero(np.append(np.diff(old.owners) != 0, True))
    whole = np.diff(ends, prepend=-1) == len(held.ids) - 1  # such a list names all that there were: none is behind it
    floors = np.where(whole, -np.inf, old.scores[ends])
    edges = np.where(whole, np.inf, held.places[old.items[ends]])
    now = held.numbers[old.items]
    left = now >= 0
    found = Lists(held.numbers[old.owners[left]], now[left], old.scores[left])
    owned = held.numbers[old.owners[ends]]
    if not len(fresh.rows):
        return found
    return merged(found, joined_lists(list(_entered(fresh, index, groups, first, _Known(owned, floors, edges)))))


def merged(lists: Lists, others: Lists) -> Lists:
    """Return entries with others in their places: by owner, then the nearest first, ties by item.

    lists: in that order; others: few beside them, in any. Sorting all would take ten times as long.
    """
    others = others.take(np.lexsort((others.items, -others.scores, others.owners)))
    low, high = (np.searchsorted(lists.owners, others.owners, side=side) for side in ("left", "right"))
    while (searching := low < high).any():
        middle = np.minimum((low + high) // 2, len(lists.owners) - 1)
        scores = lists.scores[middle]
        tied = (scores == others.scores) & (lists.items[middle] < others.items)
        before = searching & ((scores > others.scores) | tied)
        low, high = np.where(before, middle + 1, low), np.where(searching & ~before, middle, high)
    return Lists(
        np.insert(lists.owners, low, others.owners),
        np.insert(lists.items, low, others.items),
        np.insert(lists.scores, low, others.scores),
    )


@dataclass(frozen=True, slots=True)
class _Known:
    """Lists as far as they are known. items: whose, ascending; floors, edges: the score and the place of the last entry
    of each, -inf and inf where there is nothing behind it."""

    items: Rows
    floors: Float64
    edges: Float64


def _entered(fresh: Fresh, index: SearchIndex, groups: Grouping, first: Rows, known: _Known) -> Iterator[Lists]:
    """Yield the fresh items that come before the last entry of known lists, as entries of these."""
    sizes = first[known.items + 1] - first[known.items]
    ends = np.cumsum(sizes)
    start = 0
    while start < len(known.items):
        most = (ends[start - 1] if start else 0) + max(1, _VALUES // len(fresh.rows))
        stop = max(start + 1, int(np.searchsorted(ends, most, side="right")))
        owners = np.repeat(np.arange(start, stop), sizes[start:stop])
        shift = np.repeat(ends[start:stop] - sizes[start:stop] - (ends[start - 1] if start else 0), sizes[start:stop])
        rows = first[known.items[owners]] + np.arange(len(owners)) - shift
        found = entering(index.metric, fresh.features, index.latents(rows), known.floors[owners])
        pairs = Lists(owners[found.queries], groups.numbers[fresh.rows[found.rows]], found.scores)
        best = pairs.take(np.lexsort((-pairs.scores, pairs.items, pairs.owners)))
        starts = np.ones(len(best.owners), np.bool_)  # an item's score is its best pair of photos
        starts[1:] = (np.diff(best.owners) != 0) | (np.diff(best.items) != 0)
        starts &= (best.scores > known.floors[best.owners]) | (best.items < known.edges[best.owners])
        best = best.take(np.flatnonzero(starts))
        yield Lists(known.items[best.owners], best.items, best.scores)
        start = stop


def joined_lists(lists: Sequence[Lists]) -> Lists:
    """Return the entries of several, one after the other."""
    return Lists(
        np.concatenate([np.empty(0, np.int64), *(one.owners for one in lists)]),
        np.concatenate([np.empty(0, np.int64), *(one.items for one in lists)]),
        np.concatenate([np.empty(0), *(one.scores for one in lists)]),
    )

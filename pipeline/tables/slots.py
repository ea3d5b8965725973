"""Slots of semantic IDs: which item has which codes and suffix, for as long as the codebooks live.

A slot that was given stays with its item while the item's vector has the same codes. One that nobody has any more is
retired: no other item ever gets it, so that what a consumer learned of it never means another item; the item itself
gets it back when it returns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import InputError
from ..index.latents import Rows
from ..index.vector_lists import list_rows
from ..ordering import as_numpy
from .quantizer import Codebooks, Codes, remainders, squared_distances
from .stored_vectors import Vectors


@dataclass(frozen=True, slots=True)
class Slots:
    """Slots [m] that were given: by row, item_ids text, codes and nearest uint16 [m, levels], suffixes int32, since and
    retired text (null: an item has it)."""

    item_ids: pa.ChunkedArray
    codes: Codes
    nearest: Codes
    suffixes: np.ndarray
    since: pa.ChunkedArray
    retired: pa.ChunkedArray

    @classmethod
    def none(cls, levels: int) -> Slots:
        """Return no slots: before the first night."""
        text = pa.chunked_array([], pa.string())
        codes = np.empty((0, levels), np.uint16)
        return cls(text, codes, codes, np.empty(0, np.int32), text, text)

    @classmethod
    def of_tables(cls, living: pa.Table, retired: pa.Table, levels: int) -> Slots:
        """Return the slots of a release's tables `semantic_ids` and `sid_retired`."""
        names = ["item_id", "codes", "nearest_codes", "suffix", "since"]
        given = living.select(names).append_column("retired", pa.nulls(living.num_rows, pa.string()))
        # Without the stored schemas, which differ in that `retired` is never null in one of them.
        plain = [pa.table({name: table[name] for name in given.column_names}) for table in (given, retired)]
        both = pa.concat_tables(plain)
        return cls(
            item_ids=both["item_id"],
            codes=list_rows(both["codes"], levels).astype(np.uint16, copy=False),
            nearest=list_rows(both["nearest_codes"], levels).astype(np.uint16, copy=False),
            suffixes=both["suffix"].to_numpy().astype(np.int32),
            since=both["since"],
            retired=both["retired"],
        )

    def __len__(self) -> int:
        """Return m."""
        return len(self.suffixes)


@dataclass(frozen=True, slots=True)
class Given:
    """What n items got. kept: int64 [n], the row of the earlier slots that an item keeps, -1 for a new one; gone:
    int64, the rows that nobody has any more."""

    codes: Codes
    suffixes: np.ndarray
    kept: Rows
    gone: Rows


def give_slots(
    item_ids: pa.ChunkedArray, nearest: Codes, vectors: Vectors, books: Codebooks, before: Slots, capacity: int | None
) -> Given:
    """Return the slot of every item.

    item_ids: [n], in order; nearest: uint16 [n, levels], as `encode` returns them. vectors: [n, d], read only
    where a bucket is full. An item keeps the slot that it had for these
    codes; the others get the next suffix of theirs, in the order of item_id, or, where that would be `capacity`, of the
    nearest last code that has room. Raises InputError when none has.
    """
    kept = _kept(item_ids, nearest, before)
    codes, suffixes = nearest.copy(), np.empty(len(nearest), np.int32)
    held = kept >= 0
    codes[held], suffixes[held] = before.codes[kept[held]], before.suffixes[kept[held]]
    new = np.flatnonzero(~held)
    numbers, following = _buckets(before, nearest[new])
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    place = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    suffixes[new[order]] = following[ordered] + place
    if capacity is not None:
        _spread(new[suffixes[new] >= capacity], codes, suffixes, _Full(item_ids, vectors, books, before, capacity))
    gone = np.setdiff1d(np.arange(len(before)), kept[held])
    return Given(codes, suffixes, kept, gone)


@dataclass(frozen=True, slots=True)
class _Full:
    """What decides where the items of full buckets go; as `give_slots` has it."""

    item_ids: pa.ChunkedArray
    vectors: Vectors
    books: Codebooks
    before: Slots
    capacity: int


def _kept(item_ids: pa.ChunkedArray, nearest: Codes, before: Slots) -> Rows:
    """Return for every item the row of the slot that it had for these nearest codes, -1 where there is none."""
    kept = np.full(len(nearest), -1, np.int64)
    if not len(before) or not len(nearest):
        return kept
    places = as_numpy(pc.index_in(before.item_ids, value_set=item_ids.combine_chunks()), missing=-1).astype(np.int64)
    rows = np.flatnonzero(places >= 0)
    same = (before.nearest[rows] == nearest[places[rows]]).all(axis=1)
    kept[places[rows[same]]] = rows[same]
    return kept


def _buckets(before: Slots, wanted: Codes) -> tuple[Rows, Rows]:
    """Return (the bucket of every wanted row, the suffix that follows those given in each bucket)."""
    both = np.concatenate([before.codes, wanted])
    if not len(both):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    numbers = bucket_numbers(both)
    following = np.zeros(numbers.max() + 1, np.int64)
    np.maximum.at(following, numbers[: len(before)], before.suffixes.astype(np.int64) + 1)
    return numbers[len(before) :], following


def bucket_numbers(codes: Codes) -> Rows:
    """Return the number of every row's sequence of codes among the different ones in order, int64 [n]."""
    if not codes.shape[1]:
        return np.zeros(len(codes), np.int64)
    order = np.lexsort(codes.T[::-1])
    ordered = codes[order]
    starts = np.ones(len(codes), np.bool_)
    starts[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    numbers = np.empty(len(codes), np.int64)
    numbers[order] = np.cumsum(starts) - 1
    return numbers


def _spread(late: Rows, codes: Codes, suffixes: np.ndarray, full: _Full) -> None:
    """Give the items beyond the capacity of their codes a slot of the nearest last code that has room, in place."""
    following: dict[bytes, int] = {}
    others = np.setdiff1d(np.arange(len(codes)), late)
    for given, last in ((full.before.codes, full.before.suffixes), (codes[others], suffixes[others])):
        for row, suffix in zip(np.ascontiguousarray(given), last.tolist(), strict=True):
            key = row.tobytes()
            following[key] = max(following.get(key, 0), suffix + 1)
    wide = full.books.levels[-1].astype(np.float64)
    for item in late.tolist():
        asked = codes[item].copy()
        left = remainders(full.vectors[item : item + 1], codes[item : item + 1, :-1], full.books)[0]
        for code in np.argsort(squared_distances(left, wide), kind="stable").tolist():
            asked[-1] = code
            key = asked.tobytes()
            if following.get(key, 0) < full.capacity:
                codes[item], suffixes[item] = asked, following.get(key, 0)
                following[key] = following.get(key, 0) + 1
                break
        else:
            raise InputError(
                f"item {full.item_ids[item].as_py()!r}: every code of the last level behind the codes "
                f"{codes[item, :-1].tolist()} has its {full.capacity} items; raise semantic_ids.capacity, leave it "
                "out, or give larger semantic_ids.levels"
            )

"""Slots of semantic IDs: which item has which codes and suffix, for as long as the codebooks live.

A slot that was given stays with its item while the item's vector has the same codes. One that nobody has any more is
retired: no other item ever gets it, so that what a consumer learned of it never means another item; the item itself
gets it back when it returns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import InputError
from ..index.latents import Rows
from ..index.vector_lists import list_rows
from ..ordering import as_numpy, joined
from .quantizer import Codebooks, Codes, remainders, squared_distances
from .stored_vectors import Vectors

_LOOKED_UP = 1 << 20  # item_ids that are looked up among at a time
SLOT = ["item_id", "codes", "nearest_codes", "suffix", "since"]  # columns that say who has which slot
_FEW = pa.dictionary(pa.int32(), pa.string())  # of a column of few different texts


@dataclass(frozen=True, slots=True)
class Slots:
    """Slots [m] that were given: by row, item_ids text, codes and nearest uint16 [m, levels], suffixes int32, since and
    retired text, dictionaries where they were read (null: an item has it)."""

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
    def of_tables(cls, tables: Iterable[pa.Table], levels: int) -> Slots:
        """Return the slots of a release's tables `semantic_ids` and `sid_retired`, given a file of them at a time."""
        held = [_held(table, levels) for table in tables]
        codes, nearest = (
            np.concatenate([np.empty((0, levels), np.uint16), *(one[name] for one in held)])
            for name in ("codes", "nearest")
        )
        suffixes = np.concatenate([np.empty(0, np.int32), *(one["suffixes"] for one in held)])
        ids, since, retired = (
            pa.chunked_array([chunk for one in held for chunk in one[name].chunks], kind)
            for name, kind in (("ids", pa.string()), ("since", _FEW), ("retired", _FEW))
        )
        return cls(ids, codes, nearest, suffixes, since, retired)

    def __len__(self) -> int:
        """Return m."""
        return len(self.suffixes)


def _held(table: pa.Table, levels: int) -> dict[str, Any]:
    """Return what slots hold of a table; what few runs said, as numbers of these."""
    codes, nearest = (list_rows(table[name], levels) for name in ("codes", "nearest_codes"))
    retired = table["retired"] if "retired" in table.column_names else pa.chunked_array([pa.nulls(len(table), _FEW)])
    return {
        "ids": table["item_id"].cast(pa.string()),
        "codes": codes.astype(np.uint16, copy=False),
        "nearest": nearest.astype(np.uint16, copy=False),
        "suffixes": table["suffix"].to_numpy().astype(np.int32),
        "since": table["since"].cast(_FEW),
        "retired": retired.cast(_FEW),
    }


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
    lost = np.ones(len(before), np.bool_)
    lost[kept[held]] = False
    # Most often nobody has others than the nearest codes, which are not held twice then.
    return Given(codes if (codes != nearest).any() else nearest, suffixes, kept, np.flatnonzero(lost))


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
    places = places_among(before.item_ids, item_ids)
    rows = np.flatnonzero(places >= 0)
    same = (before.nearest[rows] == nearest[places[rows]]).all(axis=1)
    kept[places[rows[same]]] = rows[same]
    return kept


def places_among(texts: pa.ChunkedArray, values: pa.ChunkedArray) -> Rows:
    """Return for every text its row among different values, int64, -1 where it is none of them.

    Arrow's table of values takes some 90 bytes for each, so few are in it at a time.
    """
    found = np.full(len(texts), -1, np.int64)
    for start in range(0, len(values), _LOOKED_UP):
        part = values.slice(start, _LOOKED_UP)
        some = part.chunk(0) if part.num_chunks == 1 else joined(part)  # not copied where it lies in one piece
        some = some if some.type == texts.type else some.cast(texts.type)
        places = as_numpy(pc.index_in(texts, value_set=some), missing=-1)
        rows = np.flatnonzero(places >= 0)
        found[rows] = places[rows].astype(np.int64) + start
    return found


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

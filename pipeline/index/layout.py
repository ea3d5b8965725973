"""Which segments a night carries over, which it writes anew, and of which rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..ordering import as_numpy, ranks
from .latents import Rows

LEAST_LIVING = 0.7
"""A segment of whose rows fewer live is written anew."""
SPARE_SEGMENTS = 8
"""So many more segments than a full build has are the most of an index."""

Numbers = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Layout:
    """How tonight's rows lie in segments.

    kept: the numbers of the parent's segments that stay, in its order. numbers, places: int32 [n], of each row of items
    which of these holds it and where, -1 for those that have to be written. fresh: the rows of the latter, ascending.
    """

    kept: tuple[int, ...]
    numbers: Numbers
    places: Numbers
    fresh: Rows

    @classmethod
    def anew(cls, rows: int) -> Layout:
        """Return the layout of a full build."""
        nowhere = np.full(rows, -1, np.int32)
        return cls((), nowhere, nowhere.copy(), np.arange(rows))


def night_layout(
    items: pa.Table, parent_items: pa.Table, places: tuple[Numbers, Numbers], sizes: Sequence[int], *, most: int
) -> Layout:
    """Return which of the parent's segments stay.

    A row is carried over where its latents are those of the parent, named by part and row. parent_items: columns
    latents_part, latents_row; places: of its rows the segment's number and the row in it; sizes: rows of each segment;
    most: rows of one. A segment goes when under LEAST_LIVING of its rows live; and where with what is new there were
    more than SPARE_SEGMENTS beyond what a full build has, first all that are not half full, then the emptiest.
    """
    found = _positions(items, parent_items)
    numbers = np.where(found >= 0, places[0][found], -1).astype(np.int32)
    living = np.bincount(numbers[numbers >= 0], minlength=len(sizes))
    kept = [number for number, size in enumerate(sizes) if living[number] >= LEAST_LIVING * size and living[number]]
    bound = -(-len(numbers) // most) + SPARE_SEGMENTS

    def too_many() -> bool:
        fresh = len(numbers) - sum(int(living[number]) for number in kept)
        return len(kept) - (-fresh // most) > bound

    if too_many():
        kept = [number for number in kept if 2 * living[number] >= most]
    while kept and too_many():
        kept.remove(min(kept, key=lambda number: int(living[number])))
    renumbered = np.full(len(sizes) + 1, -1, np.int32)  # the last: of rows that are nowhere
    renumbered[kept] = np.arange(len(kept))
    numbers = renumbered[numbers]
    kept_places = np.where(numbers >= 0, places[1][found], -1).astype(np.int32)
    return Layout(tuple(kept), numbers, kept_places, np.flatnonzero(numbers < 0))


def _positions(items: pa.Table, parent_items: pa.Table) -> Rows:
    """Return the row of the parent that has the same latents, of each row of items; -1 where none has."""
    codes, names = ranks(items["latents_part"])
    rows = as_numpy(items["latents_row"]).astype(np.int64)
    parent_codes, parent_names = ranks(parent_items["latents_part"])
    parent_rows = as_numpy(parent_items["latents_row"]).astype(np.int64)
    # Every part's rows one after the other: a place for each row that can be named, and what names it.
    lengths = np.zeros(len(parent_names), np.int64)
    np.maximum.at(lengths, parent_codes, parent_rows + 1)
    starts = np.cumsum(lengths) - lengths
    held = np.full(int(lengths.sum()), -1, np.int64)
    held[starts[parent_codes] + parent_rows] = np.arange(len(parent_rows))
    number_of = {name: number for number, name in enumerate(parent_names)}
    theirs = np.array([number_of.get(name, -1) for name in names], np.int64)[codes]
    known = np.flatnonzero(theirs >= 0)
    known = known[rows[known] < lengths[theirs[known]]]
    found = np.full(len(rows), -1, np.int64)
    found[known] = held[starts[theirs[known]] + rows[known]]
    return found

"""The two releases of a report, each as it can be asked: its items, what is near to what, where pixels lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...errors import NotFound
from ...index import LatentArrays, SearchIndex
from ...index.groups import nearest_groups
from ...index.items import ItemTable
from ...index.latents import Rows
from ...index.opened import OpenedRelease
from ...ordering import take_rows
from ...parts import has_pixels, read_part_rows
from ...report.night import Card, Pixels
from ...schema import attribute_fields, pixels_column
from ...storage import Store
from ..pictures import Pictures

PLACES = ("item_id", "uri", "pixels_part", "pixels_row")
_LARGEST = 128  # side of a picture that is held for the page


@dataclass(frozen=True, slots=True)
class Side:
    """A release. name: its id, or of one that is not written yet its run; lookup: rows of its items table by columns;
    hidden: numbers of items that are delisted, which no report shows."""

    name: str
    items: ItemTable
    index: SearchIndex
    lookup: Callable[[Rows, Sequence[str]], pa.Table]
    hidden: Rows = field(default_factory=lambda: np.empty(0, np.int64))

    @staticmethod
    def of_tables(name: str, items: pa.Table, index: SearchIndex) -> Side:
        """Return a release that is in memory; row n of the index is row n of items."""
        described = items.select(["item_id", *(each.name for each in attribute_fields(items.schema))])
        return Side(name, ItemTable(described), index, lambda rows, names: take_rows(items.select(list(names)), rows))

    @staticmethod
    def of_opened(opened: OpenedRelease) -> Side:
        """Return a release that is open."""
        return Side(opened.manifest.release_id, opened.items, opened.index, opened.rows, opened.masked)

    def shown(self) -> Rows:
        """Return the numbers of the items that may be shown."""
        return np.setdiff1d(np.arange(len(self.items)), self.hidden)

    def number(self, item_id: str) -> int | None:
        """Return an item's number, None where it is not here or not to be shown."""
        found = self.items.find(item_id)
        return None if found is None or found in self.hidden else found

    def first_rows(self, numbers: Sequence[int]) -> Rows:
        """Return the row of each item's first photo."""
        return np.array([int(self.items.rows_of(number)[0]) for number in numbers], np.int64)

    def near(self, numbers: Sequence[int], k: int) -> list[list[tuple[int, float]]]:
        """Return (number, score) of the k items nearest to each of these, nearest first, never itself."""
        if not len(numbers):
            return []
        rows = [self.items.rows_of(number) for number in numbers]
        owners = np.repeat(np.arange(len(rows)), [len(own) for own in rows])
        queries: LatentArrays = self.index.latents(np.concatenate(rows))
        found = nearest_groups(self.index, queries, owners, k + 1, self.items.groups, exclude=self.hidden)
        pairs = [list(zip(hits.groups.tolist(), hits.scores.tolist(), strict=True)) for hits in found]
        return [[pair for pair in near if pair[0] != own][:k] for near, own in zip(pairs, numbers, strict=True)]

    def attribute(self, number: int, name: str | None) -> str:
        """Return an item's attribute as text, "" where it has none."""
        value: Any = None if name is None else self.items.attributes_of(number).get(name)
        return "" if value is None else str(value)


class Album:
    """Pixels of photos, each read once: from kept parts, and where none are kept from where the photos lie."""

    def __init__(
        self, store: Store, elsewhere: Callable[[pa.Table], dict[int, Pixels]] | None = None, *, whole: bool = False
    ) -> None:
        """elsewhere: returns by position the pixels of photos (columns PLACES) that no part holds.

        whole: as large as the model sees them, which is more than a page shows of a large picture.
        """
        self._store, self._elsewhere = store, elsewhere
        self._sized = (lambda pixels: pixels) if whole else _small
        self._held: dict[tuple[str, Any], Pixels | None] = {}

    def read(self, places: pa.Table) -> list[Pixels | None]:
        """Return the pixels of photos as the model sees them, uint8 [size, size, 3]; places: columns PLACES."""
        asked = [_key(row) for row in places.select(list(PLACES)).to_pylist()]
        missing = {key: place for place, key in enumerate(asked) if key not in self._held}
        by_part: dict[str, list[tuple[str, Any]]] = {}
        for key in missing:
            if has_pixels(key[0]):
                by_part.setdefault(key[0], []).append(key)
        for part, keys in by_part.items():
            self._held |= zip(keys, self._kept(part, [key[1] for key in keys]), strict=True)
        absent = {key: place for key, place in missing.items() if self._held.get(key) is None}
        if absent and self._elsewhere is not None:
            found = self._elsewhere(take_rows(places, np.array(list(absent.values()), np.int64)))
            self._held |= {key: self._sized(found[place]) for place, key in enumerate(absent) if place in found}
        return [self._held.get(key) for key in asked]

    def cards(self, side: Side, numbers: Sequence[int], words: Sequence[str]) -> list[Card]:
        """Return items as cards, with the pixels of their first photo."""
        pixels = self.read(side.lookup(side.first_rows(numbers), PLACES))
        named = (side.items.item_id(number) for number in numbers)
        return [Card(*each) for each in zip(named, words, pixels, strict=True)]

    def named(self, sides: Sequence[Side | None], item_ids: Sequence[str], category: str | None) -> list[Card]:
        """Return items as cards, each from the first of the releases that has it, its category below it."""
        cards = []
        for item_id in item_ids:
            found = ((side, side.number(item_id)) for side in sides if side is not None)
            side, number = next(((side, number) for side, number in found if number is not None), (None, None))
            if side is None or number is None:
                cards.append(Card(item_id, "in neither release" if len(sides) > 1 else "not in the release"))
            else:
                cards += self.cards(side, [number], [side.attribute(number, category)])
        return cards

    def _kept(self, part: str, rows: Sequence[int]) -> list[Pixels | None]:
        name = pixels_column(0)
        try:
            table = read_part_rows(self._store, part, np.array(rows, np.int64), [name])
        except NotFound:  # pixels live by age, and not as long as releases do
            return [None] * len(rows)
        return [self._square(value.as_py()) for value in table[name]]

    def _square(self, data: bytes | None) -> Pixels | None:
        size = isqrt(len(data or b"") // 3)
        return self._sized(np.frombuffer(data or b"", np.uint8).reshape(size, size, 3)) if size else None


def _key(row: dict[str, Any]) -> tuple[str, Any]:
    """Return what is the same for the same photo in two releases, where its pixels are kept."""
    part = row["pixels_part"]
    return ("", (row["item_id"], row["uri"])) if part is None else (part, row["pixels_row"])


def _small(pixels: NDArray[np.uint8]) -> Pixels:
    """Return a picture of at most _LARGEST a side: the means of whole blocks, so that nothing is invented."""
    factor = -(-pixels.shape[0] // _LARGEST)
    if factor == 1:
        return pixels
    side = pixels.shape[0] // factor
    blocks = pixels[: side * factor, : side * factor].reshape(side, factor, side, factor, 3)
    return np.asarray(blocks.mean(axis=(1, 3)).round(), np.uint8)


def fetched(pictures: Pictures) -> Callable[[pa.Table], dict[int, Pixels]]:
    """Return what reads photos of a night, whose plan says where they lie; no photo is fetched twice."""
    had: dict[tuple[str, str], Pixels | None] = {}

    def read(places: pa.Table) -> dict[int, Pixels]:
        keys = [(row["item_id"], row["uri"]) for row in places.select(["item_id", "uri"]).to_pylist()]
        new = [place for place, key in enumerate(keys) if key not in had]
        if new:
            found = pictures.read(take_rows(places, np.array(new, np.int64)), range(len(new)))
            had.update({keys[place]: found.get(number) for number, place in enumerate(new)})
        return {place: pixels for place, key in enumerate(keys) if (pixels := had[key]) is not None}

    return read

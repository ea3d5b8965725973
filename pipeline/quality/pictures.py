"""Photos of a release as pixels: from its kept parts, and where none are kept once more from where the photos lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..catalogue import CatalogueConfig, PhotoReader
from ..encoding import PhotoDecoder
from ..images import ImagesConfig
from ..ordering import as_numpy, take_rows
from ..parts import read_part_rows
from ..schema import PHOTOS, pixels_column
from ..storage import Files, Store

_KEYS = ["item_id", "uri"]


@dataclass(frozen=True, slots=True)
class Pictures:
    """Where photos come from. images: how they become pixels; number: which of a part's transforms that is.

    plan_rows: schema.plan_schema of the run that made the release, which says where photos lie; None: photos whose
    pixels are not kept cannot be had.
    """

    store: Store
    images: ImagesConfig
    number: int = 0
    files: Files | None = None
    catalogue: CatalogueConfig | None = None
    plan_rows: pa.Table | None = None

    def read(self, items: pa.Table, rows: Sequence[int]) -> dict[int, NDArray[np.uint8]]:
        """Return row -> uint8 [size, size, 3] of those rows of items that can be had.

        Raises Unavailable, Forbidden as the reader does when it is no photo's fault.
        """
        found = self._kept(items, rows)
        missing = [row for row in rows if row not in found]
        if missing and self.files is not None and self.catalogue is not None and self.plan_rows is not None:
            found |= self._fetched(items, missing, self.files, self.catalogue, self.plan_rows)
        return found

    def _kept(self, items: pa.Table, rows: Sequence[int]) -> dict[int, NDArray[np.uint8]]:
        by_part: dict[str, list[tuple[int, int]]] = {}
        for row in rows:
            part = items["pixels_part"][row].as_py()
            if part is not None:
                by_part.setdefault(part, []).append((row, items["pixels_row"][row].as_py()))
        found: dict[int, NDArray[np.uint8]] = {}
        name, size = pixels_column(self.number), self.images.size
        for part, places in by_part.items():
            held = np.array([place for _, place in places], np.int64)
            seen = read_part_rows(self.store, part, held, [name])[name]
            for (row, _), pixels in zip(places, seen, strict=True):
                found[row] = np.frombuffer(pixels.as_py(), np.uint8).reshape(size, size, 3)
        return found

    def _fetched(
        self, items: pa.Table, rows: Sequence[int], files: Files, catalogue: CatalogueConfig, plan_rows: pa.Table
    ) -> dict[int, NDArray[np.uint8]]:
        wanted = take_rows(items.select(_KEYS), np.array(rows, np.int64)).to_pylist()
        asked = {(each["item_id"], each["uri"]): row for each, row in zip(wanted, rows, strict=True)}
        keys = pa.array(sorted({item_id for item_id, _ in asked}), pa.string())
        near = np.flatnonzero(as_numpy(pc.is_in(plan_rows["item_id"], value_set=keys)))
        photos = take_rows(plan_rows.select([name for name in PHOTOS.names if name in plan_rows.column_names]), near)
        pairs = zip(*(photos[name].to_pylist() for name in _KEYS), strict=True)
        places = [(place, asked[pair]) for place, pair in enumerate(pairs) if pair in asked]
        reader = PhotoReader(files, catalogue, max_bytes=self.images.max_bytes)
        decoded = PhotoDecoder(reader, self.images)(
            take_rows(photos, np.array([place for place, _ in places], np.int64))
        )
        size = self.images.size
        return {
            row: np.frombuffer(seen.as_py(), np.uint8).reshape(size, size, 3)
            for (_, row), seen in zip(places, decoded["pixels"], strict=True)
            if seen.is_valid
        }

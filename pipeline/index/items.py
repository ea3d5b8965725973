"""The items table as a search sees it: which rows are which item, and what its attributes are."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Mapping
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..column_types import stored_column, value_of
from ..schema import RESERVED
from .groups import Grouping
from .latents import Rows
from .search import RowFilter
from .where import matching_rows

_FILTERS = 64  # `where` conditions whose bitmaps are kept


class ItemTable:
    """Items by number, in the order of item_id (by code point); row i of the table is row i of the index.

    An item's attributes are those of its first row. Immutable; safe to use from several threads.
    """

    def __init__(self, table: pa.Table) -> None:
        """table: the column item_id and the attributes, one row a photo."""
        ids = _plain(table.column("item_id").cast(pa.large_string())).dictionary_encode()
        by_id = pc.array_sort_indices(ids.dictionary).to_numpy().astype(np.int64)
        number = np.empty(len(by_id), np.int64)
        number[by_id] = np.arange(len(by_id))
        self._ids = ids.dictionary.take(pa.array(by_id))
        self.groups = Grouping(number[ids.indices.to_numpy()] if len(ids) else np.empty(0, np.int64))
        self._rows: Rows = np.argsort(self.groups.numbers, kind="stable")
        self._starts = np.concatenate([[0], np.cumsum(self.groups.sizes)])
        names = [name for name in table.column_names if name not in RESERVED]
        self._attributes = pa.table({name: stored_column(table.column(name)) for name in names})
        self._filters: OrderedDict[str, RowFilter] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._ids)

    @property
    def num_rows(self) -> int:
        """The number of rows (photos)."""
        return len(self._rows)

    @property
    def attributes(self) -> pa.Schema:
        """The attribute columns."""
        return self._attributes.schema

    def find(self, item_id: str) -> int | None:
        """Return an item's number, or None when it is not here."""
        place = bisect_left(self._ids, item_id, key=lambda scalar: scalar.as_py())
        return place if place < len(self._ids) and self._ids[place].as_py() == item_id else None

    def item_id(self, item: int) -> str:
        """Return an item's key."""
        return str(self._ids[int(item)].as_py())

    def item_ids(self) -> list[str]:
        """Return every item's key, in order."""
        ids: list[str] = self._ids.to_pylist()
        return ids

    def rows_of(self, item: int) -> Rows:
        """Return an item's rows, in table order."""
        return self._rows[self._starts[item] : self._starts[item + 1]]

    def attributes_of(self, item: int) -> dict[str, Any]:
        """Return an item's attributes by name; null is None, moments are cut to microseconds."""
        first = int(self._rows[self._starts[item]])
        return {name: value_of(self._attributes.column(name)[first]) for name in self._attributes.column_names}

    def filter(self, where: Mapping[str, Any]) -> RowFilter:
        """Return the rows of the items that fit `where` (see `matching_rows`), remembered for the next call."""
        key = json.dumps(_keyed(where), sort_keys=True, default=repr)
        with self._lock:
            if key in self._filters:
                self._filters.move_to_end(key)
                return self._filters[key]
        mask = matching_rows(self._attributes, where)
        if self.num_rows:
            mask = mask[self._rows[self._starts[:-1]]][self.groups.numbers]  # an item fits by its first row, whole
        made = RowFilter(mask)
        with self._lock:
            self._filters[key] = made
            while len(self._filters) > _FILTERS:
                self._filters.popitem(last=False)
        return made


def _keyed(value: Any) -> Any:
    """Return `value` as JSON values that differ where a `where` differs: 1, 1.0, True and "1" are four things."""
    if isinstance(value, Mapping):
        return {str(name): _keyed(member) for name, member in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return sorted((_keyed(member) for member in value), key=repr)
    return f"{type(value).__name__}:{value!r}"


def _plain(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):
        return pa.concat_arrays(combined.chunks) if combined.num_chunks else pa.array([], combined.type)
    return combined

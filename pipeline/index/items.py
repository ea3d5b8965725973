"""The items table as a search sees it: which rows are which item, and what its attributes are."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..column_types import stored_column, value_of
from ..errors import ConfigError
from ..forks import FreshLock, renewed_in_children
from ..keys import digest_of
from ..ordering import run_starts
from ..schema import RESERVED
from .filters import RowFilter
from .groups import Grouping
from .latents import Rows
from .where import matching_rows

FILTER_BYTES = 64 << 20  # of `where` conditions that are kept, all together
_FILTER_COST = 1024  # of one kept condition besides its rows: its key and Python's objects, about


def stored_item_id(item_id: Any) -> str:
    """Return the text under which a catalogue's key is stored, from the value that the caller has for it.

    Text is itself, an integer (NumPy's too, and a decimal without fraction) its digits, a UUID its usual form; an Arrow
    scalar counts as what it holds. Raises ConfigError for anything else: a float or a missing value would name another
    item, or none.
    """
    if isinstance(item_id, pa.Scalar):
        item_id = item_id.as_py()
    if isinstance(item_id, str):
        return str.__str__(item_id)  # also of an enum, whose own text is its name
    whole = isinstance(item_id, Decimal) and item_id.as_tuple().exponent == 0
    if whole or (isinstance(item_id, int | np.integer) and not isinstance(item_id, bool)):
        return str(int(item_id))
    if isinstance(item_id, UUID):
        return str(item_id)
    remedy = "convert it to the text or whole number that the catalogue has as its key"
    if item_id is None:
        remedy = "it is a missing value; leave it out"
    elif isinstance(item_id, bytes):
        remedy = "decode it to text first"
    elif isinstance(item_id, float | np.floating):
        remedy = "pandas makes floats of integers beside missing values: drop those rows, then convert to integers"
    raise ConfigError(f"the item_id {item_id!r:.80} ({type(item_id).__name__}) is no key: {remedy}")


class ItemTable:
    """Items by number, in the order of item_id (by code point); row i of the table is row i of the index.

    An item's attributes are those of its first row. Immutable; safe to use from several threads.
    """

    def __init__(self, table: pa.Table) -> None:
        """table: the column item_id and the attributes, one row a photo."""
        ids = _plain(table.column("item_id").cast(pa.large_string()))
        if _ascending(ids):  # as a refresh writes it: no item is looked up, and nothing is sorted
            starts = run_starts(pa.chunked_array([ids]))
            self._ids = ids if starts.all() else ids.filter(pa.array(starts))
            self.groups = Grouping(np.cumsum(starts) - 1)
            self._rows: Rows = np.arange(len(ids))
        else:
            encoded = ids.dictionary_encode()
            by_id = pc.array_sort_indices(encoded.dictionary).to_numpy().astype(np.int64)
            number = np.empty(len(by_id), np.int64)
            number[by_id] = np.arange(len(by_id))
            self._ids = encoded.dictionary.take(pa.array(by_id))
            self.groups = Grouping(number[encoded.indices.to_numpy()])
            self._rows = np.argsort(self.groups.numbers, kind="stable")
        self._starts = np.concatenate([[0], np.cumsum(self.groups.sizes)])
        names = [name for name in table.column_names if name not in RESERVED]
        self._attributes = pa.table({name: stored_column(table.column(name)) for name in names})
        self._lock = FreshLock()
        self.renew_after_fork()
        renewed_in_children(self)

    def renew_after_fork(self) -> None:
        """Forget the filters: a thread of the parent may have been about to keep one."""
        self._filters: OrderedDict[str, RowFilter] = OrderedDict()
        self._filter_bytes = 0

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

    def item_ids_from(self, prefix: str, limit: int) -> list[str]:
        """Return the first keys that begin with a prefix, in order, `limit` at most."""
        place = bisect_left(self._ids, prefix, key=lambda scalar: scalar.as_py())
        return [text for text in self._ids[place : place + limit].to_pylist() if text.startswith(prefix)]

    def rows_of(self, item: int) -> Rows:
        """Return an item's rows, in table order."""
        return self._rows[self._starts[item] : self._starts[item + 1]]

    def attributes_of(self, item: int) -> dict[str, Any]:
        """Return an item's attributes by name; null is None, moments are cut to microseconds."""
        first = int(self._rows[self._starts[item]])
        return {name: value_of(self._attributes.column(name)[first]) for name in self._attributes.column_names}

    def filter(self, where: Mapping[str, Any]) -> RowFilter:
        """Return the rows of the items that fit `where` (see `matching_rows`), remembered for the next call."""
        key = digest_of(json.dumps(_keyed(where), sort_keys=True, default=repr).encode(errors="surrogatepass"))
        with self._lock:
            if key in self._filters:
                self._filters.move_to_end(key)
                return self._filters[key]
        made = RowFilter(self.fitting(where))
        with self._lock:
            if key not in self._filters:  # else another thread has just kept the same
                self._filters[key] = made
                self._filter_bytes += made.nbytes + _FILTER_COST
            while self._filter_bytes > FILTER_BYTES:
                _, dropped = self._filters.popitem(last=False)
                self._filter_bytes -= dropped.nbytes + _FILTER_COST
        return made

    def fitting(self, where: Mapping[str, Any]) -> NDArray[np.bool_]:
        """Return bool [rows]: the rows of the items that fit `where`; an item fits by its first row, whole."""
        mask = matching_rows(self._attributes, where)
        return mask[self._rows[self._starts[:-1]]][self.groups.numbers] if self.num_rows else mask


def _keyed(value: Any) -> Any:
    """Return `value` as JSON values that differ where a `where` differs: 1, 1.0, True and "1" are four things."""
    if isinstance(value, Mapping):
        return {str(name): _keyed(member) for name, member in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return sorted((_keyed(member) for member in value), key=repr)
    return f"{type(value).__name__}:{value!r}"


def _ascending(ids: pa.Array) -> bool:
    """Return whether texts are in the order of their code points, as Arrow compares them."""
    return len(ids) < 2 or bool(pc.all(pc.greater_equal(ids.slice(1), ids.slice(0, len(ids) - 1))).as_py())


def _plain(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):
        return pa.concat_arrays(combined.chunks) if combined.num_chunks else pa.array([], combined.type)
    return combined

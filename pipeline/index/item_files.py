"""A release's items in their files, mapped into memory: some columns of all rows, or all that is asked of a few."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import InputError
from ..ordering import take_rows
from ..parts import read_rows
from ..schema import ITEMS_VERSION, PART_NAMES, attribute_fields
from .latents import Rows


class ItemFiles:
    """The files of a release's items, in the order of its rows; immutable, safe in threads and forked children."""

    def __init__(self, paths: Iterable[str], name: str) -> None:
        """paths: of the files; name: for the error text. Raises InputError for a table of a newer version."""
        # The mapped bytes, not the name, which may be evicted from the cache; and no file, which would have a lock.
        self._files = [pa.memory_map(path).read_buffer() for path in paths]
        self._schema = pq.read_schema(pa.BufferReader(self._files[0]))
        version = int((self._schema.metadata or {}).get(b"schema", b"1"))
        if version > ITEMS_VERSION:
            raise InputError(
                f"{name} has the schema version {version}, this version reads up to {ITEMS_VERSION}; upgrade "
                "visual-codebooks"
            )
        rows = [pq.read_metadata(pa.BufferReader(file)).num_rows for file in self._files]
        self._starts = np.cumsum([0, *rows])

    def described(self) -> pa.Table:
        """Return item_id and the attributes of every row."""
        return self.columns(["item_id", *(field.name for field in attribute_fields(self._schema))])

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Return these columns of every row; names of parts and segments as dictionaries."""
        read = partial(pq.read_table, columns=list(names), read_dictionary=[n for n in PART_NAMES if n in names])
        return pa.concat_tables(read(pa.BufferReader(file)) for file in self._files)

    def rows(self, wanted: Rows, columns: Sequence[str]) -> pa.Table:
        """Return these rows, in this order; of each file the row groups that hold some are read."""
        holding = np.searchsorted(self._starts, wanted, side="right") - 1
        order = np.argsort(holding, kind="stable")
        numbers = np.unique(holding).tolist() or [0]
        found = [
            read_rows(pa.BufferReader(self._files[number]), wanted[holding == number] - self._starts[number], columns)
            for number in numbers
        ]
        back = np.empty(len(wanted), np.int64)
        back[order] = np.arange(len(wanted))
        return take_rows(pa.concat_tables(found), back)

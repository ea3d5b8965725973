"""Item vectors of which only some are in memory at a time: files of the table `vectors`, read where they are asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..index.latents import Float32, Rows
from ..mapping import mapped_file
from ..storage import Store
from .pieces import Waiting


@dataclass(slots=True)
class StoredVectors:
    """Vectors [n, dim] in files that wait on the store, in their order; asked as an array is, by rows alone.

    Held is one row group, the last that was read, beside what is asked for.
    """

    store: Store
    files: Sequence[Waiting]
    dim: int
    _open: tuple[int, pq.ParquetFile] | None = field(default=None, repr=False)
    _group: tuple[int, int, Float32] | None = field(default=None, repr=False)

    def __getstate__(self) -> tuple[Store, tuple[Waiting, ...], int]:
        return self.store, tuple(self.files), self.dim

    def __setstate__(self, state: tuple[Store, tuple[Waiting, ...], int]) -> None:
        self.store, self.files, self.dim = state
        self._open = self._group = None

    def __len__(self) -> int:
        """Return n."""
        return sum(file.rows or 0 for file in self.files)

    @property
    def shape(self) -> tuple[int, int]:
        """[n, dim]."""
        return len(self), self.dim

    def __getitem__(self, rows: Any) -> Float32:
        """Return some of the vectors, float32 [m, dim]. rows: a slice, or an integer array [m]."""
        wanted = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.asarray(rows, np.int64)
        found = np.empty((len(wanted), self.dim), np.float32)
        starts = np.cumsum([0, *(file.rows or 0 for file in self.files)])
        numbers = np.searchsorted(starts, wanted, side="right") - 1
        for number in np.unique(numbers).tolist():
            mine = np.flatnonzero(numbers == number)
            self._of_file(number, wanted[mine] - starts[number], mine, found)
        return found

    def _of_file(self, number: int, rows: Rows, places: Rows, found: Float32) -> None:
        """Put rows of a file where they are wanted in `found`."""
        file = self._file(number)
        meta = file.metadata
        starts = np.cumsum([0, *(meta.row_group(group).num_rows for group in range(meta.num_row_groups))])
        holding = np.searchsorted(starts, rows, side="right") - 1
        for group in np.unique(holding).tolist():
            mine = np.flatnonzero(holding == group)
            found[places[mine]] = self._rows_of(number, group)[rows[mine] - starts[group]]

    def _file(self, number: int) -> pq.ParquetFile:
        if self._open is None or self._open[0] != number:
            source = pa.BufferReader(pa.py_buffer(mapped_file(self.store, self.files[number].kept)))
            self._open = number, pq.ParquetFile(source, pre_buffer=False)
        return self._open[1]

    def _rows_of(self, number: int, group: int) -> Float32:
        if self._group is None or self._group[:2] != (number, group):
            self._group = None  # not two at a time
            column = self._file(number).read_row_group(group, columns=["vector"], use_threads=False)["vector"]
            flat = [chunk.flatten().to_numpy() for chunk in column.chunks]
            self._group = number, group, np.concatenate(flat).reshape(-1, self.dim)
        return self._group[2]


Vectors = Float32 | StoredVectors

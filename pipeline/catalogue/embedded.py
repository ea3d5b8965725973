"""Photos embedded in Parquet tables, by row number."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import IntegrityError
from ..storage import Files
from .parquet import is_under

_OPEN_TABLES = 4
# A row group whose photos fill no more than this is kept for the next call; a larger one is streamed.
_KEPT_BYTES = 256 << 20
_READ_AHEAD_BYTES = 1 << 20
_STREAMED_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class _Open:
    """An open table. ends: int64 [row groups], the row after the last of each."""

    handle: BinaryIO
    table: pq.ParquetFile
    ends: np.ndarray


class EmbeddedPhotos:
    """Reads rows of Parquet tables' image column, keeping the last row group. Not safe to share between threads."""

    def __init__(self, files: Files, image: str) -> None:
        self._files = files
        self._image = image
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._last: tuple[tuple[str, int], pa.ChunkedArray] | None = None

    def read(self, source: str, rows: list[int]) -> list[bytes | None]:
        """Return the bytes in these rows of a table, in the order asked; None where a row is gone or null."""
        opened = self._table(source)
        places = np.asarray(rows, dtype=np.int64)
        groups = np.searchsorted(opened.ends, places, side="right")
        found: list[bytes | None] = [None] * len(rows)
        for group in np.unique(groups[groups < len(opened.ends)]):
            members = np.flatnonzero(groups == group)
            first = opened.ends[group - 1] if group else 0
            values = self._group(source, opened, int(group), places[members] - first)
            for member, value in zip(members, values, strict=True):
                found[member] = value
        return found

    def _table(self, source: str) -> _Open:
        found = self._open.pop(source, None)
        if found is None:
            handle = self._files.open(source)
            table = pq.ParquetFile(handle, pre_buffer=False, buffer_size=_READ_AHEAD_BYTES)
            if self._image not in table.schema_arrow.names:
                raise IntegrityError(f"{source} has no column {self._image!r} any more")
            sizes = [table.metadata.row_group(number).num_rows for number in range(table.num_row_groups)]
            found = _Open(handle, table, np.cumsum(sizes, dtype=np.int64))
        self._open[source] = found
        while len(self._open) > _OPEN_TABLES:
            _, oldest = self._open.popitem(last=False)
            oldest.handle.close()
        return found

    def _group(self, source: str, opened: _Open, group: int, rows: np.ndarray) -> list[bytes | None]:
        if self._last is None or self._last[0] != (source, group):
            size = _bytes_of(opened.table, group, self._image)
            if size > _KEPT_BYTES:
                return self._streamed(opened.table, group, rows, size)
            self._last = None  # before the next is read: never two at a time
            column = opened.table.read_row_group(group, columns=[self._image], use_threads=False).column(0)
            self._last = ((source, group), _photo_bytes(column))
        return list(self._last[1].take(pa.array(rows)).to_pylist())

    def _streamed(self, table: pq.ParquetFile, group: int, rows: np.ndarray, size: int) -> list[bytes | None]:
        total = table.metadata.row_group(group).num_rows
        batch_rows = max(1, _STREAMED_BYTES * total // size)
        found: list[bytes | None] = [None] * len(rows)
        begin = 0
        for batch in table.iter_batches(batch_rows, row_groups=[group], columns=[self._image], use_threads=False):
            inside = np.flatnonzero((rows >= begin) & (rows < begin + batch.num_rows))
            if len(inside):
                column = _photo_bytes(pa.chunked_array([batch.column(0)]))
                for member, value in zip(inside, column.take(pa.array(rows[inside] - begin)).to_pylist(), strict=True):
                    found[member] = value
            begin += batch.num_rows
            if begin > rows.max():
                break
        return found


def _photo_bytes(column: pa.ChunkedArray) -> Any:
    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column


def _bytes_of(table: pq.ParquetFile, group: int, image: str) -> int:
    meta = table.metadata.row_group(group)
    chunks = (meta.column(number) for number in range(meta.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if is_under(chunk.path_in_schema, image))

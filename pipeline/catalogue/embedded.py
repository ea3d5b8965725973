"""Photos embedded in Parquet tables, by row number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..column_types import photo_bytes
from ..errors import IntegrityError
from ..storage import Files
from .parquet import READ_AHEAD_BYTES, is_under

# A row group whose photos fill no more than this is kept for the next call; a larger one is streamed.
_KEPT_BYTES = 256 << 20
_STREAMED_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class _Table:
    """What is kept of a table. footer: its metadata; ends: int64 [row groups], the row after the last of each."""

    footer: pq.FileMetaData
    ends: np.ndarray


class EmbeddedPhotos:
    """Reads rows of Parquet tables' image column, keeping footers and the last row group.

    No file stays open between calls. Not safe to share between threads.
    """

    def __init__(self, files: Files, image: str) -> None:
        self._files = files
        self._image = image
        self._tables: dict[str, _Table] = {}
        self._last: tuple[tuple[str, int], pa.ChunkedArray] | None = None

    def read(self, source: str, rows: list[int]) -> list[bytes | None]:
        """Return the bytes in these rows of a table, in the order asked; None where a row is gone or null.

        Raises what `Files.open` does; IntegrityError, OSError or ArrowInvalid when the table is not what it was.
        """
        table = self._table(source)
        places = np.asarray(rows, dtype=np.int64)
        groups = np.searchsorted(table.ends, places, side="right")
        found: list[bytes | None] = [None] * len(rows)
        for group in np.unique(groups[groups < len(table.ends)]):
            members = np.flatnonzero(groups == group)
            first = table.ends[group - 1] if group else 0
            values = self._rows(source, table.footer, int(group), places[members] - first)
            for member, value in zip(members, values, strict=True):
                found[member] = value
        return found

    def _table(self, source: str) -> _Table:
        if source not in self._tables:
            with self._files.open(source) as handle:
                table = pq.ParquetFile(handle)
                if self._image not in table.schema_arrow.names:
                    raise IntegrityError(f"{source} has no column {self._image!r} any more")
                sizes = [table.metadata.row_group(number).num_rows for number in range(table.num_row_groups)]
                self._tables[source] = _Table(table.metadata, np.cumsum(sizes, dtype=np.int64))
        return self._tables[source]

    def _rows(self, source: str, footer: pq.FileMetaData, group: int, rows: np.ndarray) -> list[bytes | None]:
        if self._last is None or self._last[0] != (source, group):
            self._last = None  # before the next is read: never two at a time
            size = _bytes_of(footer, group, self._image)
            streamed = size > _KEPT_BYTES
            with self._files.open(source) as handle:
                read_ahead = READ_AHEAD_BYTES if streamed else 0  # 0: a whole column chunk in one request
                table = pq.ParquetFile(handle, metadata=footer, pre_buffer=False, buffer_size=read_ahead)
                if streamed:
                    return self._streamed(table, group, rows, size)
                column = table.read_row_group(group, columns=[self._image], use_threads=False).column(0)
            self._last = ((source, group), photo_bytes(column))
        return [self._last[1][row].as_py() for row in rows.tolist()]

    def _streamed(self, table: pq.ParquetFile, group: int, rows: np.ndarray, size: int) -> list[bytes | None]:
        total = table.metadata.row_group(group).num_rows
        batch_rows = max(1, _STREAMED_BYTES * total // size)
        found: list[bytes | None] = [None] * len(rows)
        begin = 0
        for batch in table.iter_batches(batch_rows, row_groups=[group], columns=[self._image], use_threads=False):
            inside = np.flatnonzero((rows >= begin) & (rows < begin + batch.num_rows))
            if len(inside):
                column = photo_bytes(pa.chunked_array([batch.column(0)]))
                for member in inside:
                    found[member] = column[int(rows[member] - begin)].as_py()
            begin += batch.num_rows
            if begin > rows.max():
                break
        return found


def _bytes_of(footer: pq.FileMetaData, group: int, image: str) -> int:
    meta = footer.row_group(group)
    chunks = (meta.column(number) for number in range(meta.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if is_under(chunk.path_in_schema, image))

"""Photos embedded in Parquet tables, by row number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..column_types import photo_bytes
from ..errors import IntegrityError, PhotoRefused
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

    No file stays open between calls. Not safe to share between threads. max_bytes: of one photo; a longer one is not
    copied out of its page, which Parquet can only give whole.
    """

    def __init__(self, files: Files, image: str, max_bytes: int | None = None) -> None:
        self._files = files
        self._image = image
        self._max_bytes = max_bytes
        self._tables: dict[str, _Table] = {}
        self._last: tuple[tuple[str, int], pa.ChunkedArray] | None = None

    def read(self, source: str, rows: list[int]) -> list[bytes | PhotoRefused | None]:
        """Return the bytes in these rows of a table, in the order asked; None where a row is gone or null, a refusal
        where it holds more than `max_bytes`.

        Raises what `Files.open` does; IntegrityError, OSError or ArrowInvalid when the table is not what it was.
        """
        table = self._table(source)
        places = np.asarray(rows, dtype=np.int64)
        groups = np.searchsorted(table.ends, places, side="right")
        found: list[bytes | PhotoRefused | None] = [None] * len(rows)
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

    def _rows(
        self, source: str, footer: pq.FileMetaData, group: int, rows: np.ndarray
    ) -> list[bytes | PhotoRefused | None]:
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
        return self._taken(self._last[1], rows)

    def _taken(self, column: pa.ChunkedArray, rows: np.ndarray) -> list[bytes | PhotoRefused | None]:
        """Return the photos in these rows of a column; the too long ones without a copy."""
        found: list[bytes | PhotoRefused | None] = []
        for row in rows.tolist():
            buffer = column[row].as_buffer()
            size = -1 if buffer is None else buffer.size
            too_long = self._max_bytes is not None and size > self._max_bytes
            found.append(_refuse_size(size, self._max_bytes or 0) if too_long else column[row].as_py())
        return found

    def _streamed(
        self, table: pq.ParquetFile, group: int, rows: np.ndarray, size: int
    ) -> list[bytes | PhotoRefused | None]:
        total = table.metadata.row_group(group).num_rows
        batch_rows = max(1, _STREAMED_BYTES * total // size)
        found: list[bytes | PhotoRefused | None] = [None] * len(rows)
        begin = 0
        for batch in table.iter_batches(batch_rows, row_groups=[group], columns=[self._image], use_threads=False):
            inside = np.flatnonzero((rows >= begin) & (rows < begin + batch.num_rows))
            if len(inside):
                column = photo_bytes(pa.chunked_array([batch.column(0)]))
                for member, value in zip(inside, self._taken(column, rows[inside] - begin), strict=True):
                    found[member] = value
            begin += batch.num_rows
            if begin > rows.max():
                break
        return found


def _bytes_of(footer: pq.FileMetaData, group: int, image: str) -> int:
    meta = footer.row_group(group)
    chunks = (meta.column(number) for number in range(meta.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if is_under(chunk.path_in_schema, image))


def _refuse_size(size: int, max_bytes: int) -> PhotoRefused:
    """Return the refusal of a photo that is longer than images.max_bytes: no later night is to try it again."""
    return PhotoRefused("decode", "too_many_bytes", f"{size:,} bytes are more than images.max_bytes={max_bytes:,}")

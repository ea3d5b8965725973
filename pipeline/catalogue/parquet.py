"""Parquet tables, read a few thousand rows at a time, only the columns that are wanted."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from ..storage import Files
from .columns import Columns, choose_columns, same_text
from .config import CatalogueConfig
from .formats import Place, opened
from .rows import Tally, photo_rows

_BATCH_ROWS = 65_536
_BATCH_BYTES = 32 << 20
READ_AHEAD_BYTES = 8 << 20  # one request of a store


def parquet_rows(place: Place, config: CatalogueConfig, files: Files, tally: Tally) -> Iterator[pa.Table]:
    """Yield the photos of one Parquet file as tables of rows.ROWS and attributes. Raises InputError."""
    with opened(files, place.uri, "Parquet") as handle:
        # With a buffer size pages are read as they are needed; without, the whole column of a row group is held,
        # which for embedded photos can be many GB.
        table = pq.ParquetFile(handle, buffer_size=READ_AHEAD_BYTES, pre_buffer=False)
        # Not `empty_table`: it makes arrays, which Arrow cannot of every extension type (fixed_shape_tensor).
        empty = pa.Table.from_batches([], schema=table.schema_arrow)
        columns = choose_columns(with_partition(empty, place).schema, config, place.uri)
        tally.skipped_columns.update(columns.skipped)
        first_row = 0
        stored = [name for name in columns.read if name in table.schema_arrow.names]
        for batch in table.iter_batches(batch_size=_batch_rows(table, columns), columns=stored, use_threads=False):
            held = with_partition(pa.Table.from_batches([batch]), place)
            yield photo_rows(held, columns, place, config, first_row=first_row)
            first_row += batch.num_rows


def with_partition(batch: pa.Table, place: Place) -> pa.Table:
    """Return a batch with the columns that the file's path holds (`.../category=Shoes/part-0.parquet`)."""
    for name, value in place.partition.items():
        if name not in batch.column_names:
            column = pa.nulls(batch.num_rows, pa.string()) if value is None else same_text(value, batch.num_rows)
            batch = batch.append_column(name, column)
    return batch


def _batch_rows(table: pq.ParquetFile, columns: Columns) -> int:
    """Rows whose photos fill about 32 MB, or 65,536 when no photos are embedded."""
    if columns.image_kind not in ("bytes", "struct") or not table.metadata.num_rows:
        return _BATCH_ROWS
    rows, held = int(table.metadata.num_rows), 0
    for group in range(table.metadata.num_row_groups):
        meta = table.metadata.row_group(group)
        chunks = (meta.column(number) for number in range(meta.num_columns))
        held += sum(chunk.total_uncompressed_size for chunk in chunks if is_under(chunk.path_in_schema, columns.image))
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * rows // max(held, 1)))


def is_under(path: str, column: str) -> bool:
    """Return whether a Parquet leaf (`image.bytes`) belongs to a top-level column (`image`)."""
    return path == column or path.startswith(f"{column}.")

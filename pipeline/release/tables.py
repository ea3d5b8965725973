"""A release's tables: as Parquet files of bounded length, and read back, checked against its manifest."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import IntegrityError
from ..keys import digest_of, key_of
from ..schema import PART_NAMES, held_table, stored_schema
from ..storage import Store
from .manifest import FileEntry, Manifest
from .write import ReleaseFile

FILE_ROWS = 2_000_000  # of one file: what a task reads whole
_COARSE = 1 << 20  # rows of a row group where a table is one file, as every version has written it
FINE = 1 << 17  # and where it is several: a look-up by item_id reads few of them


def read_file(store: Store, entry: FileEntry) -> bytes:
    """Return a release file's bytes. Raises IntegrityError when they are not those of the manifest."""
    data = store.get(entry.name)
    found = digest_of(data)
    if found != entry.sha256:
        raise IntegrityError(
            f"{entry.name} has the sha256 {found} and {len(data):,} bytes, its manifest says {entry.sha256} and "
            f"{entry.bytes:,}: it was changed after it was published; roll the channel back to another release"
        )
    return data


def read_table(
    store: Store,
    manifest: Manifest,
    role: str,
    *,
    columns: Sequence[str] | None = None,
    without: Sequence[str] = (),
    of_items: pa.Array | None = None,
) -> pa.Table:
    """Return the release's table of this role (`items`, `quarantine`, `changes`).

    columns: only these; without: all but these; of_items: only the rows of these item_ids. Names of parts come as
    dictionaries: their texts would be more than half of the table. Its files are read one after the other, so that
    beside the table one of them is held. Raises IntegrityError when a file's bytes or row count are not those of the
    manifest.
    """
    tables = [
        table if of_items is None else table.filter(pc.is_in(table["item_id"], value_set=of_items))
        for table in read_files(store, manifest, role, columns=columns, without=without)
    ]
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables)


def read_files(
    store: Store,
    manifest: Manifest,
    role: str,
    *,
    columns: Sequence[str] | None = None,
    without: Sequence[str] = (),
) -> Iterator[pa.Table]:
    """Yield the same table a file at a time, each read when it is asked for."""
    for entry in manifest.files_of(role):
        yield read_entry(store, entry, columns=columns, without=without)


def read_entry(
    store: Store, entry: FileEntry, *, columns: Sequence[str] | None = None, without: Sequence[str] = ()
) -> pa.Table:
    """Return one file of it."""
    data = pa.BufferReader(read_file(store, entry))
    rows = pq.read_metadata(data).num_rows
    if entry.rows is not None and rows != entry.rows:
        raise IntegrityError(f"{entry.name} has {rows:,} rows, its manifest says {entry.rows:,}")
    names = pq.read_schema(data).names if columns is None else columns
    wanted = [name for name in names if name not in without]
    return held_table(pq.read_table(data, columns=wanted, read_dictionary=list(PART_NAMES)))


def table_files(table: pa.Table, *, looked_up: bool = False) -> Iterator[ReleaseFile]:
    """Yield a table as Parquet files of FILE_ROWS rows, each made when it is asked for; an empty one is one file.

    looked_up: by item_id, so that it has short row groups also where it is one file.
    """
    return ranged_files(table.num_rows, lambda start, stop: table.slice(start, stop - start), looked_up=looked_up)


def ranged_files(rows: int, piece: Callable[[int, int], pa.Table], *, looked_up: bool = False) -> Iterator[ReleaseFile]:
    """Yield the same files of a table of so many rows that is never whole. piece: (start, stop) -> these rows."""
    group_rows = FINE if looked_up or rows > FILE_ROWS else _COARSE
    for start in range(0, max(1, rows), FILE_ROWS):
        table = piece(start, min(start + FILE_ROWS, rows))
        yield ReleaseFile(write_table(table, group_rows=group_rows), ".parquet", table.num_rows)


@dataclass(frozen=True, slots=True)
class HashedTable:
    """A table's files, to be written once, and what names them before: digest: the sha256 of its one file, or the key
    of those of its several; manifest_format: of the release that holds it."""

    files: Iterator[ReleaseFile]
    digest: str
    manifest_format: Literal[1, 2]


def hashed_table(table: pa.Table) -> HashedTable:
    """Return a table as files with its digest; several are made once more when they are written, not held."""
    digests, last = [], []
    for file in table_files(table):
        digests.append(digest_of(file.data))
        last = [file]
    if len(digests) == 1:
        return HashedTable(iter(last), digests[0], 1)
    return HashedTable(table_files(table), key_of(digests), 2)


def write_table(table: pa.Table, *, group_rows: int = _COARSE) -> bytes:
    """Return a table as the bytes of one Parquet file; equal rows give equal bytes. group_rows: of a row group."""
    schema = stored_schema(table.schema)
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for start in range(0, max(1, table.num_rows), group_rows):
            # One chunk, one write: the bytes depend on how the rows are chunked.
            group = table.slice(start, group_rows).cast(schema).combine_chunks()
            writer.write_table(group, row_group_size=group_rows)
    return sink.getvalue()

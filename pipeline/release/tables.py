"""Reading a release's tables whole, checked against its manifest."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import IntegrityError
from ..keys import digest_of
from ..storage import Store
from .manifest import FileEntry, Manifest


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


def read_table(store: Store, manifest: Manifest, role: str) -> pa.Table:
    """Return the release's table of this role (`items`, `quarantine`, `changes`).

    Raises IntegrityError when the file's bytes or row count are not those of the manifest.
    """
    entry = manifest.files[role]
    table = pq.read_table(io.BytesIO(read_file(store, entry)))
    if entry.rows is not None and table.num_rows != entry.rows:
        raise IntegrityError(f"{entry.name} has {table.num_rows:,} rows, its manifest says {entry.rows:,}")
    return table


def write_table(table: pa.Table) -> bytes:
    """Return a table as the bytes of one Parquet file; equal rows give equal bytes."""
    sink = io.BytesIO()
    # One chunk, one write: the bytes depend on how the rows are chunked.
    pq.write_table(table.combine_chunks(), sink, compression="zstd")
    return sink.getvalue()

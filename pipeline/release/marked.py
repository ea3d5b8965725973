"""The list of an expiry: one row a file, with the reason why it is kept or deleted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import IntegrityError, NotFound
from ..keys import SHORT, digest_of
from ..storage import Entry, Store
from .tables import write_table

LISTS = "expiry/lists/"
INVENTORY = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("modified", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("token", pa.string(), nullable=False),
        pa.field("verdict", pa.string(), nullable=False),  # keep, delete
        pa.field("reason", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Judged:
    """One file of the store, whether it is kept, and why."""

    entry: Entry
    keep: bool
    reason: str


def inventory_bytes(judged: Sequence[Judged]) -> bytes:
    """Return an inventory as a Parquet file: name, bytes, modified, token, verdict, reason."""
    columns = {
        "name": [one.entry.name for one in judged],
        "bytes": [one.entry.size for one in judged],
        "modified": [one.entry.modified for one in judged],
        "token": [one.entry.token for one in judged],
        "verdict": ["keep" if one.keep else "delete" for one in judged],
        "reason": [one.reason for one in judged],
    }
    return write_table(pa.table(columns, INVENTORY))


def write_marked(store: Store, judged: Sequence[Judged]) -> tuple[str, str]:
    """Write a list once and return (its name, its sha256)."""
    data = inventory_bytes(judged)
    digest = digest_of(data)
    name = f"{LISTS}{digest[:SHORT]}.parquet"
    store.put_if_absent(name, data)
    return name, digest


def read_marked(store: Store, name: str, sha256: str) -> pa.Table:
    """Return a list. Raises IntegrityError when it is gone or has other bytes."""
    try:
        data = store.get(name)
    except NotFound as error:
        raise IntegrityError(f"{name} is gone; `codebooks undelete` drops the mark that names it") from error
    if digest_of(data) != sha256:
        raise IntegrityError(
            f"{name} is not the list that was marked: its sha256 is not {sha256}; `codebooks undelete` drops the mark"
        )
    return pq.read_table(pa.BufferReader(data))

"""Parts: write-once Parquet files of pixels or latents, named by what was asked for.

A part of pixels that are not stored, only what became of each photo, lies below `photos/`, where nothing takes it for
pixels.

The first writer of a part wins and every other attempt uses the winner's bytes, so nothing depends on a second
computation being equal to the bit.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from .damaged import damaged_as
from .errors import IntegrityError, NotFound
from .keys import DIGEST, digest_of, key_of
from .storage import Store

# Tables of photos name parts; one that led out of these folders would have any file of the store read as a part.
_NAME = re.compile(r"(latents|photos|pixels)/[A-Za-z0-9_-]+/[A-Za-z0-9._-]+\.parquet")

_FOOTER = 1 << 16  # bytes at a part's end that are read for its footer: more than most footers
_MAGIC = b"PAR1"
_PIECE = 32 << 20


class FoundPart(BaseModel):
    """One part on the store, by its footer. bytes: file size; rows: rows in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    bytes: int = Field(ge=0)
    rows: int = Field(ge=0)


class PartFile(FoundPart):
    """One part as a manifest lists it. sha256: of the file's bytes."""

    sha256: str = Field(pattern=DIGEST)


def check_part_name(name: str) -> str:
    """Return a part's name as a table or manifest has it. Raises IntegrityError for what is no part's name."""
    if not _NAME.fullmatch(name):
        raise IntegrityError(
            f"{name!r:.200} is named as a part, but parts lie at latents/MODEL_ID/KEY.parquet and at pixels/ or "
            "photos/TRANSFORM_ID/KEY.parquet: the table that names it was not written by a run; use another release"
        )
    return name


def pixels_part_name(transform_id: str, part_key: str, *, stored: bool = True) -> str:
    """Return a pixels part's name on the store; stored: whether the pixels are in it."""
    return f"{'pixels' if stored else 'photos'}/{transform_id}/{part_key}.parquet"


def has_pixels(name: str) -> bool:
    """Return whether a part of this name holds pixels."""
    return name.startswith("pixels/")


def latents_part_name(model_id: str, part_key: str) -> str:
    """Return a latents part's name on the store."""
    return f"latents/{model_id}/{part_key}.parquet"


def part_key(
    schema_version: int,
    space_id: str,
    precision: str,
    photos: pa.Table,
    *,
    retry_of: str = "",
    pixels_part: str = "",
    labels: Sequence[str | None] | None = None,
) -> str:
    """Return the key of the part that answers these photos.

    space_id: model_id or transform_id. photos: columns item_id, uri, token, in the part's order. retry_of: the release
    whose refused fetches are tried again, so that an older part which holds the refusal does not answer. pixels_part:
    the part that latents are encoded from, so that latents of the same photos under another transform do not answer.
    labels: the photos' categories where the model is told them, so that latents under other ones do not answer.
    """
    asked = list(zip(*(photos.column(name).to_pylist() for name in ("item_id", "uri", "token")), strict=True))
    source = [pixels_part] if pixels_part else []
    told = [] if labels is None else [list(labels)]
    return key_of([schema_version, space_id, precision, retry_of, asked, *source, *told])


def write_part(store: Store, name: str, table: pa.Table, key: str) -> PartFile:
    """Write a part in one `put_if_absent`; when another attempt was first, return that one's part.

    Raises IntegrityError when the winner's part does not hold this key.
    """
    return put_part(store, name, table, key)[0]


def put_part(store: Store, name: str, table: pa.Table, key: str) -> tuple[PartFile, bool]:
    """Do what `write_part` does; also return whether the bytes on the store are those of `table`."""
    meta = {**(table.schema.metadata or {}), b"part_key": key.encode()}
    sink = io.BytesIO()
    # One chunk, one write: the bytes of a Parquet file depend on how its rows are chunked.
    pq.write_table(table.combine_chunks().replace_schema_metadata(meta), sink, compression="zstd", row_group_size=1024)
    data = sink.getvalue()
    ours = PartFile(name=name, bytes=len(data), rows=table.num_rows, sha256=digest_of(data))
    if store.put_if_absent(name, data):
        return ours, True
    found = load_part(store, name, key)
    if found is None:
        raise IntegrityError(f"{name} was there and is gone: something deletes parts while a run is alive")
    return found[0], found[0] == ours


def find_part(store: Store, name: str, key: str, *, size: int | None = None) -> FoundPart | None:
    """Return a finished part, or None when nothing has this name; its footer and key are checked, by its end alone.

    size: of the file, where a listing has told it. Raises IntegrityError when the file is no Parquet file or holds
    another key.
    """
    try:
        size = store.stat(name).size if size is None else size
        end = store.get(name, start=-min(size, _FOOTER)) if size else b""
        wanted = int.from_bytes(end[-8:-4], "little") + 8 if end[-4:] == _MAGIC else 0
        if len(end) < wanted <= size:
            end = store.get(name, start=-wanted)
    except NotFound:
        return None
    return FoundPart(name=name, bytes=size, rows=_checked(name, end, key).num_rows)


def load_part(store: Store, name: str, key: str) -> tuple[PartFile, pa.Table] | None:
    """Return a finished part and its table from one request, checked as by `find_part`; None when there is none."""
    try:
        data = store.get(name)
    except NotFound:
        return None
    rows = _checked(name, data, key).num_rows
    part = PartFile(name=name, bytes=len(data), rows=rows, sha256=digest_of(data))
    with readable(name):
        return part, pq.read_table(pa.BufferReader(data))


def hashed_part(store: Store, part: FoundPart) -> PartFile:
    """Return a part with its digest, which is taken now where nobody has: the file is read whole, in pieces.

    Raises IntegrityError when the file is gone or has another size.
    """
    if isinstance(part, PartFile):
        return part
    digest, place = hashlib.sha256(), 0
    try:
        while place < part.bytes:
            piece = store.get(part.name, start=place, end=min(part.bytes, place + _PIECE))
            if not piece:
                break
            digest.update(piece)
            place += len(piece)
    except NotFound as error:
        raise IntegrityError(f"{part.name} is gone: something deletes parts while a run is alive") from error
    if place != part.bytes or store.stat(part.name).size != place:
        raise IntegrityError(f"{part.name} has changed since it was found; parts are written once, run again")
    return PartFile(**part.model_dump(), sha256=digest.hexdigest())


def read_part(store: Store, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a part's table (only `columns` where given). Raises NotFound, IntegrityError."""
    with readable(name), store.open(check_part_name(name)) as handle:
        table = read_whole(handle, columns)
    missing = [column for column in columns or () if column not in table.column_names]  # Arrow leaves them out
    if missing:
        raise IntegrityError(f"{name} has no column {', '.join(missing)}: its model does not yield it")
    return table


def read_whole(handle: Any, columns: Sequence[str] | None = None, *, dictionaries: Sequence[str] = ()) -> pa.Table:
    """Return the table of an open file, in this thread alone; columns: only these, dictionaries: these as dictionaries.

    `pq.read_table` hands Python's file to threads of Arrow's, which may let go of it when the interpreter is already
    ending: the process then dies by SIGABRT ("terminate called without an active exception"), its work done.
    Raises pa.ArrowInvalid for what is no Parquet file or lacks a column.
    """
    with pq.ParquetFile(handle, read_dictionary=list(dictionaries), pre_buffer=False) as file:
        if lacking := [name for name in columns or () if name not in file.schema_arrow.names]:
            raise pa.ArrowInvalid(f"it has no column {', '.join(lacking)}, only {', '.join(file.schema_arrow.names)}")
        return file.read(None if columns is None else list(columns), use_threads=False)


def part_columns(store: Store, name: str) -> list[str]:
    """Return the names of a part's columns, from its footer alone. Raises NotFound, IntegrityError."""
    return list(part_schema(store, name).names)


def part_schema(store: Store, name: str) -> pa.Schema:
    """Return a part's schema, from its footer alone. Raises NotFound, IntegrityError."""
    with readable(name), store.open(check_part_name(name)) as handle:
        return pq.read_schema(handle)


def read_part_rows(store: Store, name: str, rows: npt.NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
    """Return these rows of a part, in this order; only their row groups are read. Raises NotFound, IntegrityError."""
    with readable(name), store.open(check_part_name(name)) as handle:
        return read_rows(handle, rows, columns)


def read_rows(source: Any, rows: npt.NDArray[np.int64], columns: Sequence[str] | None = None) -> pa.Table:
    """Return these rows of a Parquet file, in this order; only the row groups that hold them are read.

    source: its local path, or an open file. Raises IntegrityError when the file has fewer rows.
    """
    with pq.ParquetFile(source) as file:
        meta = file.metadata
        if len(rows) and (rows.max() >= meta.num_rows or rows.min() < 0):
            raise IntegrityError(f"{source} has {meta.num_rows} rows, but row {rows.max()} is asked for")
        starts = np.cumsum([0, *(meta.row_group(group).num_rows for group in range(meta.num_row_groups))])
        holding = np.searchsorted(starts, rows, side="right") - 1
        groups = np.unique(holding)
        table = file.read_row_groups(
            groups.tolist(), columns=None if columns is None else list(columns), use_threads=False
        )  # see read_whole
    # Where each read group begins in `table`.
    offsets = np.concatenate([[0], np.cumsum(starts[groups + 1] - starts[groups])[:-1]]) if len(groups) else groups
    return table.take(pa.array(rows - starts[holding] + offsets[np.searchsorted(groups, holding)]))


def readable(name: str) -> AbstractContextManager[None]:
    """Return what makes damage that Arrow meets in a part an IntegrityError that names it."""
    return damaged_as(
        lambda words: IntegrityError(f"{name} is not a readable Parquet file ({words}); delete it and run again")
    )


def _checked(name: str, end: bytes, key: str) -> pq.FileMetaData:
    """Return a part's footer. end: the file's bytes, or its last ones."""
    with readable(name):
        meta = pq.read_metadata(io.BytesIO(end))
    held = (meta.metadata or {}).get(b"part_key", b"").decode()
    if held != key:
        raise IntegrityError(f"{name} holds the part key {held!r}, expected {key!r}; delete the file and run again")
    return meta

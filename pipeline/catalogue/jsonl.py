"""JSON lines, parsed block by block."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.json as arrow_json

from ..errors import InputError
from ..storage import Files
from .columns import choose_columns
from .config import CatalogueConfig
from .formats import Place, opened
from .parquet import with_partition
from .rows import Lines, Tally, photo_rows

_BLOCK_BYTES = 4 << 20
_PEEKED_LINES = 100
_BLANK = b" \t\r\n"


def jsonl_rows(place: Place, config: CatalogueConfig, files: Files, tally: Tally) -> Iterator[pa.Table]:
    """Yield the photos of one JSON lines file as tables of rows.ROWS and attributes. Raises InputError.

    One object a line; blank lines are passed over. A field absent from a whole block of lines is null there.
    """
    types: list[pa.Field] | None = None
    seen: set[str] = set()
    first_row = 0
    with opened(files, place.uri, "JSON lines") as handle:
        for start, block in _blocks(handle):
            lines = _lines(start, block)
            if not len(lines.start):
                continue
            if types is None:
                types = _text_fields(block)
            batch = _parse(block, types, len(lines.start), place.uri, first_row)
            seen.update(batch.column_names)
            batch = with_partition(_with_known(batch, seen), place)
            columns = choose_columns(batch.schema, config, place.uri)
            tally.skipped_columns.update(columns.skipped)
            held = photo_rows(batch, columns, place, config, first_row=first_row, lines=lines)
            _refuse_packed(held, place.uri)
            yield held
            first_row += batch.num_rows


def _blocks(handle: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield (first byte's position, bytes) of blocks of whole lines; a block grows to hold its longest line."""
    start, rest = 0, b""
    while data := handle.read(_BLOCK_BYTES):
        block = rest + data
        cut = block.rfind(b"\n") + 1
        if cut:
            yield start, block[:cut]
        start, rest = start + cut, block[cut:]
    if rest:
        yield start, rest


def _lines(start: int, block: bytes) -> Lines:
    """Find the lines of a block that hold more than white space."""
    ends = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n"))
    if not block.endswith(b"\n"):
        ends = np.append(ends, len(block))
    begins = np.concatenate([[0], ends[:-1] + 1])
    length = ends - begins
    filled = length > 0
    # Only short lines can be blank in practice; the few that are short are looked at one by one.
    for number in np.flatnonzero(filled & (length < 4)):
        filled[number] = bool(block[begins[number] : ends[number]].strip(_BLANK))
    return Lines(start + begins[filled], length[filled])


def _text_fields(block: bytes) -> list[pa.Field]:
    """Return the fields that the first lines show to be text: Arrow would read some of it as times."""
    found: dict[str, Any] = {}
    for line in block.splitlines()[:_PEEKED_LINES]:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # Arrow refuses the line below, with its number
        if isinstance(row, dict):
            for name, value in row.items():
                if isinstance(value, str):
                    found[name] = pa.string()
                elif isinstance(value, list) and value and all(isinstance(member, str) for member in value):
                    found[name] = pa.list_(pa.string())
    return [pa.field(name, kind) for name, kind in found.items()]


def _parse(block: bytes, types: list[pa.Field], rows: int, file: str, first_row: int) -> pa.Table:
    try:
        table = arrow_json.read_json(
            io.BytesIO(block),
            read_options=arrow_json.ReadOptions(block_size=len(block) + 1, use_threads=False),
            parse_options=arrow_json.ParseOptions(explicit_schema=pa.schema(types)),
        )
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{file} cannot be read as JSON lines (counting from row {first_row + 1}): {error}; write one object a "
            "line, and each field with one type"
        ) from error
    if table.num_rows != rows:
        raise InputError(
            f"{file}: {rows} lines after row {first_row} hold {table.num_rows} objects; write one whole object a line"
        )
    return table


def _with_known(batch: pa.Table, seen: set[str]) -> pa.Table:
    """Add the columns that earlier blocks have and this one lacks: a field may be left out where it is null."""
    for name in sorted(seen - {*batch.column_names}):
        batch = batch.append_column(name, pa.nulls(batch.num_rows))
    return batch


def _refuse_packed(held: pa.Table, file: str) -> None:
    if file.lower().endswith(".gz") and held.column("source").null_count < held.num_rows:
        raise InputError(f"{file} is packed and holds embedded photos, which are read by their place; unpack it")

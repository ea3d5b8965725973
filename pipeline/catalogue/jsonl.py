"""JSON lines, parsed block by block."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as arrow_json

from ..errors import InputError
from ..storage import Files
from .addresses import is_photo_object, photo_texts
from .cells import readable_cells
from .columns import choose_columns
from .config import CatalogueConfig
from .formats import Place
from .json_values import EXACT, columns_of, parse_object
from .parquet import with_partition
from .rows import Lines, Tally, photo_rows
from .text import opened_text, utf8_blocks

_BLOCK_BYTES = 4 << 20
_PEEKED_LINES = 100
_OPENED = 500  # brackets and braces of one line
_PHOTO = pa.struct([("bytes", pa.string()), ("path", pa.string())])
_BLANK = b" \t\r\n"


def jsonl_rows(place: Place, config: CatalogueConfig, files: Files, tally: Tally) -> Iterator[pa.Table]:
    """Yield the photos of one JSON lines file as tables of rows.ROWS and attributes. Raises InputError.

    One object a line; blank lines are passed over. A field absent from a whole block of lines is null there.
    """
    known: dict[str, pa.DataType] = {}
    wanted = _wanted(config)
    first_row = 0
    with opened_text(files, place.uri, config.encoding, "JSON lines") as text:
        for start, block in _blocks(utf8_blocks(text, place.uri, _BLOCK_BYTES)):
            if not first_row and block.lstrip(_BLANK).startswith(b"["):
                raise InputError(f"{place.uri} holds a JSON list; write its objects one a line (jq -c '.[]' does)")
            lines = _lines(start, block)
            if not len(lines.start):
                continue
            batch = _Block(block, start, lines, place.uri, first_row, config.image).table(known, wanted)
            known |= {
                f.name: _PHOTO if is_photo_object(f.type) else f.type
                for f in batch.schema
                if f.name not in known or not pa.types.is_null(f.type)
            }
            batch = with_partition(_with_known(_with_photo_texts(batch, config.image), known), place)
            columns = choose_columns(batch.schema, config, place.uri)
            tally.skipped_columns.update(columns.skipped)
            held = photo_rows(batch, columns, place, config, first_row=first_row, lines=lines)
            if not text.in_place:
                _refuse_embedded(held, place.uri)
            yield held
            first_row += batch.num_rows


def _wanted(config: CatalogueConfig) -> frozenset[str] | None:
    """Return the fields that are asked for, None where that is every one that can be kept."""
    if config.attributes is None:
        return None
    named = {config.item_id, config.image, config.version, config.category, *config.attributes}
    return frozenset(name for name in named if name is not None)


@dataclass(frozen=True, slots=True)
class _Block:
    """Whole lines of a file. start: the first byte's position; first_row: rows of the file before it."""

    data: bytes
    start: int
    lines: Lines
    file: str
    first_row: int
    image: str

    def table(self, known: dict[str, pa.DataType], wanted: frozenset[str] | None) -> pa.Table:
        """Return the wanted fields as columns; known: what earlier blocks showed their types to be.

        Arrow reads what it reads exactly, which is nearly everything; the rest is read line by line, slower, and what
        no column can hold is refused with its row.
        """
        if wanted is None:
            types = {name: kind for name, kind in (known or self._peeked()).items() if _is_text(kind)}
        else:
            types = {name: known[name] for name in sorted(wanted & known.keys())}
        table = None
        if self._harmless() and (wanted is None or len(types) == len(wanted)):
            table = self._parsed(types, infer=wanted is None)
        return self._line_by_line(wanted, known) if table is None else table

    def _parsed(self, types: dict[str, pa.DataType], *, infer: bool) -> pa.Table | None:
        """Return what Arrow reads, None where that may not be what is written."""
        options = arrow_json.ReadOptions(block_size=len(self.data) + 1, use_threads=False)
        try:
            table = arrow_json.read_json(
                io.BytesIO(self.data),
                read_options=options,
                parse_options=arrow_json.ParseOptions(
                    explicit_schema=pa.schema(list(types.items())),
                    unexpected_field_behavior="infer" if infer else "ignore",
                ),
            )
        except (pa.ArrowException, UnicodeDecodeError):
            return None  # told of line by line
        moments = {field.name: pa.string() for field in table.schema if pa.types.is_timestamp(field.type)}
        if moments:  # JSON has none: this is text that looks like one
            return self._parsed({**types, **moments}, infer=infer)
        if table.num_rows != len(self.lines.start) or any(map(_may_be_rounded, table.columns)):
            return None
        at = table.schema.get_field_index(self.image)
        photos = table.schema.field(at).type if at >= 0 else pa.null()
        # A path that looks like a moment is told from one line by line.
        return None if pa.types.is_struct(photos) and not is_photo_object(photos) else table

    def _harmless(self) -> bool:
        """Return whether Arrow's parser survives the block.

        It runs out of stack in a line that is nested deeply, and dies of a block of nothing but `null`.
        """
        data = np.frombuffer(self.data, dtype=np.uint8)
        begins = self.lines.start - self.start
        opening = (data == ord("[")) | (data == ord("{"))
        deepest = int(np.add.reduceat(opening, begins, dtype=np.int64).max())
        return deepest <= _OPENED and bool((data[begins] == ord("{")).all())

    def _peeked(self) -> dict[str, pa.DataType]:
        """Return the fields that the first lines show to be text: Arrow would read some of it as times."""
        found: dict[str, pa.DataType] = {}
        for line in self._texts()[:_PEEKED_LINES]:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue  # refused below, with its row
            if isinstance(row, dict):
                found |= {name: kind for name, value in row.items() if (kind := _kind_of(value)) is not None}
        return found

    def _line_by_line(self, wanted: frozenset[str] | None, known: dict[str, pa.DataType]) -> pa.Table:
        rows = [parse_object(text, self._place(number), wanted) for number, text in enumerate(self._texts())]
        of_photos = self.image in known and not pa.types.is_null(known[self.image])
        cells = readable_cells([row.get(self.image) for row in rows], known=of_photos)
        for row, cell in zip(rows, cells, strict=True):
            if self.image in row:
                row[self.image] = cell
        names = dict.fromkeys(name for row in rows for name in row if wanted is None or name in wanted)
        return columns_of(rows, names, self._place)

    def _texts(self) -> list[bytes]:
        begins = (self.lines.start - self.start).tolist()
        return [self.data[at : at + size] for at, size in zip(begins, self.lines.length.tolist(), strict=True)]

    def _place(self, number: int) -> str:
        return f"row {self.first_row + number + 1} of {self.file}"


def _blocks(blocks: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Yield (first byte's position, bytes) of blocks of whole lines; a block grows to hold its longest line."""
    start, rest = None, b""
    for begin, data in blocks:
        start = begin if start is None else start
        block = rest + data
        cut = block.rfind(b"\n") + 1
        if cut:
            yield start, block[:cut]
        start, rest = start + cut, block[cut:]
    if rest and start is not None:
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


def _kind_of(value: Any) -> pa.DataType | None:
    if isinstance(value, str):
        return pa.string()
    texts = isinstance(value, list) and value and all(isinstance(member, str) for member in value)
    return pa.list_(pa.string()) if texts else None


def _is_text(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.list_(pa.string()))


def _may_be_rounded(column: pa.ChunkedArray) -> bool:
    """Return whether a whole number may have become the nearest double, which Arrow does without a word."""
    if not pa.types.is_floating(column.type):
        return False
    largest = pc.min_max(pc.abs(column))["max"].as_py()
    return largest is not None and not largest < EXACT


def _with_known(batch: pa.Table, known: dict[str, pa.DataType]) -> pa.Table:
    """Add the columns that earlier blocks have and this one lacks: a field may be left out where it is null."""
    for name in sorted(known.keys() - {*batch.column_names}):
        batch = batch.append_column(name, pa.nulls(batch.num_rows))
    return batch


def _with_photo_texts(batch: pa.Table, image: str) -> pa.Table:
    at = batch.schema.get_field_index(image)
    if at < 0 or not is_photo_object(batch.schema.field(at).type):
        return batch
    return batch.set_column(at, image, photo_texts(batch.column(at)))


def _refuse_embedded(held: pa.Table, file: str) -> None:
    if held.column("source").null_count < held.num_rows:
        raise InputError(
            f"{file} is packed or not in UTF-8 and holds embedded photos, which are read by their place; unpack it, "
            "and write it in UTF-8"
        )

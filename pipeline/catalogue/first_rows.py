"""The first rows of a catalogue, read without the rest: what `init` guesses from and `doctor` looks at."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import InputError
from ..storage import Files
from .config import CatalogueConfig
from .formats import Located, Place, locate, reading

ROWS = 1000
_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Sample:
    """What a source is. rows: its first rows with their columns, None for folders of photos and tar shards."""

    format: str
    num_files: int
    first: str
    rows: pa.Table | None


def read_sample(config: CatalogueConfig, files: Files) -> Sample:
    """Return the format and first rows of a catalogue. Raises InputError when it cannot be read or is empty."""
    located: Located = locate(config, files)
    place = located.places[0]
    reader = {"parquet": _parquet, "csv": _csv, "jsonl": _json_lines}.get(located.format)
    if reader is None:
        return Sample(located.format, len(located.places), place.uri, None)
    with reading(place.uri), files.open(place.uri) as handle:
        rows = reader(handle, place)
    if not rows.num_rows:
        raise InputError(f"{place.uri} has no rows; name a table that has some")
    return Sample(located.format, len(located.places), place.uri, rows)


def _parquet(handle: BinaryIO, _place: Place) -> pa.Table:
    file = pq.ParquetFile(handle)
    batches = list(itertools.islice(file.iter_batches(batch_size=ROWS), 1))
    return pa.Table.from_batches(batches, schema=file.schema_arrow)


def _csv(handle: BinaryIO, place: Place) -> pa.Table:
    data = _unpacked(handle, place).read(_BYTES)
    if len(data) == _BYTES:
        data = data[: data.rfind(b"\n") + 1]  # the last line is cut off
    text = data.decode("utf-8-sig")
    delimiter = max(",;\t|", key=text.partition("\n")[0].count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    names = next(lines, [])
    rows = list(itertools.islice(lines, ROWS))
    cells = [[row[number] if number < len(row) else None for row in rows] for number in range(len(names))]
    return pa.table([pa.array(column, pa.string()) for column in cells], names=names)


def _json_lines(handle: BinaryIO, place: Place) -> pa.Table:
    lines = _unpacked(handle, place).read(_BYTES).split(b"\n")[: ROWS + 1]
    rows = []
    for number, line in enumerate(lines[:-1] or lines):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise InputError(f"{place.uri} line {number + 1} is not JSON: {error}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{place.uri} holds lines that are no JSON objects")
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})


def _unpacked(handle: BinaryIO, place: Place) -> BinaryIO:
    return gzip.GzipFile(fileobj=handle) if place.uri.lower().endswith(".gz") else handle  # type: ignore[return-value]

"""The first rows of a catalogue, read without the rest: what `init` guesses from and tries, and `doctor` looks at."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import InputError
from ..ordering import run_starts, sorted_by
from ..storage import Files
from .addresses import photo_text
from .config import CatalogueConfig
from .csv import open_csv
from .formats import Located, Place, locate, opened
from .json_values import columns_of, parse_object
from .parquet import READ_AHEAD_BYTES, with_partition
from .photos import SOURCES
from .rows import Counted, Tally
from .text import opened_text, propose_encoding, utf8_blocks

ROWS = 1000
_BYTES = 4 << 20
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Sample:
    """What a source is. rows: its first rows with their columns, None for folders of photos and tar shards."""

    format: str
    num_files: int
    first: str
    rows: pa.Table | None


@dataclass(frozen=True, slots=True)
class Tried:
    """What a config makes of the first rows of its source, by the code that a refresh reads them with.

    photos: rows.ROWS and attributes; items, without: items, and those without a photo; repeated: a key stands in
    several rows; counted: as in CatalogueNotes; examples: (item_id, uri) of the first photos.
    """

    photos: pa.Table
    items: int
    without: int
    repeated: bool
    counted: dict[str, Counted]
    examples: tuple[tuple[str, str], ...]


def read_sample(config: CatalogueConfig, files: Files) -> Sample:
    """Return the format and first rows of a catalogue. Raises InputError when it cannot be read or is empty."""
    located: Located = locate(config, files)
    place = located.places[0]
    readers: dict[str, Callable[[Place, CatalogueConfig, Files], pa.Table]]
    readers = {"parquet": _parquet, "csv": _csv, "jsonl": _json_lines}
    if located.format not in readers:
        return Sample(located.format, len(located.places), place.uri, None)
    rows = with_partition(readers[located.format](place, config, files), place)
    if not rows.num_rows:
        raise InputError(f"{place.uri} has no rows; name a table that has some")
    return Sample(located.format, len(located.places), place.uri, rows)


def propose_reading(config: CatalogueConfig, files: Files) -> CatalogueConfig:
    """Return the config with the encoding and quoting that its first rows can be read by.

    Raises the InputError of the config as it is when no other reads them either.
    """
    located = locate(config, files)
    if located.format not in ("csv", "jsonl"):
        return config
    place = located.places[0]
    if config.encoding == "auto":
        with opened_text(files, place.uri, "auto", located.format) as text:
            config = config.model_copy(update={"encoding": propose_encoding(text.handle.read(_BYTES))})
    if located.format != "csv" or config.quoting != "auto":
        return config
    failed = None
    for quoting in ("auto", "none", "minimal"):
        proposed = config.model_copy(update={"quoting": quoting})
        try:
            _csv(place, proposed, files)
        except InputError as error:
            failed = failed or error
        else:
            return proposed
    raise failed or InputError(f"{place.uri} cannot be read as CSV; write it anew")


def settle(config: CatalogueConfig, files: Files) -> tuple[CatalogueConfig, Tried]:
    """Return the config, changed where its first rows show it to be wrong about keys, and what comes of them.

    Raises InputError when the first rows cannot be read by any config.
    """
    try:
        tried = try_first_rows(config, files)
    except InputError:
        if locate(config, files).format != "tar" or config.item_id != "item_id":
            raise
        config = config.model_copy(update={"item_id": "name"})
        return config, try_first_rows(config, files)
    if tried.repeated and config.rows == "item":
        folder = locate(config, files).format == "folder"
        config = config.model_copy(update={"item_id": "path"} if folder else {"rows": "photo"})
        return config, try_first_rows(config, files)
    return config, tried


def try_first_rows(config: CatalogueConfig, files: Files) -> Tried:
    """Return what a config makes of the first rows of its first file. Raises what `read_photos` raises for them."""
    located = locate(config, files)
    tally = Tally(skipped=located.skipped)
    batches = SOURCES[located.format](located.places[0], config, files, tally)
    photos = next(iter(batches), None)
    if photos is None:
        raise InputError(f"{located.places[0].uri} has no rows; name a table that has some")
    keyed = sorted_by(photos.filter(pc.is_valid(photos["item_id"])), "item_id")
    named = photos.filter(pc.and_(pc.is_valid(photos["item_id"]), pc.is_valid(photos["uri"])))
    items = int(run_starts(keyed["item_id"]).sum())
    with_photo = pc.count_distinct(named["item_id"]).as_py()
    shown = named.slice(0, _SHOWN).select(["item_id", "uri"]).to_pylist()
    return Tried(
        photos=photos,
        items=items,
        without=items - with_photo,
        repeated=pc.count_distinct(keyed["row"]).as_py() > items,
        counted=tally.counted,
        examples=tuple((row["item_id"], row["uri"]) for row in shown),
    )


def _parquet(place: Place, _config: CatalogueConfig, files: Files) -> pa.Table:
    with opened(files, place.uri, "Parquet") as handle:
        file = pq.ParquetFile(handle, buffer_size=READ_AHEAD_BYTES, pre_buffer=False)
        batches = list(itertools.islice(file.iter_batches(batch_size=ROWS), 1))
        return pa.Table.from_batches(batches, schema=file.schema_arrow)


def _csv(place: Place, config: CatalogueConfig, files: Files) -> pa.Table:
    with opened_text(files, place.uri, config.encoding, "CSV") as text:
        table = open_csv(text, place, config, Tally())
        names = list(dict.fromkeys(name for name in table.dialect.names if name))
        empty = pa.schema([(name, pa.string()) for name in names]).empty_table()
        return next(table.batches(names), empty).slice(0, ROWS)


def _json_lines(place: Place, config: CatalogueConfig, files: Files) -> pa.Table:
    with opened_text(files, place.uri, config.encoding, "JSON lines") as text:
        _, block = next(utf8_blocks(text, place.uri, _BYTES), (0, b""))
    lines = block.split(b"\n")
    if len(block) >= _BYTES // 2 and len(lines) > 1:
        lines.pop()  # cut off
    rows = []
    for number, line in enumerate(itertools.islice(filter(bytes.strip, lines), ROWS)):
        fields = parse_object(line, f"row {number + 1} of {place.uri}")
        rows.append({name: photo_text(value) for name, value in fields.items()})
    return columns_of(rows, dict.fromkeys(name for row in rows for name in row), lambda at: f"row {at + 1}")

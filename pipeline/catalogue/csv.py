"""CSV tables, streamed as text; attributes get their types at the end, from all of their values."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv

from ..errors import InputError
from ..storage import Files
from .columns import choose_columns
from .config import CatalogueConfig
from .formats import Place, opened
from .parquet import with_partition
from .rows import Tally, photo_rows

_BLOCK_BYTES = 4 << 20
# Numbers whose text says no more than their value: `0012` is a code, not twelve.
_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
_NUMBER = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$"


def csv_rows(place: Place, config: CatalogueConfig, files: Files, tally: Tally) -> Iterator[pa.Table]:
    """Yield the photos of one CSV file as tables of rows.ROWS and attributes, all of them text. Raises InputError.

    The first line names the columns; comma, semicolon or tab, whichever is most frequent in it; an empty cell is null.
    """
    with opened(files, place.uri, "CSV") as handle:
        names, delimiter = _header(handle.readline(), place.uri)
    schema = with_partition(pa.schema([(name, pa.string()) for name in names]).empty_table(), place).schema
    columns = choose_columns(schema, config, place.uri)
    wanted = [name for name in columns.read if name in names]
    with opened(files, place.uri, "CSV") as handle:
        reader = arrow_csv.open_csv(
            handle,
            read_options=arrow_csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
            parse_options=arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=wanted,
                # Text first: what looks like a number in the first block may be a size `XL` in the last, and a key
                # `0012` must stay as it is.
                column_types=dict.fromkeys(wanted, pa.string()),
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
        first_row = 0
        for batch in reader:
            held = with_partition(pa.Table.from_batches([batch]), place)
            yield photo_rows(held, columns, place, config, first_row=first_row)
            first_row += batch.num_rows


def typed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of text as booleans, integers or floats when every value is one; otherwise as it is."""
    if column.null_count == len(column):
        return column
    lower = pc.utf8_lower(column)
    if _all(pc.is_in(lower, value_set=pa.array(["true", "false"])), column):
        return pc.equal(lower, "true")
    if _all(pc.match_substring_regex(column, _INTEGER), column):
        return column.cast(pa.int64())
    if _all(pc.match_substring_regex(column, _NUMBER), column):
        return column.cast(pa.float64())
    return column


def _all(matches: pa.ChunkedArray, column: pa.ChunkedArray) -> bool:
    return bool(pc.all(pc.or_(pc.fill_null(matches, False), pc.is_null(column))).as_py())


def _header(line: bytes, file: str) -> tuple[list[str], str]:
    text = line.decode("utf-8-sig")
    if not text.strip():
        raise InputError(f"{file} is empty; the first line of a CSV file must name its columns")
    delimiter = max(",;\t", key=text.count)
    return next(csv.reader(io.StringIO(text), delimiter=delimiter)), delimiter

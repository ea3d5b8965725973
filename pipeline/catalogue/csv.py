"""CSV tables, streamed as text; attributes get their types at the end, from all of their values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv

from ..errors import InputError
from ..ordering import as_numpy, keep_rows
from ..storage import Files
from .columns import choose_columns
from .config import CatalogueConfig
from .dialect import TRIMMED, Dialect, find_dialect
from .formats import Place
from .parquet import with_partition
from .records import Block, record_blocks
from .rows import Tally, photo_rows
from .text import OpenText, opened_text, undecodable, utf8_blocks

_BLOCK_BYTES = 4 << 20
# Numbers whose text says no more than their value: `0012` is a code, not twelve.
_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
_NUMBER = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$"
_ROUNDED = r"^-?[0-9]{16,}"  # doubles do not hold all of these digits
_SHOWN = 5
_FIRST = 1000
_RARE_SPACES = b"\x1c\x1d\x1e\x1f"  # white space to Unicode, not to ASCII


def csv_rows(place: Place, config: CatalogueConfig, files: Files, tally: Tally) -> Iterator[pa.Table]:
    """Yield the photos of one CSV file as tables of rows.ROWS and attributes, all of them text. Raises InputError.

    The first line that is not empty names the columns; see CatalogueConfig for encoding, delimiter and quoting. Names
    and cells are trimmed; an empty cell is null; a row of empty cells is passed over and counted in `tally`.
    """
    with opened_text(files, place.uri, config.encoding, "CSV") as text:
        table = open_csv(text, place, config, tally)
        names = _distinct(table.dialect.names, config, tally)
        schema = with_partition(pa.schema([(name, pa.string()) for name in names]).empty_table(), place).schema
        columns = choose_columns(schema, config, place.uri)
        wanted = [name for name in columns.read if name in names]
        first_row = 0
        for batch in table.batches(wanted):
            yield photo_rows(with_partition(batch, place), columns, place, config, first_row=first_row)
            first_row += batch.num_rows


@dataclass(frozen=True, slots=True)
class CsvTable:
    """A CSV file whose header is read. blocks: the rest of it, cut at the ends of records."""

    dialect: Dialect
    blocks: Iterator[Block]
    file: str
    tally: Tally

    def batches(self, wanted: list[str]) -> Iterator[pa.Table]:
        """Yield tables of the wanted columns, text with nulls for empty cells. Raises InputError."""
        for block in self.blocks:
            yield _parsed(block, wanted, self.dialect, self.file, self.tally)


def open_csv(text: OpenText, place: Place, config: CatalogueConfig, tally: Tally) -> CsvTable:
    """Find out how a CSV file is written, from its first block. Raises InputError."""
    blocks = utf8_blocks(text, place.uri, _BLOCK_BYTES)
    start, first = next(blocks, (0, b""))
    dialect = find_dialect(first, config, place.uri)
    body = chain([(start + dialect.body, first[dialect.body :])], blocks)
    return CsvTable(dialect, record_blocks(body, dialect, place.uri, tally, line=dialect.line), place.uri, tally)


def typed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of text as booleans, integers or floats when every value is one, exactly; else as it is."""
    if column.null_count == len(column):
        return column
    if _holds(column, lambda part: pc.is_in(pc.utf8_lower(part), value_set=pa.array(["true", "false"]))):
        return pc.equal(pc.utf8_lower(column), "true")
    if _holds(column, lambda part: pc.match_substring_regex(part, _INTEGER)):
        return column.cast(pa.int64())
    if _holds(column, lambda part: pc.match_substring_regex(part, _NUMBER)):
        numbers = column.cast(pa.float64())
        finite = pc.all(pc.is_finite(numbers)).as_py()
        return numbers if finite and not pc.any(pc.match_substring_regex(column, _ROUNDED)).as_py() else column
    return column


def _holds(column: pa.ChunkedArray, test: Callable[[pa.ChunkedArray], pa.ChunkedArray]) -> bool:
    """Return whether every value passes a test; of most columns that do not, the first few already say so."""
    return _all(test, column.slice(0, _FIRST)) and _all(test, column)


def _all(test: Callable[[pa.ChunkedArray], pa.ChunkedArray], column: pa.ChunkedArray) -> bool:
    return bool(pc.all(pc.or_(pc.fill_null(test(column), False), pc.is_null(column))).as_py())


def _distinct(names: tuple[str, ...], config: CatalogueConfig, tally: Tally) -> list[str]:
    """Return the names of columns that may be read: those without a name, and doubles nobody asked for, are not."""
    for number, name in enumerate(names, 1):
        if not name:
            tally.skipped_columns.add(f"column {number}, which has no name")
    counts = Counter(names)
    roles = {config.item_id, config.image, config.category, config.version}
    asked = None if config.attributes is None else {*config.attributes, *roles}
    doubles = {name for name in names if counts[name] > 1 and asked is not None and name not in asked}
    tally.skipped_columns.update(doubles - {""})
    return [name for name in names if name and name not in doubles]


@dataclass(slots=True)
class _Misfits:
    """Rows whose cells are not as many as the columns. Those without any cell are no rows; others are refused."""

    byte: str
    shown: list[arrow_csv.InvalidRow] = field(default_factory=list)
    count: int = 0
    empty: list[int] = field(default_factory=list)

    def __call__(self, row: arrow_csv.InvalidRow) -> str:
        if _holds_nothing(row.text, self.byte):
            self.empty.append(row.number - 1)
            return "skip"
        self.count += 1
        if len(self.shown) < _SHOWN:
            self.shown.append(row)
        return "skip"  # so that all of them are counted before they are refused


def _parsed(block: Block, wanted: list[str], dialect: Dialect, file: str, tally: Tally) -> pa.Table:
    misfits = _Misfits(dialect.byte.decode())
    try:
        table = _cells(block, wanted, dialect, None)
    except pa.ArrowInvalid as error:
        # Arrow hands rows of other lengths over as text, so that must be looked at first.
        bad = undecodable(block.data, file, start=block.start, line=block.line)
        if bad is not None:
            raise bad from error
        try:
            table = _cells(block, wanted, dialect, misfits)
        except pa.ArrowInvalid as other:
            raise InputError(
                f"{file} from line {block.line} on cannot be read as CSV: {other}; write it anew"
            ) from other
    if misfits.count:
        raise InputError(_ragged(misfits, block, dialect, file))
    _check_count(block, table.num_rows + len(misfits.empty), file)
    ascii_only = block.data.isascii() and not any(byte in block.data for byte in _RARE_SPACES)
    table = pa.table([_trimmed(column, dialect, ascii_only=ascii_only) for column in table.columns], names=wanted)
    return _without_empty_rows(table, block, dialect, misfits.empty, tally, file)


def _cells(block: Block, wanted: list[str], dialect: Dialect, misfits: _Misfits | None) -> pa.Table:
    """Return the wanted columns as text. Raises ArrowInvalid for rows of other lengths, unless `misfits` takes them."""
    places = [str(dialect.names.index(name)) for name in wanted]
    return arrow_csv.read_csv(
        pa.BufferReader(block.data),
        read_options=arrow_csv.ReadOptions(
            column_names=[str(number) for number in range(len(dialect.names))],
            block_size=len(block.data) + 1,
            use_threads=False,
        ),
        parse_options=arrow_csv.ParseOptions(
            delimiter=dialect.byte.decode(),
            quote_char='"' if dialect.quoted else False,
            newlines_in_values=dialect.quoted,
            invalid_row_handler=misfits,
        ),
        convert_options=arrow_csv.ConvertOptions(
            include_columns=places,
            # Text first: what looks like a number in the first block may be a size `XL` in the last, and a key `0012`
            # must stay as it is.
            column_types=dict.fromkeys(places, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
        ),
    )


def _trimmed(column: pa.ChunkedArray, dialect: Dialect, *, ascii_only: bool) -> pa.ChunkedArray:
    # Both give the same of such text; the first takes half the time.
    trimmed = pc.ascii_trim_whitespace(column) if ascii_only else pc.utf8_trim_whitespace(column)
    if len(dialect.delimiter.encode()) > 1:
        trimmed = pc.replace_substring(trimmed, dialect.byte.decode(), dialect.delimiter)
    if trimmed.nbytes < column.nbytes:
        return pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)
    return trimmed


def _check_count(block: Block, found: int, file: str) -> None:
    """Hold the rows that were read against the lines of the block, so that nothing is swallowed unseen."""
    if found != block.count and found != (records := len(block.records()[0])):
        raise InputError(
            f"{file}: {records} rows from line {block.line} on were read as {found}; its quotes cannot be told apart: "
            "set catalogue.quoting: none if quotes are text in this file, or double those inside of quoted cells"
        )


def _ragged(misfits: _Misfits, block: Block, dialect: Dialect, file: str) -> str:
    starts, _ = block.records()
    shown = [
        f"line {block.line_of(int(starts[row.number - 1]))} has {row.actual_columns} ({row.text[:60]!r})"
        for row in misfits.shown
    ]
    more = f" and {misfits.count - len(shown)} more" if misfits.count > len(shown) else ""
    quotes = " or catalogue.quoting" if any('"' in row.text for row in misfits.shown) else ""
    return (
        f"{file} has {len(dialect.names)} columns, delimited by {dialect.delimiter!r}, but {'; '.join(shown)}{more}; "
        f"quote cells that hold the delimiter or a line break, or set catalogue.delimiter{quotes}"
    )


def _holds_nothing(row: str, byte: str) -> bool:
    """Return whether a row has delimiters, spaces and empty quotes only."""
    between = f"[{re.escape(TRIMMED + byte)}]"
    return re.fullmatch(rf'{between}*(?:""(?={between}|$){between}*)*', row) is not None


def _without_empty_rows(
    table: pa.Table, block: Block, dialect: Dialect, left_out: list[int], tally: Tally, file: str
) -> pa.Table:
    """Leave out rows all of whose cells are empty, as workbooks export them below their tables.

    left_out: the records among them that are not in the table, because they have fewer cells.
    """
    count = len(left_out)
    if all(column.null_count for column in table.columns):
        empty = np.logical_and.reduce([as_numpy(pc.is_null(column)) for column in table.columns])
        starts, ends = (np.delete(places, left_out) for places in block.records())
        # A column that is not read may hold something all the same: then the row lacks its key, and is refused.
        for number in np.flatnonzero(empty):
            text = block.data[starts[number] : ends[number]].decode("utf-8", "replace")
            empty[number] = _holds_nothing(text, dialect.byte.decode())
        table = keep_rows(table, ~empty)
        count += int(empty.sum())
    if count:
        tally.count("rows of empty cells only", count, f"after line {block.line} of {file}")
    return table

"""How a file of delimited text is written: its delimiter, its quotes and the names of its columns."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass

from ..errors import InputError
from .config import CatalogueConfig

DELIMITERS = (",", ";", "\t", "|")
# What stands for a delimiter of several bytes while a block is parsed.
_STAND_IN = b"\x1f"
_SAMPLE_BYTES = 1 << 18
_SAMPLE_LINES = 50
_HEADER_BYTES = 1 << 14
_END = rb"(?:\r\n|\r|\n)"
_BREAK = re.compile(_END)
_BLANK_LINE = re.compile(rb"[ \t,;|\"]*" + _END)
_SEP_LINE = re.compile(rb"\"?sep=([^\r\n]+?)\"?" + _END, re.IGNORECASE)


def _quoted_cells(edges: bytes) -> re.Pattern[bytes]:
    """Match a quoted cell between edges; the space that many writers put before a quote is passed over."""
    edge = rb"[" + edges + rb"\r\n]"
    return re.compile(rb"(?:(?<=" + edge + rb")|\A) *\"[^\"]*(?:\"\"[^\"]*)*\"(?=" + edge + rb"|\Z)")


_QUOTED = _quoted_cells(_STAND_IN)
_QUOTED_ANYHOW = _quoted_cells(rb",;\t|")
_OPEN_QUOTE = re.compile(rb"(?:\A|[" + _STAND_IN + rb"\r\n]) *\"")
# What surrounds a name or a cell without being a part of it: spaces of all kinds, and marks of no width.
TRIMMED = " \t\r\n\v\f\u00a0\u2007\u202f\u3000\ufeff\u200b\u200e\u200f\u2060"


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one file of delimited text is written.

    names: of the columns, trimmed, "" where there is none; byte: what delimits cells in `prepared` data; quoted: cells
    may stand in quotes; doubted: a cell that seems to hold rows is refused; spaced: delimiters are followed by spaces;
    spaced_quotes: quotes open cells after such a space. body: bytes before the first record; line: where it begins.
    """

    names: tuple[str, ...]
    delimiter: str
    byte: bytes
    quoted: bool
    doubted: bool
    spaced: bool
    spaced_quotes: bool
    body: int
    line: int

    def prepared(self, rest: bytes, data: bytes, file: str) -> bytes:
        """Return the bytes of `rest` (prepared before) and `data` with one byte as delimiter and quotes beside it."""
        whole = rest + data
        if len(self.delimiter.encode()) > 1:
            if self.byte in data:
                raise InputError(
                    f"{file} holds the control character {self.byte!r} beside its delimiter {self.delimiter!r}; export "
                    "it with a delimiter of one ASCII character"
                )
            whole = whole.replace(self.delimiter.encode(), self.byte)
        if self.spaced_quotes and b' "' in whole:
            byte = re.escape(self.byte)
            # A quote inside of a quoted cell is doubled, so that a single one after a delimiter opens a cell.
            whole = re.sub(rb"(?<=" + byte + rb") +(?=\"[^\"]|\"\"(?:" + byte + rb"|[\r\n]))", b"", whole)
        return whole


def find_dialect(first: bytes, config: CatalogueConfig, file: str) -> Dialect:
    """Return how a file that begins with `first` (UTF-8, at least the header) is written.

    Empty lines before the header are passed over; a line `sep=;` names the delimiter. Raises InputError when there is
    no header.
    """
    body, told = _preamble(first)
    sample = first[body : body + _SAMPLE_BYTES]
    cut = len(first) > body + _SAMPLE_BYTES
    if not sample.strip():
        what = "holds no more than a sep= line" if told else "is empty" if not first else "holds empty lines only"
        raise InputError(f"{file} {what}; the first line of a CSV file must name its columns")
    if cut and not _BREAK.search(sample):
        raise InputError(f"{file} has no line break in {_SAMPLE_BYTES >> 10} KB; this is no table of text")
    delimiter = told if config.delimiter == "auto" else config.delimiter
    if delimiter is None:
        delimiter = _agreed(sample, config, cut=cut)
    sample = sample.replace(delimiter.encode(), _STAND_IN)
    quoted = _is_quoted(sample, delimiter, config, file)
    header = sample[: _header_length(sample, quoted=quoted)]
    bare = _QUOTED.sub(b'""', sample) if quoted else sample
    names = [name.replace(_STAND_IN.decode(), delimiter) for name in _names(header, file, body, quoted=quoted)]
    before = first[: body + len(header.replace(_STAND_IN, delimiter.encode()))]
    return Dialect(
        names=_fitted(names, _lines(bare, cut=cut)),
        delimiter=delimiter,
        byte=delimiter.encode() if len(delimiter.encode()) == 1 else _STAND_IN,
        quoted=quoted,
        doubted=config.quoting == "auto",
        spaced=header.count(_STAND_IN) == header.count(_STAND_IN + b" ") > 0,
        spaced_quotes=quoted and bool(re.search(_STAND_IN + rb" +\"", sample)),
        body=len(before),
        line=1 + before.count(b"\n") + before.count(b"\r") - before.count(b"\r\n"),
    )


def _preamble(first: bytes) -> tuple[int, str | None]:
    """Return how many bytes stand before the header, and the delimiter that a `sep=` line among them names."""
    place, told = 0, None
    while True:
        if told is None and (match := _SEP_LINE.match(first, place)):
            told = match[1].decode("utf-8", "replace")
        elif not (match := _BLANK_LINE.match(first, place)):
            return place, told
        place = match.end()


def _agreed(sample: bytes, config: CatalogueConfig, *, cut: bool) -> str:
    """Return the delimiter that gives the header the config's columns, most lines as many cells as it, most cells."""
    lines = _lines(sample if config.quoting == "none" else _QUOTED_ANYHOW.sub(b'""', sample), cut=cut)
    header = _BREAK.split(sample, maxsplit=1)[0].decode("utf-8", "replace")

    def score(delimiter: str) -> tuple[bool, int, int]:
        counts = [line.count(delimiter.encode()) for line in lines]
        names = {name.strip(TRIMMED + '"') for name in header.split(delimiter)}
        return {config.item_id, config.image} <= names, counts.count(counts[0]) if counts[0] else 0, counts[0]

    return max(DELIMITERS, key=score)


def _lines(sample: bytes, *, cut: bool) -> list[bytes]:
    """Return the header and the first lines that hold something; cut: the last one is not whole."""
    lines = [line for line in _BREAK.split(sample) if line.strip()]
    return lines[: -1 if cut and len(lines) > 1 else None][:_SAMPLE_LINES]


def _is_quoted(sample: bytes, delimiter: str, config: CatalogueConfig, file: str) -> bool:
    if config.quoting != "auto":
        return config.quoting == "minimal"
    named = ".csv" in file.rsplit("/", 1)[-1].lower()
    return delimiter != "\t" or named or b'"' in _BREAK.split(sample, maxsplit=1)[0]


def _header_length(sample: bytes, *, quoted: bool) -> int:
    """Return the bytes of the first record with its line break."""
    first = None
    for match in _BREAK.finditer(sample):
        first = first or match
        if not quoted or not _OPEN_QUOTE.search(_QUOTED.sub(b"", sample[: match.start()])):
            return match.end()
        if match.end() > _HEADER_BYTES:
            break  # a quote that is not closed; the names will tell
    return first.end() if first else len(sample)


def _names(header: bytes, file: str, body: int, *, quoted: bool) -> list[str]:
    try:
        text = header.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file}: byte {body + error.start} ({header[error.start]:#04x}) of the header is no UTF-8; set "
            f"catalogue.encoding to what the file is written in, for example cp1252, which reads "
            f"{header.decode('cp1252', 'replace').strip()!r}"
        ) from error
    try:
        cells = next(
            csv.reader(
                io.StringIO(text, newline=""),
                delimiter=_STAND_IN.decode(),
                quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
                skipinitialspace=True,
            )
        )
    except csv.Error as error:
        raise InputError(
            f"{file}: the first line, {text[:80]!r}, cannot be read as the names of columns: {error}; write one line "
            "of names, or set catalogue.delimiter"
        ) from error
    return [cell.strip(TRIMMED) for cell in cells]


def _fitted(names: list[str], lines: list[bytes]) -> tuple[str, ...]:
    """Return the names, one more or less where all rows but not the header end in a delimiter, or the other way."""
    rows = lines[1:]
    cells = {line.count(_STAND_IN) + 1 for line in rows}
    if cells == {len(names) + 1} and all(line.rstrip(b" ").endswith(_STAND_IN) for line in rows):
        return (*names, "")
    if cells == {len(names) - 1} and not names[-1]:
        return tuple(names[:-1])
    return tuple(names)

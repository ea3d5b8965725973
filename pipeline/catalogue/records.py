"""Cutting delimited text into blocks of whole records, with every quote and every line accounted for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from .dialect import Dialect
from .rows import Tally

# A record that is longer than this is a quote that was never closed, not a row.
LONGEST_BYTES = 32 << 20
_QUOTE, _LF, _CR, _SPACE = b'"\n\r '


@dataclass(frozen=True, slots=True)
class Block:
    """Whole records. start: the first byte's position in the file; line: of the first record, counted from 1.

    count: records and empty lines; dialect: how they are written.
    """

    data: bytes
    start: int
    line: int
    count: int
    dialect: Dialect

    def records(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the records that are no empty lines begin and end: int64 [m] twice, bytes from the block's start."""
        scan = _scan(self.data, self.dialect, final=True)
        ends = scan.breaks[~scan.inside]
        if not len(ends) or ends[-1] + 1 < len(self.data):
            ends = np.append(ends, len(self.data) - 1)
        starts = np.concatenate([[0], ends[:-1] + 1])
        first = np.frombuffer(self.data, dtype=np.uint8)[starts]
        empty = (first == _LF) | ((first == _CR) & (ends - starts < 2))
        return starts[~empty], ends[~empty] + 1

    def line_of(self, byte: int) -> int:
        """The line of the file, counted from 1, that a byte of the block stands in."""
        before = self.data[:byte]
        return self.line + before.count(b"\n") + before.count(b"\r") - before.count(b"\r\n")


@dataclass(frozen=True, slots=True)
class _Scan:
    """Line breaks and quotes of a block. breaks: int64 [n], the last byte of each; inside: bool [n], whether one stands
    in a quoted cell; quotes: int64, opening and closing ones in turn; loose: int64, the closing ones amid a cell."""

    breaks: np.ndarray
    inside: np.ndarray
    quotes: np.ndarray
    loose: np.ndarray


def record_blocks(
    blocks: Iterator[tuple[int, bytes]], dialect: Dialect, file: str, tally: Tally, *, line: int
) -> Iterator[Block]:
    """Yield blocks of whole records; line: the line that the first begins on.

    Counts in `tally` the rows that span several lines and the cells that go on after their closing quote. Raises
    InputError, naming the line, for a quote that is never closed, or closed amid a cell on another line; with
    catalogue.quoting: auto also for a cell that holds what looks like whole rows.
    """
    rest, start = b"", 0
    following = next(blocks, None)
    while following is not None:
        begin, data = following
        following = next(blocks, None)
        if not rest:
            start = begin
        data = dialect.prepared(rest, data, file)
        final = following is None
        scan = None if _is_plain(data, dialect) else _scan(data, dialect, final=final)
        cut, lines, count = _cut(data) if scan is None else _cut_outside(scan)
        if not final and len(data) - cut > LONGEST_BYTES:
            raise InputError(_never_closed(scan, data, file, line, f"within {LONGEST_BYTES >> 20} MB"))
        if final and scan is not None and len(scan.quotes) % 2:
            raise InputError(_never_closed(scan, data, file, line, "up to the end of the file"))
        if final and cut < len(data):
            cut, count = len(data), count + 1  # the last line has no line break
        if cut:
            block = Block(data[:cut], start, line, count, dialect)
            if scan is not None and (scan.inside.any() or len(scan.loose)):
                _check_quotes(scan, block, file, tally)
            yield block
        rest, start, line = data[cut:], start + cut, line + lines


def _is_plain(data: bytes, dialect: Dialect) -> bool:
    """Return whether each `\n` ends a record, and nothing else does."""
    quotes = dialect.quoted and b'"' in data
    return not quotes and (b"\r" not in data or data.count(b"\r") == data.count(b"\r\n"))


def _cut(data: bytes) -> tuple[int, int, int]:
    """Return the bytes up to the last line break, and the lines and records in them."""
    cut = data.rfind(b"\n") + 1
    lines = data.count(b"\n")
    return cut, lines, lines


def _cut_outside(scan: _Scan) -> tuple[int, int, int]:
    ends = scan.breaks[~scan.inside]
    cut = int(ends[-1]) + 1 if len(ends) else 0
    return cut, int(np.searchsorted(scan.breaks, cut)), len(ends)


def _scan(data: bytes, dialect: Dialect, *, final: bool) -> _Scan:
    none = np.zeros(0, dtype=np.int64)
    held = np.frombuffer(data, dtype=np.uint8)
    breaks = _line_breaks(data, held, final=final)
    if not dialect.quoted or b'"' not in data:
        return _Scan(breaks, np.zeros(len(breaks), dtype=np.bool_), none, none)
    quotes, loose = _effective_quotes(held, np.flatnonzero(held == _QUOTE), dialect.byte)
    return _Scan(breaks, np.searchsorted(quotes, breaks) % 2 == 1, quotes, loose)


def _line_breaks(data: bytes, held: np.ndarray, *, final: bool) -> np.ndarray:
    """Find `\\n`, `\\r\\n` and lone `\\r`; one at the end of a block that goes on may be half of a `\\r\\n`."""
    is_break = held == _LF
    if b"\r" in data and data.count(b"\r") != data.count(b"\r\n"):
        lone = held == _CR
        lone[:-1] &= held[1:] != _LF
        lone[-1] &= final
        is_break |= lone
    return np.flatnonzero(is_break)


def _effective_quotes(held: np.ndarray, quotes: np.ndarray, delimiter: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return the quotes that open and close cells, in turn, and those of the closing ones after which a cell goes on.

    Only a quote at the start of a cell opens one; others are text. This is what Arrow's parser does as well.
    """
    before = held[np.maximum(quotes - 1, 0)]
    after = held[np.minimum(quotes + 1, len(held) - 1)]
    before[quotes == 0] = after[quotes == len(held) - 1] = _LF
    edge = np.zeros(256, dtype=np.bool_)
    edge[[ord(delimiter), _LF, _CR]] = True
    may_open, may_close = edge[before], edge[after]
    # Mostly every first of two opens and every second closes, where a doubled quote closes and opens again.
    opens = may_open[::2] | (before[::2] == _QUOTE)
    closes = may_close[1::2] | (after[1::2] == _QUOTE)
    if may_open[:1].all() and opens.all() and closes.all():
        return quotes, quotes[:0]
    if not may_open.any():
        return quotes[:0], quotes[:0]
    return _one_by_one(quotes.tolist(), may_open.tolist(), may_close.tolist())


def _one_by_one(quotes: list[int], may_open: list[bool], may_close: list[bool]) -> tuple[np.ndarray, np.ndarray]:
    found: list[int] = []
    loose: list[int] = []
    number, count = 0, len(quotes)
    inside = False
    while number < count:
        place = quotes[number]
        if not inside:
            if may_open[number]:
                found.append(place)
                inside = True
        elif number + 1 < count and quotes[number + 1] == place + 1:
            number += 1  # doubled: one quote of the cell's text
        else:
            found.append(place)
            inside = False
            if not may_close[number]:
                loose.append(place)
        number += 1
    return np.array(found, dtype=np.int64), np.array(loose, dtype=np.int64)


def _never_closed(scan: _Scan | None, data: bytes, file: str, line: int, until: str) -> str:
    if scan is None or not len(scan.quotes):
        return f"{file} line {line} does not end {until}; this is no table of text"
    place = int(scan.quotes[-1])
    number = line + int(np.searchsorted(scan.breaks, place))
    return (
        f"{file} line {number}: the quote before {_excerpt(data, place + 1)} is not closed {until}, so that all lines "
        f"after it would be one cell; {_REMEDY}"
    )


_REMEDY = "double the quotes inside of quoted cells, or set catalogue.quoting: none if quotes are text in this file"


def _check_quotes(scan: _Scan, block: Block, file: str, tally: Tally) -> None:
    size = len(block.data)
    within = scan.breaks < size
    breaks, inside = scan.breaks[within], scan.inside[within]
    loose = scan.loose[scan.loose < size]
    if len(loose):
        opened = scan.quotes[np.searchsorted(scan.quotes, loose) - 1]
        first, last = np.searchsorted(breaks, opened), np.searchsorted(breaks, loose)
        for begin, begin_line, end_line in zip(opened, first, last, strict=True):
            if begin_line != end_line:
                text = _excerpt(block.data, int(begin) + 1)
                raise InputError(
                    f"{file} line {block.line + begin_line}: the quote before {text} is "
                    f"closed amid a cell on line {block.line + end_line}, so that rows would be swallowed; {_REMEDY}"
                )
        where = f"line {block.line + int(first[0])} of {file}"
        tally.count("cells that go on after their closing quote, read without the quotes", len(loose), where)
    if not inside.any():
        return
    if inside[-1]:  # the file ends without a line break
        breaks, inside = np.append(breaks, size), np.append(inside, False)
    # Records as runs of lines: the last line of each ends outside of quotes.
    starts = np.flatnonzero(np.concatenate([[True], ~inside[:-1]]))
    spans = np.diff(np.append(starts, len(inside)))
    if block.dialect.doubted:
        _refuse_swallowed(block, breaks, starts, spans, file)
    longest = int(spans.argmax())
    where = f"the longest {spans[longest]} lines, from line {block.line + int(starts[longest])} of {file}"
    tally.count("rows that span several lines", int((spans > 1).sum()), where, weight=int(spans[longest]))


def _refuse_swallowed(block: Block, breaks: np.ndarray, starts: np.ndarray, spans: np.ndarray, file: str) -> None:
    """Raise InputError for a record each of whose lines has the delimiters of a whole row.

    A quote that should not have opened a cell swallows rows up to the next quote. Then the first and the last line have
    at least a row's delimiters (other cells of theirs may be quoted), and those between have exactly as many. Those
    before a space are of prose, unless the header is written so.
    """
    dialect, wanted = block.dialect, len(block.dialect.names) - 1
    if wanted < 1:
        return
    held = np.frombuffer(block.data + b"\n", dtype=np.uint8)
    delimiters = np.flatnonzero(held[:-1] == ord(dialect.byte))
    if not dialect.spaced:
        delimiters = delimiters[held[delimiters + 1] != _SPACE]
    counts = np.diff(np.searchsorted(delimiters, breaks), prepend=0)
    row_like = counts == wanted
    edges = np.concatenate([starts, starts + spans - 1])
    row_like[edges] = counts[edges] >= wanted
    swallowed = np.logical_and.reduceat(row_like, starts) & (spans > 1)
    if swallowed.any():
        number = int(np.flatnonzero(swallowed)[0])
        line = block.line + int(starts[number])
        begin = int(breaks[starts[number] - 1]) + 1 if starts[number] else 0
        raise InputError(
            f"{file} lines {line} to {line + int(spans[number]) - 1} are one row, {_excerpt(block.data, begin)}, "
            f"because of a quote, but each of them looks like a whole row; {_REMEDY}, or catalogue.quoting: minimal if "
            "the cell does hold these lines"
        )


def _excerpt(data: bytes, place: int) -> str:
    return repr(data[place : place + 40].decode("utf-8", "replace").split("\n", 1)[0].rstrip("\r\ufffd"))

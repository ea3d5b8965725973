"""Bytes of a text table as blocks of UTF-8: unpacking, byte order marks, encodings, and what is no text at all."""

from __future__ import annotations

import codecs
import gzip
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, cast

from ..errors import InputError
from ..storage import Files
from .formats import is_hidden, reading

_HEAD_BYTES = 1 << 16
# UTF-32 first: its mark begins like that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_NO_TEXT = (
    (b"\xd0\xcf\x11\xe0", "an Excel workbook (.xls); save it as CSV UTF-8"),
    (b"PAR1", "a Parquet file; give it the suffix .parquet or set catalogue.format: parquet"),
    (b"BZh", "packed by bzip2; unpack it, or pack it by gzip"),
    (b"\xfd7zXZ", "packed by xz; unpack it, or pack it by gzip"),
    (b"\x28\xb5\x2f\xfd", "packed by zstandard; unpack it, or pack it by gzip"),
    (b"7z\xbc\xaf", "packed by 7-Zip; unpack it, or pack it by gzip"),
    (b"%PDF", "a PDF; export the table as CSV"),
    (b"<", "XML or a web page; export the feed as CSV or JSON lines, and check that the address needs no login"),
)


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the bytes of a file become text. codec: Python's name; mark: bytes of the byte order mark."""

    codec: str
    mark: int


@dataclass(frozen=True, slots=True)
class OpenText:
    """A text table open for reading. in_place: its text is the file's bytes, so that parts of it have places there."""

    handle: BinaryIO
    encoding: Encoding
    in_place: bool


@contextmanager
def opened_text(files: Files, uri: str, wanted: str, what: str) -> Iterator[OpenText]:
    """Open a text table for reading, unpacked when its bytes are gzip, or a zip archive of one file.

    wanted: catalogue.encoding. Raises InputError for what is no text (workbooks, web pages, other archives), and as
    `formats.reading` does.
    """
    with reading(uri, what), files.open(uri) as handle:
        magic = handle.read(8)
        handle.seek(0)
        if magic.startswith(b"\x1f\x8b") or uri.lower().endswith(".gz"):
            with gzip.GzipFile(fileobj=handle) as unpacked:
                yield _found(cast(BinaryIO, unpacked), wanted, uri, packed=True)
        elif magic.startswith(b"PK\x03\x04"):
            with _only_member(handle, uri) as member:
                yield _found(member, wanted, uri, packed=True)
        else:
            yield _found(handle, wanted, uri, packed=False)


def _found(handle: BinaryIO, wanted: str, uri: str, *, packed: bool) -> OpenText:
    head = handle.read(_HEAD_BYTES)
    handle.seek(0)
    for magic, what in _NO_TEXT:
        if head[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(magic):
            raise InputError(f"{uri} is {what}")
    encoding = find_encoding(head, wanted)
    return OpenText(handle, encoding, in_place=encoding.codec == "utf-8" and not packed)


def _only_member(handle: BinaryIO, uri: str) -> BinaryIO:
    """Open the one file of a zip archive; it is read from `handle` as long as it is used."""
    try:
        archive = zipfile.ZipFile(handle)
        names = [info.filename for info in archive.infolist() if not info.is_dir() and not is_hidden(info.filename)]
        member = archive.open(names[0]) if len(names) == 1 else None
    except (RuntimeError, NotImplementedError, ValueError, OSError, struct.error) as error:
        # It is encrypted, packed in a way Python does not know, or damaged.
        raise InputError(f"{uri} cannot be unpacked ({error}); unpack it yourself, or write it anew") from error
    if "xl/workbook.xml" in names:
        raise InputError(f"{uri} is an Excel workbook; save it as CSV UTF-8")
    if member is None:
        raise InputError(
            f"{uri} is a zip archive of {len(names)} files ({', '.join(names[:5])}); unpack it into a folder"
        )
    return cast(BinaryIO, member)


def find_encoding(head: bytes, wanted: str) -> Encoding:
    """Return the encoding of a file that begins with `head`; wanted: catalogue.encoding.

    A byte order mark decides; then what is wanted; `auto` is UTF-8, or UTF-16 where every second byte is zero.
    """
    for mark, codec in _MARKS:
        if head.startswith(mark):
            return Encoding(codec, len(mark))
    codec = "utf-8" if wanted == "auto" else codecs.lookup(wanted).name
    if wanted == "auto" or codec == "utf-16":
        pairs = head[: len(head) // 2 * 2]
        if pairs[1::2].count(0) * 2 > len(pairs[1::2]):
            return Encoding("utf-16-le", 0)
        if pairs[::2].count(0) * 2 > len(pairs[::2]):
            return Encoding("utf-16-be", 0)
    return Encoding({"utf-8-sig": "utf-8", "utf-16": "utf-16-le"}.get(codec, codec), 0)


def utf8_blocks(text: OpenText, file: str, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield (first byte's position in the file, text as UTF-8) of blocks of about `size` bytes.

    The byte order mark is left out. Bytes that are UTF-8 already are passed on unchecked; see `undecodable`. Raises
    InputError, naming line and byte, for bytes that are not of the encoding.
    """
    codec, start, lines = text.encoding.codec, text.encoding.mark, 0
    decoder = None if codec == "utf-8" else codecs.getincrementaldecoder(codec)()
    data = _filled(text.handle, max(size, start))[start:]
    while data:
        following = _filled(text.handle, size)
        if decoder is None:
            yield start, data
        else:
            decoded = _decoded(decoder, data, codec, file, start, lines, final=not following)
            lines += decoded.count("\n") or decoded.count("\r")
            yield start, decoded.encode()
        data, start = following, start + len(data)


def _filled(handle: BinaryIO, size: int) -> bytes:
    """Read `size` bytes, fewer only at the end of the file: unpackers return less at a time."""
    data = handle.read(size)
    while len(data) < size and (more := handle.read(size - len(data))):
        data += more
    return data


def _decoded(
    decoder: codecs.IncrementalDecoder, data: bytes, codec: str, file: str, start: int, lines: int, *, final: bool
) -> str:
    pending = decoder.getstate()[0]
    try:
        return decoder.decode(data, final)
    except UnicodeDecodeError as error:
        good = (pending + data)[: error.start].decode(codec, "replace")
        line = lines + (good.count("\n") or good.count("\r")) + 1
        byte = start - len(pending) + error.start
        raise InputError(
            f"{file} line {line}: byte {byte} ({error.object[error.start]:#04x}) is no {codec} ({error.reason}); set "
            "catalogue.encoding to what the file is written in"
        ) from error


def undecodable(data: bytes, file: str, *, start: int, line: int) -> InputError | None:
    """Return the error for the first byte of `data` that is no UTF-8, None where all is.

    start, line: the place of the first byte of `data` in the file, the line counted from 1.
    """
    try:
        data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line += before.count(b"\n") or before.count(b"\r")
        cells = data[max(0, error.start - 12) : error.start + 12].splitlines()
        shown = max(cells, key=len).decode("cp1252", "replace")
        return InputError(
            f"{file} line {line}: byte {start + error.start} ({data[error.start]:#04x}) is no UTF-8; set "
            f"catalogue.encoding to what the file is written in, for example cp1252, which reads {shown!r} there"
        )
    return None


def propose_encoding(head: bytes) -> str:
    """Return what catalogue.encoding should be for a file that begins with `head`: `auto`, cp1252 or latin-1."""
    found = find_encoding(head, "auto")
    if found.codec != "utf-8":
        return "auto"
    for codec in ("utf-8", "cp1252"):
        try:
            codecs.getincrementaldecoder(codec)().decode(head)
        except UnicodeDecodeError:
            continue
        return "auto" if codec == "utf-8" else codec
    return "latin-1"

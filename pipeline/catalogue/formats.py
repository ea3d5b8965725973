"""Which files a catalogue consists of, and what they are."""

from __future__ import annotations

import gzip
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import BinaryIO, cast
from urllib.parse import unquote

import pyarrow as pa

from ..errors import Forbidden, InputError, NotFound
from ..storage import Files
from ..storage.local import expanded
from .config import CatalogueConfig

TABLE_SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".tar": "tar",
    ".tgz": "tar",
}
# What Pillow reads without plug-ins.
IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm",
    ".pnm", ".jp2",
})  # fmt: skip
WORKBOOK_SUFFIXES = frozenset({".xlsx", ".xlsm", ".xlsb", ".xls", ".ods", ".numbers"})
_PEEKED_NAMES = 2000
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True, slots=True)
class Place:
    """One file of a catalogue, or the folder of photos.

    number: its place among the files, part of every row's number. base: the folder, with a slash at the end, that
    relative URIs start at. partition: columns that the file's path holds as `name=value` folders.
    """

    uri: str
    number: int
    base: str
    partition: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Located:
    """The files of a catalogue and their one format; skipped: other files in the folder by suffix."""

    format: str
    places: list[Place]
    skipped: Counter[str]


def locate(config: CatalogueConfig, files: Files) -> Located:
    """Find the files of a catalogue. Raises InputError when there are none, or not of one format."""
    uri = absolute_source(config.source)
    with reading(uri):
        names = [] if uri.startswith("https://") else _peek(uri, config, files)
        if not names:
            return _single(uri, config)
        kind = config.format if config.format != "auto" else _folder_format(uri, names)
        base = f"{uri}/"
        if kind == "folder":
            return Located(kind, [Place(uri, 0, base)], Counter())
        return _folder_of_tables(uri, kind, files)


def absolute_source(source: str) -> str:
    """Return the source without a slash at its end; local paths absolute, so that URIs never depend on where a
    command was started."""
    if "://" in source:
        return source.rstrip("/")
    return str(expanded(source).absolute())


def format_of_name(name: str) -> str | None:
    """Return the format that a file name's suffix says, or None."""
    lower = name.lower()
    if lower.endswith(".tar.gz"):
        return "tar"
    return TABLE_SUFFIXES.get(suffix_of(lower.removesuffix(".gz").removesuffix(".zip")))


def suffix_of(name: str) -> str:
    """Return a name's suffix in lower case with its dot, or an empty text."""
    last = name.rsplit("/", 1)[-1]
    return f".{last.rsplit('.', 1)[1].lower()}" if "." in last else ""


def is_hidden(relative: str) -> bool:
    """Return whether a path below the source is none of the catalogue's: `_SUCCESS`, `.crc` files, `__MACOSX/`."""
    return any(part.startswith((".", "_")) for part in relative.split("/"))


@contextmanager
def reading(uri: str, what: str = "") -> Iterator[None]:
    """Turn what goes wrong while a source is read into an InputError that says which file and what to do."""
    try:
        yield
    except NotFound as error:
        raise InputError(f"catalogue.source {uri} is not there ({error}); check the path and the bucket") from error
    except Forbidden as error:
        raise InputError(
            f"catalogue.source {uri} may not be read ({error}); check the credentials and the bucket's policy"
        ) from error
    except (tarfile.ReadError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{uri} is damaged or not {what or 'what its suffix says'}: {error}; write it anew") from error
    except (
        pa.ArrowInvalid,
        pa.ArrowNotImplementedError,
        UnicodeDecodeError,
        OSError,
    ) as error:  # Arrow raises OSError too
        raise InputError(f"{uri} cannot be read as {what or 'a catalogue'}: {error}; write it anew") from error


@contextmanager
def opened(files: Files, uri: str, what: str) -> Iterator[BinaryIO]:
    """Open a source file for reading, unpacked when it ends in `.gz`; see `reading` for the errors."""
    with reading(uri, what), files.open(uri) as handle:
        if uri.lower().endswith(".gz"):
            with gzip.GzipFile(fileobj=handle) as unpacked:
                yield cast(BinaryIO, unpacked)
        else:
            yield handle


def _single(uri: str, config: CatalogueConfig) -> Located:
    kind = config.format if config.format != "auto" else _format_of_file(uri)
    if kind == "folder":
        raise InputError(
            f"catalogue.source {uri} holds no files, or is a file itself; check the path, the bucket and the format"
        )
    if kind is None and suffix_of(uri) in WORKBOOK_SUFFIXES:
        raise InputError(f"catalogue.source {uri} is a workbook; save its sheet as CSV UTF-8 and name that file")
    if kind is None:
        raise InputError(
            f"catalogue.source {uri} is neither a folder with files in it nor a file with a known suffix "
            f"({', '.join(TABLE_SUFFIXES)}); check the path and the bucket, or set catalogue.format"
        )
    return Located(kind, [Place(uri, 0, parent_folder(uri))], Counter())


def _format_of_file(uri: str) -> str | None:
    """Return the format of one file. `.txt` is a table here, while in a folder it may be what belongs to a photo."""
    name = uri.partition("?")[0] if uri.startswith("https://") else uri
    packed = (".gz", ".zip")
    plain = next((name[: -len(end)] for end in packed if name.lower().endswith(end)), name)
    return format_of_name(name) or ("csv" if suffix_of(plain) == ".txt" else None)


def parent_folder(uri: str) -> str:
    """Return the folder that holds a file, with a slash at the end."""
    return f"{uri.rsplit('/', 1)[0]}/"


def _peek(uri: str, config: CatalogueConfig, files: Files) -> list[str]:
    """Return the first names under a folder, relative to it; none when `uri` is a file or is not there."""
    try:
        return [found.removeprefix(f"{uri}/") for found, _ in islice(files.list(f"{uri}/"), _PEEKED_NAMES)]
    except NotFound:
        # A local file, or nothing at all: opening it will tell.
        return []
    except Forbidden:
        if config.format == "folder" or (config.format == "auto" and format_of_name(uri) is None):
            raise
        return []  # whoever may not list a bucket may still read the one file


def _folder_format(uri: str, names: list[str]) -> str:
    visible = [name for name in names if not is_hidden(name)]
    _refuse_table_formats(uri, names)
    found = Counter(kind for name in visible if (kind := format_of_name(name)) is not None)
    photos = sum(suffix_of(name) in IMAGE_SUFFIXES for name in visible)
    if len(found) == 1 and not photos:
        return next(iter(found))
    if photos and not found:
        return "folder"
    if photos or found:
        held = ", ".join([f"{count} {kind} file(s)" for kind, count in sorted(found.items())] + [f"{photos} photo(s)"])
        raise InputError(
            f"catalogue.source {uri} holds {held}; point it at the one file that is the catalogue, or set "
            "catalogue.format to parquet, csv, jsonl, folder or tar"
        )
    shown = ", ".join(names[:5])
    raise InputError(
        f"catalogue.source {uri} holds neither tables ({', '.join(TABLE_SUFFIXES)}) nor photos; the first names "
        f"are: {shown}"
    )


def _folder_of_tables(uri: str, kind: str, files: Files) -> Located:
    chosen, skipped = [], Counter[str]()
    for found, _ in files.list(f"{uri}/"):
        relative = found.removeprefix(f"{uri}/")
        if is_hidden(relative):
            _refuse_table_formats(uri, [relative])
        if is_hidden(relative) or format_of_name(relative) != kind:
            skipped[suffix_of(relative) or relative.rsplit("/", 1)[-1]] += 1
        else:
            chosen.append(relative)
    if not chosen:
        raise InputError(f"catalogue.source {uri} holds no {kind} files; it holds {dict(skipped)}")
    places = [Place(f"{uri}/{name}", number, f"{uri}/", _partition(name)) for number, name in enumerate(sorted(chosen))]
    return Located(kind, places, skipped)


def _refuse_table_formats(uri: str, names: list[str]) -> None:
    """A folder under Delta Lake holds deleted rows beside the living ones; reading its files would bring them back."""
    if any("_delta_log" in name.split("/") for name in names):
        raise InputError(
            f"catalogue.source {uri} is a Delta Lake table, whose files also hold deleted rows; export its current "
            "rows to Parquet and name that"
        )


def _partition(relative: str) -> dict[str, str | None]:
    pairs = [part.split("=", 1) for part in relative.split("/")[:-1] if "=" in part]
    return {name: None if value == _NULL_PARTITION else unquote(value) for name, value in pairs}

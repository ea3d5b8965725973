"""Tar shards in WebDataset naming: members that share a name up to its first dot are one item."""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import pyarrow as pa

from ..errors import ConfigError, InputError
from ..schema import RESERVED
from ..storage import Files
from ..storage.names import is_utf8
from .columns import refuse_reserved, unknown_column
from .config import CatalogueConfig
from .formats import IMAGE_SUFFIXES, Place, opened, suffix_of
from .json_values import columns_of, parse_object
from .rows import ROW_BITS, ROWS, Tally

_BATCH_ITEMS = 4096
_FIRST_ITEMS = 64  # few, for those who only look at the first
_TEXT_FIELDS = ("cls", "txt")
_TEXT_BYTES = 16 << 20
_PIECE_BYTES = 1 << 20
_PHOTO_BYTES = 2**31 - 1  # the most that images.max_bytes can be
KEYS = ("key", "name")

Plain = str | int | float | bool | None


@dataclass(slots=True)
class _Item:
    """The members of one key. photos: (number in the name or -1, member name, token, first byte, bytes).

    further: a photo whose name holds more than a number between its key and its suffix.
    """

    key: str
    photos: list[tuple[int, str, str, int, int]] = field(default_factory=list)
    attributes: dict[str, Plain] = field(default_factory=dict)
    further: str | None = None


def tar_rows(place: Place, config: CatalogueConfig, files: Files, tally: Tally) -> Iterator[pa.Table]:
    """Yield the photos of one tar shard as tables of rows.ROWS and attributes. Raises InputError.

    `key.jpg`, `key.0.jpg`, `key.1.jpg` are photos of the item `key` (numbered ones by number, then in order);
    `key.cls` and `key.txt` become attributes `cls` and `txt`, and so do the plain fields of `key.json`. By WebDataset's
    rule a key ends at the first dot of a name (catalogue.item_id: key); `name` lets it end at the last one. Unless
    `key` is asked for, photos that the rule makes one item by more than their number (`cable-1.0m.jpg` and
    `cable-1.5m.jpg`) are refused.
    Other members are counted in `tally`. Every byte is read once, for the digests that are the tokens.
    """
    if place.uri.lower().endswith((".gz", ".tgz")):
        raise InputError(f"{place.uri} is packed, so single photos cannot be read from it; write plain .tar shards")
    rule = check_tar_config(config)
    category = (config.category,) if config.category else ()
    refuse_reserved(category, place.uri)
    wanted = None if config.attributes is None else frozenset({*config.attributes, *category})
    with opened(files, place.uri, "a tar shard") as handle, tarfile.open(fileobj=handle, mode="r:") as shard:
        batch: list[_Item] = []
        number = 0
        for item in _items(shard, place, tally, wanted, rule):
            if rule is None:
                _check_names(item, place, tally)
            batch.append(item)
            if len(batch) == (_BATCH_ITEMS if number else min(_BATCH_ITEMS, _FIRST_ITEMS)):
                yield _table(batch, place, config, number)
                number += len(batch)
                batch = []
        if batch:
            yield _table(batch, place, config, number)
        _check_end(handle, shard.offset, place)


def _check_end(handle: BinaryIO, offset: int, place: Place) -> None:
    """Raise InputError unless a shard ends, behind its last member, as tar ends a file: with blocks of zeros alone.

    Python's reader takes any header that it cannot read, cut or damaged, for the end of the file, and never looks
    behind that end, where a second shard may lie.
    """
    handle.seek(offset)
    if len(end := handle.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
        raise InputError(
            f"{place.uri} ends without the blocks of zeros that close a tar file, as one that was cut short does; "
            "write it anew"
        )
    while end:
        if end.count(0) != len(end):
            raise InputError(
                f"{place.uri} can be read as tar up to byte {offset:,}, and has more data behind it: a damaged header, "
                "or two shards in one file; write it anew, each shard into a file of its own"
            )
        end = handle.read(_PIECE_BYTES)


def check_tar_config(config: CatalogueConfig) -> str | None:
    """Return which of KEYS ends the items' keys, None for the default. Raises ConfigError for what only a table has."""
    if config.version is not None:
        raise ConfigError(
            f"catalogue.version names the column {config.version!r}, but tar shards have none; take it away"
        )
    if config.item_id != "item_id" and config.item_id not in KEYS:
        raise ConfigError(
            f"catalogue.item_id is {config.item_id!r}, but tar shards have no columns; allowed are {', '.join(KEYS)}"
        )
    return None if config.item_id == "item_id" else config.item_id


def _check_names(item: _Item, place: Place, tally: Tally) -> None:
    if item.further is None:
        return
    if len(item.photos) > 1:
        names = [photo[1] for photo in item.photos]
        shown = ", ".join(repr(name) for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise InputError(
            f"{place.uri}: {shown} would be photos of one item {item.key!r}, because a key ends at the first dot of a "
            "name; set catalogue.item_id: name if each name is an item, or key if they are one item indeed"
        )
    what = "photos whose key ends at the first of several dots (catalogue.item_id: name keeps the whole name)"
    tally.count(what, 1, f"{item.further} is the item {item.key!r}")


def _items(
    shard: tarfile.TarFile, place: Place, tally: Tally, wanted: frozenset[str] | None, rule: str | None
) -> Iterator[_Item]:
    item: _Item | None = None
    while (member := shard.next()) is not None:
        shard.members = []  # type: ignore[attr-defined]  # tarfile would keep every header of the shard
        name = member.name.removeprefix("./")
        if not is_utf8(name):
            raise InputError(
                f"{place.uri} has the member {name!r}, whose name is no UTF-8; pack it anew under a name in UTF-8"
            )
        if member.issparse():
            raise InputError(
                f"{place.uri} has the sparse member {name!r}, whose bytes lie apart; pack it anew without -S"
            )
        folder, _, last = name.rpartition("/")
        stem, dot, rest = last.rpartition(".") if rule == "name" else last.partition(".")
        if member.isdir():
            continue
        if not member.isreg() or not stem or not dot or last.startswith("_"):
            tally.skipped[suffix_of(name) or last] += 1
            continue
        key = f"{folder}/{stem}" if folder else stem
        if item is None or item.key != key:
            if item is not None:
                yield item
            item = _Item(key)
        _add(item, rest.lower(), shard, member, place, tally, wanted)
    if item is not None:
        yield item


def _add(
    item: _Item,
    rest: str,
    shard: tarfile.TarFile,
    member: tarfile.TarInfo,
    place: Place,
    tally: Tally,
    wanted: frozenset[str] | None,
) -> None:
    suffix = suffix_of(f".{rest}")
    if suffix not in IMAGE_SUFFIXES and rest not in (*_TEXT_FIELDS, "json"):
        tally.skipped[suffix] += 1
        return
    if suffix in IMAGE_SUFFIXES:
        view = rest.removesuffix(suffix).rpartition(".")[2]
        number = int(view) if view.isdecimal() else -1
        if rest != suffix[1:] and not re.fullmatch(r"[0-9]+", rest.removesuffix(suffix)):
            item.further = member.name
        item.photos.append((number, member.name, _token(shard, member), member.offset_data, member.size))
        return
    if member.size > _TEXT_BYTES:
        raise InputError(
            f"the member {member.name!r} of {place.uri} has {member.size:,} bytes, more than the {_TEXT_BYTES:,} that "
            "attributes may have; take it out of the shard"
        )
    data = b"".join(_pieces(shard, member))
    if rest == "json":
        _merge(item, _plain_fields(data, member.name, place, tally, wanted), member.name, place)
    elif rest not in RESERVED if wanted is None else rest in wanted:
        try:
            _merge(item, {rest: data.decode().strip()}, member.name, place)
        except UnicodeDecodeError as error:
            raise InputError(
                f"the member {member.name!r} of {place.uri} is no UTF-8 text ({error}); write it anew"
            ) from error


def _token(shard: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    """Return the digest of a photo, read piece by piece; of one that is larger than any photo only its size."""
    if member.size > _PHOTO_BYTES:
        return f"size:{member.size}"
    digest = hashlib.sha256()
    for piece in _pieces(shard, member):
        digest.update(piece)
    return f"sha256:{digest.hexdigest()}"


def _pieces(shard: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    handle, length = shard.extractfile(member), 0
    while handle is not None and (piece := handle.read(_PIECE_BYTES)):
        length += len(piece)
        yield piece
    if length != member.size:
        raise tarfile.ReadError(f"it ends within the member {member.name!r}")


def _merge(item: _Item, fields: dict[str, Plain], member: str, place: Place) -> None:
    for name, value in fields.items():
        if item.attributes.setdefault(name, value) != value:
            raise InputError(
                f"the member {member!r} of {place.uri} says {name} {value!r}, but the item {item.key!r} has "
                f"{item.attributes[name]!r} from another member; keep one of them"
            )


def _plain_fields(
    data: bytes, member: str, place: Place, tally: Tally, wanted: frozenset[str] | None
) -> dict[str, Plain]:
    fields = parse_object(data, f"the member {member!r} of {place.uri}", wanted)
    fields = {name: value for name, value in fields.items() if wanted is None or name in wanted}
    plain = {
        name: value
        for name, value in fields.items()
        if isinstance(value, str | int | float | bool | None) and (wanted is not None or name not in RESERVED)
    }
    tally.skipped_columns.update(fields.keys() - plain.keys())
    return plain


def _table(items: list[_Item], place: Place, config: CatalogueConfig, first: int) -> pa.Table:
    names = list(dict.fromkeys(name for item in items for name in item.attributes))
    refuse_reserved(names, place.uri)
    rows: list[tuple[object, ...]] = []
    owners: list[_Item] = []
    for number, item in enumerate(items, first):
        row = (place.number << ROW_BITS) + number
        # Without a photo the item still becomes a row, with its reason, in the quarantine.
        for _, member, token, offset, length in sorted(item.photos, key=lambda photo: photo[0]):
            rows.append((item.key, f"{place.uri}#{member}", token, place.uri, offset, length, None, row))
            owners.append(item)
        if not item.photos:
            rows.append((item.key, None, None, None, None, None, None, row))
            owners.append(item)
    columns = [pa.array(column, kind.type) for column, kind in zip(zip(*rows, strict=True), ROWS, strict=True)]
    held = columns_of(
        [owner.attributes for owner in owners], names, lambda at: f"the item {owners[at].key!r} of {place.uri}"
    )
    return pa.table([*columns, *held.columns], names=[*ROWS.names, *names])


def require_tar_columns(names: list[str], config: CatalogueConfig) -> None:
    """Raise InputError when no member of any shard gave an attribute that the config names."""
    for role, wanted in (("catalogue.category", [config.category]), ("catalogue.attributes", config.attributes or ())):
        for name in wanted:
            if name is not None and name not in names:
                raise unknown_column(name, role, names, config.source)

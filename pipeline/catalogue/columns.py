"""Which columns of a table are read, and as what; every wrong name or type is refused with the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from ..column_types import Role, allowed, family_of, holds_photo_bytes, is_bytes, is_list, unpacked_type
from ..errors import InputError
from ..schema import RESERVED
from .config import CatalogueConfig

ImageKind = Literal["uri", "uris", "bytes", "struct"]
_IMAGE_KINDS: dict[str, ImageKind] = {
    "text": "uri",
    "nothing but nulls": "uri",
    "bytes": "bytes",
    "lists of texts": "uris",
    "photos with their path": "struct",
}


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of one file. attributes: in the table's order; skipped: those that cannot be kept, unnamed."""

    item_id: str
    image: str
    image_kind: ImageKind
    version: str | None
    attributes: tuple[str, ...]
    skipped: tuple[str, ...]

    @property
    def read(self) -> list[str]:
        """The columns to read from the file, each once."""
        names = [self.item_id, self.image, *([self.version] if self.version else []), *self.attributes]
        return list(dict.fromkeys(names))


def choose_columns(schema: pa.Schema, config: CatalogueConfig, file: str) -> Columns:
    """Match the config with the columns of one file.

    Raises InputError for a missing or doubled column that is asked for, a type that `column_types.FAMILIES` does not
    have for its role, and an attribute or category by a name that releases use for their own columns.
    """
    for role in ("item_id", "image", "category", "version"):
        name = getattr(config, role)
        if name is not None:
            _require(name, f"catalogue.{role}", schema, file)
    for name in config.attributes or ():
        _require(name, "catalogue.attributes", schema, file)
    taken = {config.item_id, config.image, config.version}
    if config.attributes is None:
        wanted = [name for name in schema.names if name not in taken or name == config.category]
    else:
        named = {*config.attributes, *([config.category] if config.category else [])}
        wanted = [name for name in schema.names if name in named]
    # What nobody asked for may be doubled, nested or not to be read at all.
    _refuse_doubles([name for name in schema.names if name in {*taken, *wanted}], file)
    _check_key_type(config.item_id, schema.field(config.item_id).type, file)
    if config.version is not None:
        _check_plain(config.version, "version", schema.field(config.version).type, file)
    plain = []
    for name in wanted:
        kind = schema.field(name).type
        if name == config.category:
            _check_plain(name, "category", kind, file)
        elif config.attributes is not None:
            _check_plain(name, "attribute", kind, file)
        elif family_of(kind, "attribute") is None or name in RESERVED:  # a feed may get a new column any night
            continue
        plain.append(name)
    # The version column may hold the same thing as the key; it is read but never kept unless asked for.
    plain = [name for name in plain if name not in (config.item_id, config.image)]
    refuse_reserved(plain, file)
    return Columns(
        item_id=config.item_id,
        image=config.image,
        image_kind=_image_kind(config.image, schema.field(config.image).type, file),
        version=config.version,
        attributes=tuple(plain),
        skipped=tuple(name for name in wanted if name not in plain),
    )


def refuse_reserved(names: Iterable[str], file: str) -> None:
    """Raise InputError when a column that the config names is called as a release's own is."""
    taken = sorted(set(names) & RESERVED)
    if taken:
        raise InputError(
            f"the attribute column(s) {_listed(taken)} of {file} have names that releases use for their own columns; "
            "rename them in the table, or take them out of catalogue.attributes and catalogue.category"
        )


def unknown_column(name: str, role: str, names: Iterable[str], file: str) -> InputError:
    """Return the error for a column that is not there, with the columns there are and the nearest spelling."""
    names = list(names)
    folded = {other.lower(): other for other in names}
    near = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.6)
    hint = f"; did you mean {folded[near[0]]!r}?" if near else ""
    shown = ", ".join(names[:30]) + (f" and {len(names) - 30} more" if len(names) > 30 else "")
    return InputError(f"{role} names the column {name!r}, which {file} does not have; its columns are: {shown}{hint}")


def _require(name: str, role: str, schema: pa.Schema, file: str) -> None:
    if name not in schema.names:
        raise unknown_column(name, role, schema.names, file)


def _refuse_doubles(names: list[str], file: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{file} has more than one column named {_listed(twice)}; rename all but one")


def _check_key_type(name: str, kind: Any, file: str) -> None:
    if family_of(kind, "key") is not None:
        return
    why = ""
    if pa.types.is_floating(unpacked_type(kind)):
        why = " (pandas turns integers with missing values into floats: drop those rows, then cast to integers)"
    raise InputError(
        f"catalogue.item_id names the column {name!r} of {file}, which holds {kind} values; a key must be text or "
        f"integers (allowed: {allowed('key')}): cast the column{why}"
    )


def _check_plain(name: str, role: Role, kind: Any, file: str) -> None:
    if family_of(kind, role) is None:
        what = "attribute" if role == "attribute" else f"{role} column"
        remedy = "take it out of catalogue.attributes, or flatten or cast it in the table"
        raise InputError(
            f"the {what} {name!r} of {file} holds {kind} values; allowed are {allowed(role)}: "
            f"{remedy if role == 'attribute' else 'cast it to text in the table'}"
        )


def _image_kind(name: str, kind: Any, file: str) -> ImageKind:
    family = family_of(kind, "image")
    if family is not None:
        return _IMAGE_KINDS[family.name]
    advice = "catalogue.image must name a column of URIs, of lists of URIs, or of one photo's bytes"
    inner = unpacked_type(kind)
    if is_list(inner) and (is_bytes(unpacked_type(inner.value_type)) or holds_photo_bytes(inner.value_type)):
        advice += "; write several embedded photos as several rows and set catalogue.rows: photo"
    raise InputError(f"the image column {name!r} of {file} holds {kind} values; {advice}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def null_text(rows: int) -> pa.ChunkedArray:
    """Return a column of null texts."""
    return pa.chunked_array([pa.nulls(rows, pa.string())])


def same_text(value: str, rows: int) -> pa.ChunkedArray:
    """Return a column that repeats one text."""
    return pa.chunked_array([pc.cast(pa.repeat(value, rows), pa.string())])

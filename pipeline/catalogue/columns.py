"""Which columns of a table are read, and as what; every wrong name or type is refused with the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import InputError
from ..schema import RESERVED
from .config import CatalogueConfig

ImageKind = Literal["uri", "uris", "bytes", "struct"]


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of one file. attributes: in the table's order; skipped: those that hold no plain values."""

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

    Raises InputError for a missing column, a key or image type that cannot be used, an attribute with a reserved
    name or with nested values.
    """
    _refuse_doubles(schema.names, file)
    for role in ("item_id", "image", "category", "version"):
        name = getattr(config, role)
        if name is not None:
            _require(name, f"catalogue.{role}", schema, file)
    for name in config.attributes or ():
        _require(name, "catalogue.attributes", schema, file)
    _check_key_type(config.item_id, schema.field(config.item_id).type, file)
    taken = {config.item_id, config.image, config.version}
    if config.attributes is None:
        wanted = [name for name in schema.names if name not in taken or name == config.category]
        plain = [name for name in wanted if is_plain(schema.field(name).type) or name == config.category]
    else:
        named = {*config.attributes, *([config.category] if config.category else [])}
        wanted = plain = [name for name in schema.names if name in named]
    for name in plain:
        if not is_plain(schema.field(name).type):
            raise InputError(
                f"the attribute {name!r} of {file} holds {schema.field(name).type} values; attributes must be text, "
                "numbers, booleans, dates or times: take it out of catalogue.attributes or flatten it in the table"
            )
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
    """Raise InputError when an attribute has a name that the release's own columns use."""
    taken = sorted(set(names) & RESERVED)
    if taken:
        raise InputError(
            f"the attribute column(s) {_listed(taken)} of {file} have names that releases use for their own columns; "
            "rename them in the table, or list the columns to keep under catalogue.attributes"
        )


def is_plain(kind: Any) -> bool:
    """Return whether an Arrow type holds one plain value (text, number, boolean, date, time) a row."""
    if pa.types.is_dictionary(kind):
        return is_plain(kind.value_type)
    return bool(
        pa.types.is_null(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_temporal(kind)
        or is_text(kind)
    )


def is_text(kind: Any) -> bool:
    """Return whether an Arrow type is text in one of its layouts."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_bytes(kind: Any) -> bool:
    """Return whether an Arrow type is bytes in one of its layouts."""
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def plain_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column as releases store it: dictionaries and text layouts become `string`.

    A column of type null stays: other batches may know its type.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = kind.value_type
    return column.cast(pa.string()) if is_text(kind) else column


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return any plain column as text; integers in their shortest form."""
    return plain_column(column).cast(pa.string())


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
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    whole_decimal = pa.types.is_decimal(kind) and kind.scale == 0
    if is_text(kind) or pa.types.is_integer(kind) or whole_decimal or pa.types.is_null(kind):
        return
    why = ""
    if pa.types.is_floating(kind):
        why = " (pandas turns integers with missing values into floats: drop those rows, then cast to integers)"
    raise InputError(
        f"catalogue.item_id names the column {name!r} of {file}, which holds {kind} values; a key must be text or "
        f"integers: cast the column{why}"
    )


def _image_kind(name: str, kind: Any, file: str) -> ImageKind:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if is_text(kind) or pa.types.is_null(kind):
        return "uri"
    if is_bytes(kind):
        return "bytes"
    # The layout that Hugging Face `datasets` writes: {bytes: binary, path: string}.
    if pa.types.is_struct(kind) and any(field.name == "bytes" and is_bytes(field.type) for field in kind):
        return "struct"
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if lists and (is_text(kind.value_type) or pa.types.is_null(kind.value_type)):
        return "uris"
    advice = "catalogue.image must name a column of URIs, of lists of URIs, or of one photo's bytes"
    if lists and is_bytes(kind.value_type):
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

"""How shops write addresses of photos: several in a cell, without a scheme, in capitals, in an object."""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..column_types import is_text, unpacked

_SCHEME = r"(?s)^(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*)(?P<rest>://.*)$"
_WEB = r"(?s)^(?P<host>https?://[^/?#]*)(?P<rest>.*)$"
_CAPITAL_SCHEME, _CAPITAL_HOST = r"^[a-z0-9+.\-]*[A-Z][A-Za-z0-9+.\-]*://", r"^https?://[^/?#]*[A-Z]"
# Where an address that is not relative begins.
_BEGINNING = r"(?:[A-Za-z][A-Za-z0-9+.\-]*:)?//"
_CUT = "\x1e"


def split_addresses(texts: pa.Array, separator: str) -> pa.Array:
    """Return the addresses of each cell, trimmed, as `list<string>`; a cell that is null or a JSON list stays one.

    A cell that begins with a scheme or `//` is cut only where another such address follows, because web addresses may
    hold commas, bars and spaces; any other at each separator.
    """
    spaced = rf"\s*{re.escape(separator)}\s*"
    whole = pc.match_substring_regex(texts, rf"^\s*{_BEGINNING}")
    listed = pc.match_substring_regex(texts, r"^\s*\[")
    again = pc.replace_substring_regex(texts, rf"{spaced}({_BEGINNING})", rf"{_CUT}\1")
    each = pc.replace_substring_regex(texts, spaced, _CUT)
    cut = pc.if_else(whole, again, pc.if_else(listed, texts, each))
    # Separators at the ends of a cell are no addresses; empty members are left out later.
    cut = pc.replace_substring_regex(cut, rf"({spaced}|{_CUT}|\s)+$", "")
    return pc.split_pattern(cut, _CUT)


def plain_addresses(cells: pa.Array) -> pa.Array:
    """Return addresses with schemes and web hosts in small letters, and `https:` before `//host/...`."""
    if not pc.any(pc.match_substring(cells, "//")).as_py():
        return cells
    relative = pc.starts_with(cells, "//")
    if pc.any(relative).as_py():
        cells = pc.if_else(relative, pc.binary_join_element_wise("https:", cells, ""), cells)
    if not pc.any(pc.match_substring_regex(cells, f"{_CAPITAL_SCHEME}|{_CAPITAL_HOST}")).as_py():
        return cells
    for capitals, parts in ((_CAPITAL_SCHEME, _SCHEME), (_CAPITAL_HOST, _WEB)):
        found = pc.match_substring_regex(cells, capitals)
        if pc.any(found).as_py():
            both = pc.extract_regex(cells, parts)
            first, rest = both.field(0), both.field(1)
            cells = pc.if_else(found, pc.binary_join_element_wise(pc.ascii_lower(first), rest, ""), cells)
    return cells


def photo_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the objects `{bytes, path}` of a JSON column as text: a `data:` URI of the bytes, which are base64, or,
    where there are none, the path."""
    column = unpacked(column)
    path = _text_field(column, "path")
    data = _text_field(column, "bytes")
    data = pc.if_else(pc.equal(data, ""), pa.scalar(None, pa.string()), data)
    packed = pc.if_else(pc.starts_with(data, "data:"), data, pc.binary_join_element_wise("data:;base64,", data, ""))
    return pc.coalesce(packed, path)


def is_photo_object(kind: Any) -> bool:
    """Return whether an Arrow type is that of JSON objects `{bytes, path}`, one of which may be left out."""
    if not pa.types.is_struct(kind):
        return False
    held = {field.name: field.type for field in kind if field.name in ("bytes", "path")}
    return bool(held) and all(is_text(of) or pa.types.is_null(of) for of in held.values())


def photo_text(value: Any) -> Any:
    """Return one JSON value as `photo_texts` does; what is no object `{bytes, path}` comes back as it is."""
    try:
        fields = dict(value) if isinstance(value, dict | list) else {}
    except (TypeError, ValueError):  # a list of something else than pairs
        return value
    data, path = fields.get("bytes"), fields.get("path")
    if not ({"bytes", "path"} & fields.keys()) or not all(isinstance(of, str | None) for of in (data, path)):
        return value
    if data:
        return data if data.startswith("data:") else f"data:;base64,{data}"
    return path


def _text_field(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    if column.type.get_field_index(name) < 0:
        return pa.chunked_array([pa.nulls(len(column), pa.string())])
    return pc.struct_field(column, name).cast(pa.string())

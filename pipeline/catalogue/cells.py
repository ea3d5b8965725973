"""Cells of photos as they are written: lists in text, photos in `data:` URIs, and what is none of them.

A cell that cannot be read is one photo that cannot be had, never the end of a night: it becomes a URI that says what is
wrong with it, and is quarantined as `bad_uri`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..storage.names import is_utf8
from ..storage.secrets import masked
from .addresses import photo_text

# How the URI of an unreadable cell begins, as RE2 and Python understand it; the digest tells cells that look alike.
UNREADABLE = r"cell:(?P<kind>list|data|type):[0-9a-f]{12}:"
_REMEDIES = {
    "list": 'begins like a list and is no JSON list of texts; write ["a.jpg", "b.jpg"]',
    "data": "is no base64; write it as data:image/jpeg;base64,...",
    "type": "is no address; write a text, a list of texts, or {bytes, path}",
}
_SHOWN = 100


def unreadable(kind: str, text: str) -> str:
    """Return the URI that stands for a cell that cannot be read; kind: `list`, `data` or `type`."""
    shown = text.partition(",")[0] if kind == "data" else text  # what follows the comma are bytes of a file
    shown = masked(shown[:_SHOWN]).encode(errors="backslashreplace").decode()
    return f"cell:{kind}:{hashlib.sha256(text.encode(errors='backslashreplace')).hexdigest()[:12]}:{shown}"


def what_is_wrong(uri: str) -> str | None:
    """Return why a cell could not be read and what to write instead, from its URI; None for any other URI."""
    found = re.match(UNREADABLE, uri)
    return f"the image cell {uri[found.end() :]!r} {_REMEDIES[found['kind']]}" if found else None


def blank_as_null(texts: pa.Array) -> pa.Array:
    """Return texts with null where there is nothing but white space."""
    blank = pc.or_(pc.equal(texts, ""), pc.utf8_is_space(texts))
    return pc.if_else(blank, pa.scalar(None, pa.string()), texts) if pc.any(blank).as_py() else texts


def lists_in_text(texts: pa.Array) -> pa.Array | None:
    """Return the members of each cell as `list<string>` where some hold a JSON list, as CSV has them; None where none
    does."""
    listed = pc.fill_null(pc.match_substring_regex(texts, r"^\s*[\[{]"), False)
    if not pc.any(listed).as_py():
        return None
    return pa.array([_members(text) for text in texts.to_pylist()], pa.list_(pa.string()))


def _members(text: str | None) -> list[str | None]:
    if text is None or text.lstrip()[:1] not in ("[", "{"):
        return [text]
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, list):
        return [member_text(member) for member in found]
    if isinstance(found, dict):
        return [unreadable("type", text)]
    return [unreadable("list", text) if text.lstrip().startswith("[") else text]  # `{` may begin a file's name


def member_text(value: Any) -> str | None:
    """Return one member of a JSON list of photos as text; what is no text as an unreadable cell."""
    if value is None or (isinstance(value, str) and is_utf8(value)):
        return value
    return unreadable("type", json.dumps(value))


def readable_cells(values: Iterable[Any], *, known: bool) -> list[Any]:
    """Return the JSON values of a field of photos in one type: texts, or lists of texts where all cells are such.

    Other values become unreadable cells, unless none at all can be read and the field is not `known` to hold photos:
    then it is the wrong field, which is refused by its type.
    """
    cells = [photo_text(value) for value in values]
    if not known and not any(isinstance(cell, str) or _is_list(cell) for cell in cells):
        return cells
    read = [[member_text(of) for of in cell] if _is_list(cell) else _one_text(cell) for cell in cells]
    if any(isinstance(cell, str) for cell in read):
        return [json.dumps(cell) if isinstance(cell, list) else cell for cell in read]
    return read


def _is_list(cell: Any) -> bool:
    """Return whether a JSON value is a list, not an object as `json_values.parse_object` has it, a list of pairs."""
    return type(cell) is list


def _one_text(cell: Any) -> str | None:
    # A text that is no UTF-8 stays, and is refused with its row as in every other column.
    return cell if cell is None or isinstance(cell, str) else unreadable("type", json.dumps(_as_written(cell)))


def _as_written(cell: Any) -> Any:
    return dict(cell) if isinstance(cell, list) else cell


def decode_data_uri(text: str) -> bytes:
    """Return the bytes of a `data:image/jpeg;base64,...` URI. Raises ValueError when it is not one."""
    head, _, body = text.partition(",")
    if not head.endswith(";base64"):
        raise ValueError(f"the data: URI {head[:60]!r} is not base64; write it as data:image/jpeg;base64,...")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise ValueError(f"the data: URI {head[:60]!r} is not valid base64 ({error})") from error

"""Guessing from a table's first rows which columns hold keys, photos and categories, and how photos are written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..column_types import family_of, is_text, unpacked, unpacked_type
from ..errors import InputError
from ..schema import RESERVED
from .addresses import split_addresses

_KEYS = ("item_id", "sku", "product_id", "article_id", "item", "id", "asin", "ean", "gtin", "key", "product")
_IMAGES = (
    "image",
    "image_url",
    "image_uri",
    "image_path",
    "images",
    "photo",
    "photos",
    "picture",
    "img",
    "url",
    "path",
)
_CATEGORIES = ("category", "product_type", "class", "label", "type", "department", "group", "section", "kind")
_PHOTO = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|avif)([?#].*)?$", re.IGNORECASE)
# Words of a column's name that say photos even where their addresses do not end in a suffix.
_SHOWN = {"image", "images", "photo", "photos", "picture", "pictures", "img", "imgs", "bild", "bilder"}
_ADDRESS = re.compile(r"(https?:)?//[^/\s]+/\S", re.IGNORECASE)
SEPARATORS = ("|", ";", ",", "\n", " ")


@dataclass(frozen=True, slots=True)
class Guess:
    """Which column means what.

    rows: `photo` where a key repeats; separator: what stands between several addresses in one cell; attributes: the
    columns that can be kept, where not every other column can.
    """

    item_id: str
    image: str
    category: str | None
    rows: str
    separator: str | None
    attributes: tuple[str, ...] | None


def guess_columns(
    rows: pa.Table, where: str, *, item_id: str | None = None, image: str | None = None, category: str | None = None
) -> Guess:
    """Return which columns of a table hold keys, photos and categories; those that are given are not guessed.

    Raises InputError that lists the columns when there is nothing like a key or a photo, or a named column is missing.
    """
    for column in filter(None, (item_id, image, category)):
        if column not in rows.column_names:
            raise InputError(f"{where} has no column {column!r}; columns: {listed(rows)}")
    image = image or _best((name for name in rows.column_names if _holds_photos(name, rows[name])), _IMAGES)
    if image is None:
        raise InputError(
            f"no column of {where} looks like photos (URIs ending in .jpg and the like, or bytes); name it with "
            f"--image COLUMN. Columns: {listed(rows)}"
        )
    keys = [name for name in rows.column_names if name != image and _may_be_key(rows[name])]
    # A column of a usual name may repeat its keys, one row a photo; any other one must not.
    named = [name for name in keys if _plain(name) in _KEYS and _varies(rows[name])]
    unique = [name for name in keys if _is_unique(rows[name])]
    item_id = item_id or _best(named or unique, _KEYS)
    if item_id is None:
        raise InputError(
            f"no column of {where} looks like a key of items (text or whole numbers, no nulls); name it with "
            f"--item-id COLUMN. Columns: {listed(rows)}"
        )
    others = [name for name in rows.column_names if name not in (image, item_id)]
    category = category or _best((name for name in others if _may_be_category(rows[name])), _CATEGORIES)
    separator = guess_separator(rows[image])
    return Guess(
        item_id=item_id,
        image=image,
        category=category,
        rows="item" if _is_unique(rows[item_id]) else "photo",
        separator=separator,
        attributes=_attributes(rows, {item_id, image}),
    )


def guess_separator(column: pa.ChunkedArray) -> str | None:
    """Return what stands between several addresses in one cell, None where cells hold one each.

    It cuts some cells into several members, and no cell that looks like a photo into any that does not.
    """
    column = unpacked(column)
    if not is_text(column.type):
        return None
    texts = [text for text in column.cast(pa.string()).to_pylist() if text and not text.lstrip().startswith("[")]
    cells = pa.array(texts, pa.string())
    best, most = None, 0
    for separator in SEPARATORS:
        members = [[of for of in cell if of] for cell in split_addresses(cells, separator).to_pylist()]
        several = [cell for cell in members if len(cell) > 1]
        if len(several) > most and all(map(_looks_like_photo, (of for cell in several for of in cell))):
            best, most = separator, len(several)
    return best


def listed(rows: pa.Table) -> str:
    """Return the columns of a table with their types, in words."""
    return ", ".join(f"{field.name} ({field.type})".replace("\n", " ") for field in rows.schema)


def holds_bytes(kind: Any) -> bool:
    """Return whether photos of a column's type lie in the table itself."""
    family = family_of(kind, "image")
    return family is not None and family.name in ("bytes", "photos with their path")


def _attributes(rows: pa.Table, taken: set[str]) -> tuple[str, ...] | None:
    """Return the columns to keep where some cannot be: names that releases use themselves, names that stand twice."""
    others = [field.name for field in rows.schema if field.name not in taken and family_of(field.type, "attribute")]
    kept = [name for name in others if name not in RESERVED and rows.column_names.count(name) == 1]
    return None if len(kept) == len(others) else tuple(kept)


def _best(names: Iterator[str] | Sequence[str], known: Sequence[str]) -> str | None:
    return min(names, key=lambda name: _rank(name, known), default=None)


def _rank(name: str, known: Sequence[str]) -> int:
    """Return how early a column's name, or a part of it, stands among the usual ones; smaller is better."""
    plain = _plain(name)
    if plain in known:
        return known.index(plain)
    return len(known) - 1 if any(part in known for part in plain.split("_")) else len(known)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _varies(column: pa.ChunkedArray) -> bool:
    return len(pc.unique(column)) * 20 >= len(column)


def _holds_photos(name: str, column: pa.ChunkedArray) -> bool:
    if holds_bytes(column.type):
        return True
    column = unpacked(column)
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = unpacked(pc.list_flatten(column))
    if not is_text(column.type):
        return False
    texts = [text for text in column.to_pylist() if text]
    named = not _SHOWN.isdisjoint(_plain(name).split("_"))
    looks: Callable[[str], object] = _looks_like_photo_address if named else _looks_like_photo
    return sum(bool(looks(text)) for text in texts) * 2 > len(texts) > 0


def _looks_like_photo(text: str) -> bool:
    return any(_PHOTO.search(member.strip()) or member.startswith("data:") for member in _members(text))


def _looks_like_photo_address(text: str) -> bool:
    return _looks_like_photo(text) or any(_ADDRESS.match(member.strip()) for member in _members(text))


def _members(text: str) -> list[str]:
    """Return the texts of a JSON list, or the text itself."""
    if not text.lstrip().startswith("["):
        return [text]
    try:
        members = json.loads(text)
    except (ValueError, RecursionError):
        return [text]
    return [member for member in members if isinstance(member, str)]


def _may_be_key(column: pa.ChunkedArray) -> bool:
    kind = unpacked_type(column.type)
    return column.null_count == 0 and bool(is_text(kind) or pa.types.is_integer(kind))


def _is_unique(column: pa.ChunkedArray) -> bool:
    return len(pc.unique(column)) == len(column)


def _may_be_category(column: pa.ChunkedArray) -> bool:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return True
    if not (is_text(kind) or pa.types.is_integer(kind)):
        return False
    distinct = len(pc.unique(column))
    return 1 < distinct <= max(2, len(column) // 2) and (is_text(kind) or distinct <= 100)

"""A folder of photos: `prefix/<category>/<name>.jpg`."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pyarrow as pa

from ..errors import ConfigError
from ..storage import Files
from .columns import refuse_reserved
from .config import CatalogueConfig
from .formats import IMAGE_SUFFIXES, Place, is_hidden, reading, suffix_of
from .rows import ROW_BITS, ROWS, Tally

_BATCH_ROWS = 65_536
_VIEW = re.compile(r"\.\d+$")
KEYS = ("name", "path", "folder")


def folder_rows(place: Place, config: CatalogueConfig, files: Files, tally: Tally) -> Iterator[pa.Table]:
    """Yield the photos below a folder as tables of rows.ROWS and the category, in the order of their names.

    The category is the path of the folder below the source (`Shoes`, `Shoes/Boots`), null for a photo in the source
    itself. The key is, by catalogue.item_id: `name` (the default) the file's name without its suffix; `path` the path
    below the source without suffix, for names that repeat in several folders; `folder` the folder's path, with the
    folder above as category. With `rows: photo`, `sku.0.jpg` and `sku.1.jpg` are two photos of `sku`, in the order
    of their names. Tokens come with the listing. Hidden files and files without an image suffix are counted in `tally`.
    """
    key = check_folder_config(config)
    category = config.category or "category"
    refuse_reserved([category], place.uri)
    schema = pa.schema([*ROWS, pa.field(category, pa.string())])
    batch: list[tuple[object, ...]] = []
    row = place.number << ROW_BITS
    with reading(place.uri):
        for uri, entry in files.list(place.base):
            tally.listed += 1
            relative = uri.removeprefix(place.base)
            suffix = suffix_of(relative)
            if is_hidden(relative) or suffix not in IMAGE_SUFFIXES:
                tally.skipped[suffix or relative.rsplit("/", 1)[-1]] += 1
                continue
            item_id, group = _item_and_category(relative[: -len(suffix)], key, photos=config.rows == "photo")
            batch.append((item_id, uri, entry.token, None, None, entry.size, None, row, group))
            row += 1
            if len(batch) == _BATCH_ROWS:
                yield _table(batch, schema)
                batch = []
        if batch:
            yield _table(batch, schema)


def check_folder_config(config: CatalogueConfig) -> str:
    """Return which of KEYS names the items. Raises ConfigError for settings that only a table has."""
    key = "name" if config.item_id == "item_id" else config.item_id
    if key not in KEYS:
        raise ConfigError(
            f"catalogue.item_id is {config.item_id!r}, but a folder of photos has no columns; "
            f"allowed are {', '.join(KEYS)}"
        )
    if config.version is not None:
        raise ConfigError(f"catalogue.version names the column {config.version!r}, but a folder has none; take it away")
    if set(config.attributes or ()) - {config.category or "category"}:
        raise ConfigError(
            f"catalogue.attributes lists {list(config.attributes or ())}, but a folder has the category only; "
            "take it away"
        )
    return key


def _item_and_category(stem: str, key: str, *, photos: bool) -> tuple[str | None, str | None]:
    folder, _, name = stem.rpartition("/")
    if key == "folder":
        return folder or None, folder.rpartition("/")[0] or None
    if photos:
        name = _VIEW.sub("", name)
    return (f"{folder}/{name}" if key == "path" and folder else name), folder or None


def _table(batch: list[tuple[object, ...]], schema: pa.Schema) -> pa.Table:
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(zip(*batch, strict=True), schema, strict=True)],
        schema=schema,
    )

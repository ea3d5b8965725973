"""What reading a catalogue found besides its photos; travels in the metadata of their table."""

from __future__ import annotations

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

NOTES_KEY = b"catalogue"


class Found(BaseModel):
    """How often something was found that was not taken as it stands, and where first or most."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    where: str


class CatalogueNotes(BaseModel):
    """What reading a catalogue found besides its photos.

    rows: rows of the tables (files of a folder, items of tar shards); items: keys; photos: usable URIs; no_image: items
    without any photo; repeated: photos that one list names twice, kept once; sampled_from: items before `limit`.
    skipped: other files or tar members, by suffix; skipped_columns: columns that cannot be kept (no plain
    values, or a name that releases use); listed: names listed while reading; counted: by what it is in words, whatever
    else was dropped, merged or read in another way than it stands.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str
    files: int
    rows: int
    items: int
    photos: int
    no_image: int
    repeated: int
    sampled_from: int | None = None
    skipped: dict[str, int]
    skipped_columns: tuple[str, ...]
    listed: int
    counted: dict[str, Found] = {}


def catalogue_notes(photos: pa.Table) -> CatalogueNotes:
    """Return what `read_photos` noted in the metadata of its table."""
    return CatalogueNotes.model_validate_json((photos.schema.metadata or {})[NOTES_KEY])

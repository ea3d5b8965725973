"""The page about one item: its photos, and its neighbours in two releases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .page import Picture, template


@dataclass(frozen=True, slots=True)
class PairLine:
    """A neighbour. now, before: rank and score as people read them, "" where it is none. photo, other: the words, and
    pictures where pixels are kept, of the two photos that decided; latents: the words on their score."""

    item_id: str
    status: str
    now: str
    before: str
    why: str
    photo: str
    other: str
    latents: str
    photo_picture: Picture | None = None
    other_picture: Picture | None = None


@dataclass(frozen=True, slots=True)
class ItemData:
    """All that the page shows. photos: (words, picture or None); refused: (release, photo, why)."""

    title: str
    facts: Sequence[tuple[str, str]]
    photos: Sequence[tuple[str, Picture | None]]
    note: str
    against: str | None
    neighbours: Sequence[PairLine]
    refused: Sequence[tuple[str, str, str]]


def render_item(data: ItemData) -> bytes:
    """Return the page, UTF-8; the same bytes for the same data."""
    return template("item.html.j2").render(data=data).encode("utf-8")

"""What the page about an item shows, its pictures read from the releases."""

from __future__ import annotations

from ..index.opened import OpenedRelease, StoredPhoto
from ..report.item import ItemData, PairLine, render_item
from ..report.page import Picture
from .explaining import Beside, Explained, Near, kept_text, latents_text


def item_page(found: Explained, now: OpenedRelease, before: OpenedRelease | None) -> bytes:
    """Return the self-contained page of an explanation; now, before: the releases that it is of."""
    facts = [("release", found.release), ("beside", found.against or "no other release"), ("metric", found.metric)]
    if found.sid is not None:
        facts.append(("semantic ID", f"{found.sid.token}, epoch {found.sid.epoch}"))
    facts += [(name, str(value)) for name, value in found.attributes.items() if value is not None]
    data = ItemData(
        title=f"Item {found.item_id}",
        facts=facts,
        photos=[
            (f"{photo.uri}, view {photo.view}, token {photo.token}, {kept_text(photo)}", _picture(now, photo))
            for photo in found.photos
        ],
        note=found.note,
        against=found.against,
        neighbours=[_line(line, now, before) for line in found.neighbours],
        refused=[(row.release, row.uri, f"{row.stage}, {row.reason} ({row.detail})") for row in found.refused],
    )
    return render_item(data)


def _line(line: Beside, now: OpenedRelease, before: OpenedRelease | None) -> PairLine:
    near, opened = (line.now, now) if line.now is not None else (line.before, before)
    if near is None or opened is None:
        raise ValueError(f"neighbour {line.item_id!r} is of neither release")
    return PairLine(
        line.item_id,
        line.status,
        _place(line.now),
        _place(line.before),
        line.why,
        near.photo.uri,
        near.other.uri,
        latents_text(near),
        _picture(opened, near.photo),
        _picture(opened, near.other),
    )


def _place(near: Near | None) -> str:
    return "" if near is None else f"#{near.rank}, {near.score:.4f}"


def _picture(opened: OpenedRelease, photo: StoredPhoto) -> Picture | None:
    pixels = opened.pixels_of(photo)
    return None if pixels is None else Picture(pixels, f"photo {photo.uri}")

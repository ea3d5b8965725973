"""Drawing the report of a release: one HTML page that needs no script and fetches nothing, its pictures in it."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from .night import NightReport, Pixels, Plane
from .page import template
from .trends import HEIGHT, WIDTH

LIMIT = 5_000_000
"""Bytes that no page reaches: its pictures become smaller until it does not."""

_TILE = 48  # pixels of a map's thumbnail
# (largest side of a picture, quality of its JPEG), the best first.
_SIZES = ((96, 85), (72, 80), (56, 72), (40, 60), (24, 40))

# Of categories on the map, (on light, on dark ground): each at least 3:1 against its ground, told apart by people who
# see no red or no green (after Okabe and Ito 2008), and every fifth shape is the same.
COLOURS = (
    ("#0062a3", "#5cb3ee"), ("#b14600", "#f59a4c"), ("#007a58", "#3fcf9f"), ("#a8327d", "#ee93cb"),
    ("#6d6400", "#ddd04a"), ("#4b3bb8", "#a99dff"), ("#8a1c1c", "#ff9a90"), ("#00707d", "#4fd0de"),
    ("#5a5f66", "#b6bec9"), ("#7a4a1e", "#d9b08c"), ("#6b6f75", "#9aa2ac"),
)  # fmt: skip

_SECTIONS: tuple[tuple[str, str, Callable[[NightReport], object]], ...] = (
    ("gates", "Gates", lambda data: data.verdicts),
    ("changes", "What changed", lambda data: data.changes),
    ("measures", "Measures", lambda data: data.measures),
    ("neighbours", "Neighbours", lambda data: data.neighbourhoods),
    ("hubs", "Hubs and antihubs", lambda data: data.hubs),
    ("reconstructions", "Reconstructions", lambda data: data.reconstructions),
    ("codes", "Codebook atlas", lambda data: data.levels),
    ("shelves", "Shelves of semantic IDs", lambda data: data.shelves),
    ("map", "Map of the catalogue", lambda data: data.plane),
    ("curves", "Over the last releases", lambda data: data.curves),
    ("training", "Training", lambda data: data.training),
    ("stages", "Seconds and cost", lambda data: data.stages),
    ("quarantine", "Quarantine", lambda data: data.refused),
    ("tomorrow", "Plan for tomorrow", lambda data: data.tomorrow),
    ("about", "About this release", lambda data: data.facts),
)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture as a page holds it. uri: a data URI; width, height: in pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Spot:
    """An item of the map as the page places it. kind: of its colour and shape; tile, small: where its thumbnail lies on
    the sheet of all, in two sizes, "" without one; turn: to which side its preview opens."""

    item_id: str
    category: str
    kind: int
    left: str
    top: str
    turn: str
    stop: bool
    tile: str
    small: str


@dataclass(frozen=True, slots=True)
class Map:
    """The map as the page draws it. legend: (category, kind, how many); sheet: a data URI of all thumbnails,
    `wide` of them a row."""

    spots: Sequence[Spot]
    legend: Sequence[tuple[str, int, int]]
    sheet: str
    wide: int


def render_night(data: NightReport) -> bytes:
    """Return the page, UTF-8, below LIMIT bytes; the same bytes for the same data.

    Raises ValueError for pixels that are not uint8 [h, w, 3], or a report whose words alone are longer than LIMIT.
    """
    sections = [(name, title) for name, title, held in _SECTIONS if held(data)]
    for side, quality in _SIZES:
        page = template("night.html.j2").render(
            data=data,
            sections=sections,
            draw=partial(_draw, side=side, quality=quality),
            map=None if data.plane is None else _map(data.plane, quality),
            tile=_TILE,
            colours=COLOURS,
            width=WIDTH,
            height=HEIGHT,
        )
        found = page.encode("utf-8", errors="replace")
        if len(found) < LIMIT:
            return found
    raise ValueError(f"the report of {data.title!r} has {len(found):,} bytes with its smallest pictures")


def _draw(pixels: Pixels, *, side: int, quality: int) -> Drawn:
    """Return a picture as a JPEG of at most `side` a side."""
    from PIL import Image

    picture = Image.fromarray(_checked(pixels))
    if max(picture.size) > side:
        picture.thumbnail((side, side), Image.Resampling.BOX)
    return Drawn(_jpeg(picture, quality), *picture.size)


def _jpeg(picture: object, quality: int) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, optimize=True)  # type: ignore[attr-defined]
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _checked(pixels: Pixels) -> Pixels:
    found = np.asarray(pixels)
    if found.dtype != np.uint8 or found.ndim != 3 or found.shape[2] != 3 or 0 in found.shape:
        raise ValueError(f"pixels are {found.dtype} {list(found.shape)}; a page takes uint8 [h, w, 3]")
    return np.ascontiguousarray(found)


def _map(plane: Plane, quality: int) -> Map:
    """Return the map; all thumbnails are one sheet, which has a fifth of the bytes of as many pictures."""
    from PIL import Image

    kinds = {category: number for number, category in enumerate(dict.fromkeys(dot.category for dot in plane.dots))}
    pictured = [dot for dot in plane.dots if dot.pixels is not None]
    wide = max(1, int(np.ceil(np.sqrt(len(pictured)))))
    sheet = Image.new("RGB", (wide * _TILE, max(1, -(-len(pictured) // wide)) * _TILE), "white")
    places = {}
    for number, dot in enumerate(pictured):
        row, column = divmod(number, wide)
        picture = Image.fromarray(_checked(dot.pixels)).resize((_TILE, _TILE), Image.Resampling.BOX)  # type: ignore[arg-type]
        sheet.paste(picture, (column * _TILE, row * _TILE))
        places[id(dot)] = (column, row)
    spots = [
        Spot(
            dot.item_id,
            dot.category,
            kinds[dot.category] % len(COLOURS),
            f"{100 * dot.x:.1f}",
            f"{100 * dot.y:.1f}",
            _turn(dot.x, dot.y),
            dot.stop,
            *(_offset(places.get(id(dot)), _TILE * share) for share in (1.0, 0.75)),
        )
        for dot in plane.dots
    ]
    counts = Counter(dot.category for dot in plane.dots)
    legend = [(category, kind % len(COLOURS), counts[category]) for category, kind in kinds.items()]
    return Map(spots, legend, _jpeg(sheet, min(quality, 75)), wide)


def _turn(x: float, y: float) -> str:
    """Return where a preview opens so that it stays on the page."""
    aside = " west" if x < 0.2 else " east" if x > 0.8 else ""
    return aside + (" north" if y < 0.35 else "")


def _offset(place: tuple[int, int] | None, tile: float) -> str:
    return "" if place is None else f"-{place[0] * tile:g}px -{place[1] * tile:g}px"

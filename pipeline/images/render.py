"""Renders the demo's catalogue: product pictures whose neighbours can be judged by eye and by known attributes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import InputError
from .drawing import COLOURS, PATTERNS, Product, View, draw_product, is_light
from .garments import GARMENTS

COLUMNS = ("item_id", "image", "category", "colour", "pattern", "angle", "shade", "width", "price")

NUISANCES = ("angle", "shade", "width", "view")  # what photos of one design differ in
SHOWINGS = 4  # photos of a design that `showings` gives: the catalogue's kinds of view

_SIZE = (240, 300)
_SEVERAL_VIEWS = 0.2  # share of items with two or three photos
_SHADES, _WIDTHS = (0.86, 1.08), (0.86, 1.04)
# Gives a product another angle, shade or width, as the catalogue's items have them.
_VARIED: dict[str, Callable[[Product, np.random.Generator], Product]] = {
    "angle": lambda product, dice: replace(product, angle=round(float(dice.normal(0, 4)), 1)),
    "shade": lambda product, dice: replace(product, shade=round(float(dice.uniform(*_SHADES)), 3)),
    "width": lambda product, dice: replace(product, width=round(float(dice.uniform(*_WIDTHS)), 3)),
}
_FAULTS = ("truncated", "empty", "text", "missing")
_PRICES = {"bag": 89.0, "boot": 119.0, "dress": 59.0, "sneaker": 79.0, "trousers": 49.0}


@dataclass(frozen=True, slots=True)
class RenderedCatalogue:
    """What was written. `broken` holds the item_ids whose only photo cannot be used, with the kind of fault."""

    table: Path
    photos: Path
    items: int
    views: int  # photos the table names, the broken ones among them
    broken: dict[str, str]


def render_catalogue(folder: Path, *, items: int, seed: int, size: tuple[int, int] = _SIZE) -> RenderedCatalogue:
    """Write `catalogue.csv` and `photos/<item_id>-<view>.jpg` under folder; the same bytes for the same arguments.

    size: width and height of a photo in pixels. A fifth of the items have two or three photos; one item in 200 (four
    at least, from 40 items on) has a photo that is truncated, empty, a text, or missing.
    """
    photos = folder / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    views = [_views(seed, number) for number in range(items)]
    faults = _choose_faults(views, seed)
    rows = []
    for number, shown in enumerate(views):
        item_id = f"sku-{number:05d}"
        product = _product(seed, number)
        for position, view in enumerate(shown):
            _write(photos / f"{item_id}-{position}.jpg", _photo(product, view, size), faults.get(number))
        rows.append(_row(item_id, product, len(shown), seed, number))
    table = folder / "catalogue.csv"
    with table.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    broken = {f"sku-{number:05d}": fault for number, fault in sorted(faults.items())}
    return RenderedCatalogue(table, photos, items, sum(map(len, views)), broken)


def render_products(items: int, *, seed: int, size: tuple[int, int] = _SIZE) -> Iterator[tuple[Product, bytes]]:
    """Yield what each item is and the JPEG bytes of its first photo, as `render_catalogue` writes it, none broken."""
    for number in range(items):
        product = _product(seed, number)
        yield product, _photo(product, _views(seed, number)[0], size)


def render_photos(shown: Iterable[tuple[Product, View]], *, size: tuple[int, int] = _SIZE) -> Iterator[bytes]:
    """Yield the JPEG bytes of each product in its view, as `render_catalogue` would write them."""
    for product, view in shown:
        yield _photo(product, view, size)


def choose_designs(count: int, *, seed: int) -> list[Product]:
    """Return products of which no two share category, colour and pattern; the same for the same arguments.

    Drawn like the catalogue's items, but not of the one colour (purple) that shade carries from dark to light: its
    pattern would turn over with it. Angle, shade and width are the middle of what the catalogue has, the same for all.
    Raises InputError for more designs than there are.
    """
    colours = [colour for colour in COLOURS if len({is_light(colour, shade) for shade in _SHADES}) == 1]
    most = len(GARMENTS) * len(colours) * len(PATTERNS)
    if count > most:
        raise InputError(f"{count} designs are asked for and there are {most}; ask for fewer")
    generator = np.random.default_rng(seed)
    found: dict[Product, None] = {}
    while len(found) < count:
        product = _design(generator)
        if product.colour in colours:
            found[product] = None
    return list(found)


def showings(product: Product, nuisance: str, generator: np.random.Generator) -> list[tuple[Product, View]]:
    """Return SHOWINGS photos to take of a product that differ in one of NUISANCES alone, as the catalogue's items do.

    A number is drawn anew for each; of view there is each kind once: as it stands, mirrored, from near, turned. Raises
    InputError for another nuisance.
    """
    if nuisance == "view":
        return [(product, view) for view in _all_views(generator, View().backdrop)]
    if nuisance not in _VARIED:
        raise InputError(f"nuisance {nuisance!r} is not one of {', '.join(NUISANCES)}")
    return [(_VARIED[nuisance](product, generator), View()) for _ in range(SHOWINGS)]


def _photo(product: Product, view: View, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    draw_product(product, view, size=size).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def _product(seed: int, number: int) -> Product:
    generator = np.random.default_rng([seed, number, 0])
    product = _design(generator)
    for vary in _VARIED.values():
        product = vary(product, generator)
    return product


def _design(generator: np.random.Generator) -> Product:
    """Return a product of a random category, colour and pattern, in the middle of the rest."""
    return Product(
        category=list(GARMENTS)[generator.integers(len(GARMENTS))],
        colour=list(COLOURS)[generator.integers(len(COLOURS))],
        pattern=PATTERNS[0] if generator.random() < 0.4 else PATTERNS[1 + generator.integers(len(PATTERNS) - 1)],
        angle=0.0,
        shade=sum(_SHADES) / 2,
        width=sum(_WIDTHS) / 2,
    )


def _views(seed: int, number: int) -> list[View]:
    generator = np.random.default_rng([seed, number, 1])
    backdrop = int(generator.integers(232, 252))
    first = View(shift=_shift(generator), backdrop=backdrop)
    if generator.random() >= _SEVERAL_VIEWS:
        return [first]
    others = _other_views(generator, backdrop)
    chosen = generator.permutation(len(others))[: generator.integers(1, 3)]
    return [first, *(others[other] for other in chosen)]


def _all_views(generator: np.random.Generator, backdrop: int) -> list[View]:
    return [View(shift=_shift(generator), backdrop=backdrop), *_other_views(generator, backdrop)]


def _other_views(generator: np.random.Generator, backdrop: int) -> list[View]:
    turn = float(generator.uniform(12, 24)) * (1 if generator.random() < 0.5 else -1)
    return [
        View(mirrored=True, shift=_shift(generator), backdrop=backdrop),
        View(zoom=float(generator.uniform(1.25, 1.5)), shift=_shift(generator), backdrop=backdrop),
        View(zoom=0.92, turn=turn, backdrop=backdrop),
    ]


def _shift(generator: np.random.Generator) -> tuple[float, float]:
    return float(generator.uniform(-0.03, 0.03)), float(generator.uniform(-0.03, 0.03))


def _choose_faults(views: list[list[View]], seed: int) -> dict[int, str]:
    """Return item number -> fault, among the items with one photo, so that all of such an item is unusable."""
    single = [number for number, shown in enumerate(views) if len(shown) == 1]
    count = min(len(views) // 10, max(len(_FAULTS), len(views) // 200))
    chosen = np.random.default_rng([seed, len(views)]).choice(single, size=min(count, len(single)), replace=False)
    return {int(number): _FAULTS[order % len(_FAULTS)] for order, number in enumerate(chosen)}


def _write(path: Path, photo: bytes, fault: str | None) -> None:
    if fault == "missing":
        path.unlink(missing_ok=True)  # of an earlier rendering
        return
    contents = {
        None: photo,
        "truncated": photo[: len(photo) * 2 // 5],
        "empty": b"",
        "text": b"This is no photo, though its name says so.\n",
    }
    path.write_bytes(contents[fault])


def _row(item_id: str, product: Product, views: int, seed: int, number: int) -> list[str]:
    names = [f"photos/{item_id}-{position}.jpg" for position in range(views)]
    price = _PRICES.get(product.category, 29.0) * np.random.default_rng([seed, number, 2]).uniform(0.6, 1.6)
    return [
        item_id,
        names[0] if views == 1 else json.dumps(names),
        product.category,
        product.colour,
        product.pattern,
        f"{product.angle:.1f}",
        f"{product.shade:.3f}",
        f"{product.width:.3f}",
        f"{price:.2f}",
    ]

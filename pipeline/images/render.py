"""Renders the demo's catalogue: product pictures whose neighbours can be judged by eye and by known attributes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .drawing import COLOURS, PATTERNS, Product, View, draw_product
from .garments import GARMENTS

COLUMNS = ("item_id", "image", "category", "colour", "pattern", "angle", "shade", "width", "price")

_SEVERAL_VIEWS = 0.2  # share of items with two or three photos
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


def render_catalogue(folder: Path, *, items: int, seed: int, size: tuple[int, int] = (240, 300)) -> RenderedCatalogue:
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


def render_products(items: int, *, seed: int, size: tuple[int, int] = (240, 300)) -> Iterator[tuple[Product, bytes]]:
    """Yield what each item is and the JPEG bytes of its first photo, as `render_catalogue` writes it, none broken."""
    for number in range(items):
        product = _product(seed, number)
        yield product, _photo(product, _views(seed, number)[0], size)


def _photo(product: Product, view: View, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    draw_product(product, view, size=size).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def _product(seed: int, number: int) -> Product:
    generator = np.random.default_rng([seed, number, 0])
    return Product(
        category=list(GARMENTS)[generator.integers(len(GARMENTS))],
        colour=list(COLOURS)[generator.integers(len(COLOURS))],
        pattern=PATTERNS[0] if generator.random() < 0.4 else PATTERNS[1 + generator.integers(len(PATTERNS) - 1)],
        angle=round(float(generator.normal(0, 4)), 1),
        shade=round(float(generator.uniform(0.86, 1.08)), 3),
        width=round(float(generator.uniform(0.86, 1.04)), 3),
    )


def _views(seed: int, number: int) -> list[View]:
    generator = np.random.default_rng([seed, number, 1])
    backdrop = int(generator.integers(232, 252))
    first = View(shift=_shift(generator), backdrop=backdrop)
    if generator.random() >= _SEVERAL_VIEWS:
        return [first]
    turn = float(generator.uniform(12, 24)) * (1 if generator.random() < 0.5 else -1)
    others = [
        View(mirrored=True, shift=_shift(generator), backdrop=backdrop),
        View(zoom=float(generator.uniform(1.25, 1.5)), shift=_shift(generator), backdrop=backdrop),
        View(zoom=0.92, turn=turn, backdrop=backdrop),
    ]
    chosen = generator.permutation(len(others))[: generator.integers(1, 3)]
    return [first, *(others[other] for other in chosen)]


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

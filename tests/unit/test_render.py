"""The demo's catalogue: repeatable, complete, broken only where it says so, and told apart by its pictures."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import PhotoRefused
from pipeline.images import ImagesConfig, decode
from pipeline.images.drawing import COLOURS, PATTERNS, Product, View, draw_product
from pipeline.images.garments import GARMENTS
from pipeline.images.render import COLUMNS, RenderedCatalogue, render_catalogue, render_products


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> RenderedCatalogue:
    return render_catalogue(tmp_path_factory.mktemp("catalogue"), items=120, seed=5)


def rows(catalogue: RenderedCatalogue) -> list[dict[str, str]]:
    with catalogue.table.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def names(row: dict[str, str]) -> list[str]:
    return json.loads(row["image"]) if row["image"].startswith("[") else [row["image"]]


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_table(rendered: RenderedCatalogue) -> None:
    table = rows(rendered)
    assert tuple(table[0]) == COLUMNS
    assert len({row["item_id"] for row in table}) == len(table) == rendered.items == 120
    assert {row["category"] for row in table} <= set(GARMENTS)
    assert {row["colour"] for row in table} == set(COLOURS)
    assert {row["pattern"] for row in table} == set(PATTERNS)
    assert all(float(row["price"]) > 0 for row in table)
    several = [row for row in table if len(names(row)) > 1]
    assert 0.1 < len(several) / len(table) < 0.3
    assert sum(len(names(row)) for row in table) == rendered.views


def test_products_alone_are_the_catalogues_items_and_first_photos(rendered: RenderedCatalogue) -> None:
    for row, (product, photo) in zip(rows(rendered), render_products(8, seed=5), strict=False):
        assert (product.category, product.colour, product.pattern) == (row["category"], row["colour"], row["pattern"])
        assert f"{product.angle:.1f} {product.width:.3f}" == f"{row['angle']} {row['width']}"
        if row["item_id"] not in rendered.broken:
            assert photo == (rendered.table.parent / names(row)[0]).read_bytes()


def test_every_photo_decodes_but_the_broken_ones(rendered: RenderedCatalogue) -> None:
    reasons = {}
    for row in rows(rendered):
        for name in names(row):
            try:
                decode((rendered.table.parent / name).read_bytes(), ImagesConfig(size=16))
            except FileNotFoundError:
                reasons[row["item_id"]] = "missing"
            except PhotoRefused as error:
                reasons[row["item_id"]] = error.reason
    told = {"truncated": "truncated", "empty": "empty", "text": "not_an_image", "missing": "missing"}
    assert reasons == {item_id: told[fault] for item_id, fault in rendered.broken.items()}
    assert set(rendered.broken.values()) == set(told)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, rendered: RenderedCatalogue) -> None:
    again = render_catalogue(tmp_path / "a", items=120, seed=5)
    assert digests(tmp_path / "a") == digests(rendered.table.parent)
    assert again.broken == rendered.broken
    render_catalogue(tmp_path / "b", items=120, seed=6)
    assert digests(tmp_path / "b")["catalogue.csv"] != digests(tmp_path / "a")["catalogue.csv"]


def test_a_longer_catalogue_begins_with_the_same_products(tmp_path: Path, rendered: RenderedCatalogue) -> None:
    shorter = rows(render_catalogue(tmp_path, items=10, seed=5))
    for short, long in zip(shorter, rows(rendered), strict=False):
        assert {**short, "image": ""} == {**long, "image": ""}


@pytest.mark.parametrize("items", [0, 1, 5])
def test_tiny_catalogues(tmp_path: Path, items: int) -> None:
    assert len(rows(render_catalogue(tmp_path, items=items, seed=0))) == items


def silhouette(category: str, **factors: float) -> np.ndarray:
    product = Product(category, "black", "plain", factors.get("angle", 0), 1, factors.get("width", 1))
    picture = draw_product(product, View(), size=(96, 120)).convert("L")
    return np.asarray(picture) < 150


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / (first | second).sum())


def test_silhouettes_differ_more_between_categories_than_within() -> None:
    plain = {category: silhouette(category) for category in GARMENTS}
    for category, shape in plain.items():
        same = overlap(shape, silhouette(category, angle=4, width=0.9))
        others = max(overlap(shape, other) for name, other in plain.items() if name != category)
        assert same > others, category
        assert 0.08 < shape.mean() < 0.6, category


def test_colours_and_patterns_are_told_apart() -> None:
    def pixels(colour: str, pattern: str) -> np.ndarray:
        drawn = draw_product(Product("t-shirt", colour, pattern, 0, 1, 1), View(), size=(96, 120))
        return np.asarray(drawn)[45:85, 30:66].astype(int)

    means = np.array([pixels(colour, "plain").mean((0, 1)) for colour in COLOURS])
    apart = np.abs(means[:, None] - means[None]).max(-1) + 255 * np.eye(len(means))
    assert apart.min() > 25
    drawn = [pixels("blue", pattern) for pattern in PATTERNS]
    for index, first in enumerate(drawn):
        for second in drawn[index + 1 :]:
            assert np.abs(first - second).mean() > 15


def test_views_show_the_same_product_otherwise() -> None:
    product = Product("boot", "red", "plain", 0, 1, 1)
    plain = np.asarray(draw_product(product, View(), size=(96, 120))).astype(int)
    mirrored = np.asarray(draw_product(product, View(mirrored=True), size=(96, 120))).astype(int)
    assert np.abs(plain[:, ::-1] - mirrored).mean() < np.abs(plain - mirrored).mean() / 2
    zoomed = np.asarray(draw_product(product, View(zoom=1.5), size=(96, 120))).astype(int)
    assert (zoomed[..., 1] < 100).sum() > 1.5 * (plain[..., 1] < 100).sum()


def test_an_unknown_pattern_is_an_error() -> None:
    with pytest.raises(ValueError, match="'tartan' is not one of plain"):
        draw_product(Product("bag", "red", "tartan", 0, 1, 1), View(), size=(20, 20))

"""The page: well-formed, escaped, self-contained, repeatable, readable in both colour schemes."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.report import NeighbourRow, Picture, ReportData, render_page

HOSTILE = "</figcaption><script>alert('x')</script>\"'&{{ 7 * 7 }}"


def picture(level: int, caption: str = "sku-1", detail: str = "", same: bool | None = None) -> Picture:
    pixels = np.full((16, 16, 3), (level, 90, 160), np.uint8)
    return Picture(pixels, caption, detail, same)


def full() -> ReportData:
    neighbours = [picture(10 * k, f"sku-{k}", f"hat, 0.{k}", k % 2 == 0) for k in range(10)]
    return ReportData(
        title="Release of run 2026-06-01",
        facts=[("model", "vae, 64 dimensions"), ("photos", "2,490")],
        neighbours=[NeighbourRow(picture(200, "query-1", "hat"), neighbours)],
    )


def test_everything_is_shown(read_page: Any) -> None:
    page = read_page(render_page(full()))
    for text in ("Release of run 2026-06-01", "vae, 64 dimensions", "2,490", "query-1", "sku-3", "hat, 0.3"):
        assert text in page.text, text
    assert len(page.all("img")) == 1 + 10
    assert page.text.count("same category:") == 5


def test_pictures_decode_to_their_pixels_in_order(read_page: Any) -> None:
    data = full()
    sources = [attributes["src"] or "" for attributes in read_page(render_page(data)).all("img")]
    given = [data.neighbours[0].query, *data.neighbours[0].neighbours]
    for source, wanted in zip(sources, given, strict=True):
        kind, _, encoded = source.partition(";base64,")
        assert kind == "data:image/jpeg"
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded, validate=True))))
        assert np.abs(shown.astype(int) - wanted.pixels).max() <= 3


def test_hostile_words_are_only_words(read_page: Any) -> None:
    data = replace(
        full(),
        title=HOSTILE,
        facts=[(HOSTILE, HOSTILE)],
        neighbours=[NeighbourRow(picture(1, HOSTILE, HOSTILE), [picture(2, HOSTILE, HOSTILE, same=True)])],
    )
    page = read_page(render_page(data))
    assert not page.all("script")
    assert page.text.count(HOSTILE) == 1 + 1 + 2 + 4  # title twice: in the head and as heading
    assert all(HOSTILE in (attributes["alt"] or "") for attributes in page.all("img")[:2])
    hostile_free = {tag for tag, _ in read_page(render_page(full())).elements}
    assert {tag for tag, _ in page.elements} <= hostile_free


def test_nothing_is_fetched(read_page: Any) -> None:
    data = render_page(full())
    page = read_page(data)
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
    assert not re.search(rb"https?://|url\(|@import|//cdn", data)
    assert not page.all("script")
    assert not page.all("link")


def test_bytes_repeat() -> None:
    assert render_page(full()) == render_page(full())


def test_empty_sections_are_left_out(read_page: Any) -> None:
    bare = read_page(render_page(ReportData("nothing yet")))
    assert not bare.all("h2")
    assert not bare.all("dl")
    assert not read_page(render_page(replace(full(), neighbours=[]))).all("h2")


def test_without_known_categories_nothing_is_marked(read_page: Any) -> None:
    row = NeighbourRow(picture(1), [picture(2)])
    page = read_page(render_page(replace(full(), neighbours=[row])))
    assert "✓" not in page.text


def test_page_is_accessible(read_page: Any) -> None:
    page = read_page(render_page(full()))
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1
    assert all(attributes.get("alt") for attributes in page.all("img"))
    assert all(attributes.get("scope") in {"col", "row"} for attributes in page.all("th"))
    labels = {attributes["aria-labelledby"] for attributes in page.all("section")}
    assert labels == {attributes["id"] for attributes in page.all("h2")}
    assert any(attributes.get("name") == "viewport" for attributes in page.all("meta"))


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2."""
    channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_sufficient_in_both_schemes() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    schemes = re.findall(r":root \{([^}]*--page[^}]*)\}", render_page(full()).decode())
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", scheme))
        pairs = [("text", "page"), ("text", "card"), ("quiet", "card"), ("quiet", "page"), ("good", "good-tint"),
                 ("bad", "bad-tint"), ("good", "card"), ("accent", "card")]  # fmt: skip
        for ink, ground in pairs:
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)


@pytest.mark.parametrize(
    "pixels", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)], ids=str
)
def test_pixels_of_another_kind_are_an_error(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"'sku-7' .*takes uint8"):
        render_page(ReportData("wrong", neighbours=[NeighbourRow(Picture(pixels, "sku-7"), [picture(1)])]))

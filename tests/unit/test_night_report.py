"""The report of a release: well-formed, escaped, self-contained, bounded, accessible; what it says of two releases."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from pipeline.quality.release_page.plane import _directions
from pipeline.quality.release_page.verdict import sentence
from pipeline.report import NightReport, drawing, render_night
from pipeline.report.drawing import COLOURS, LIMIT
from pipeline.report.night import (
    Card,
    ChangeGroup,
    CodeCard,
    CodeLevel,
    Compared,
    Dot,
    MeasureLine,
    Neighbourhood,
    PictureShelf,
    Plane,
    Refusals,
    Stage,
    Task,
    VerdictLine,
    plain,
)
from pipeline.report.trends import Curve, Point
from pipeline.storage import open_store

HOSTILE = "</figcaption><script>alert('x')</script>\"' onload=1 &{{ 7 * 7 }}\u2028<!-- é 鞋"


def pixels(level: int, size: int = 16) -> np.ndarray:
    return np.full((size, size, 3), (level, 90, 160), np.uint8)


def card(name: str = "sku-1", **more: Any) -> Card:
    return Card(name, **{"words": "hat, 0.9", "pixels": pixels(len(name))} | more)


def full(word: str = "sku-1", size: int = 16) -> NightReport:
    """Return a report with every section; `word` is wherever a catalogue's, a model's or a person's text may be."""
    line = MeasureLine("photo_recall", word, 0.91, 0.9, 0.92, 0.93, 1000, [card(word)])
    points = [Point(word, value, f"{value}") for value in (0.5, 0.75, None, 1.0)]
    picture = pixels(1, size)
    code = CodeCard(3, 0.02, 0.2, word, 2.5, picture, picture)
    return NightReport(
        title=word,
        sentence=word,
        passed=False,
        beside=word,
        facts=[(word, word)],
        verdicts=[VerdictLine(word, word, 0.5, 0.9, 0.95, 0.01, False, None, word, [card(word)])],
        changes=[ChangeGroup(word, 2, 1, [card(word), card(word, pixels=None)]), ChangeGroup("removed", 0, 0)],
        measures=[replace(line, category=None), line],
        neighbourhoods=[
            Neighbourhood(
                word,
                word,
                [
                    Compared(card(word), [card(word, mark="new", same=True)], [card("other", mark="gone")], word),
                    Compared(card(word), [card(word)], None),
                ],
            )
        ],
        reconstructions=[(card(word), card(word))],
        levels=[CodeLevel(word, 8, 2, 1.9, 100, [0.6, 0.4], [(word, [code])])],
        shelves=[PictureShelf(word, 5, word, [card(word)])],
        plane=Plane([Dot(f"{word}{n}", word, n / 5, n / 5, n < 2, picture) for n in range(5)], 0.4, 900),
        hubs=[replace(line, name=word)],
        curves=[Curve(word, points)],
        training=[Curve(word, points)],
        stages=[Stage("index", 3.5, 900.0, 0.1), Stage(word, 0.0)],
        price=2.0,
        refused=[Refusals(word, word, word, 4, 1, [(card(word), word), (card(word, pixels=None), word)])],
        tomorrow=[Task(word, 3, word)],
        left_out=[(word, word)],
    )


SECTIONS = ["gates", "changes", "measures", "neighbours", "hubs", "reconstructions", "codes", "shelves", "map",
            "curves", "training", "stages", "quarantine", "tomorrow", "about"]  # fmt: skip


def test_every_section_is_there_and_reachable_in_order(read_page: Any) -> None:
    page = read_page(render_night(full()))
    assert [each["id"] for each in page.all("h2")] == SECTIONS
    assert [each["href"] for each in page.all("a") if each.get("href") in {f"#{name}" for name in SECTIONS}] == [
        f"#{name}" for name in SECTIONS
    ]
    bare = read_page(render_night(NightReport("t", "s", None, None)))
    assert not bare.all("h2"), "an empty section leaves no heading"


def test_page_is_accessible(read_page: Any) -> None:
    page = read_page(render_night(full()))
    assert page.all("html") == [{"lang": "en"}]
    for landmark in ("header", "nav", "main", "footer", "h1"):
        assert len(page.all(landmark)) == 1, landmark
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels
    assert page.all("img")
    assert all(each.get("alt") and each.get("width") and each.get("height") for each in page.all("img"))
    assert all(each.get("scope") in {"col", "row"} for each in page.all("th"))
    ids = [each["id"] for _, each in page.elements if each.get("id")]
    assert len(ids) == len(set(ids))
    assert {each["aria-labelledby"] for each in page.all("section")} == set(SECTIONS)
    drawn = [each for each in page.all("svg") if each.get("role") == "img"]
    assert drawn
    assert all(each.get("aria-label") for each in drawn)
    assert all(each.get("role") == "img" or each.get("aria-hidden") == "true" for each in page.all("svg"))
    scrolled = [each for each in page.all("div") if each.get("class") == "scroll"]
    assert scrolled
    assert all(each.get("tabindex") == "0" and each.get("aria-label") for each in scrolled)
    assert sum(each.get("tabindex") == "0" for each in page.all("li")) == 2, "the keyboard stops where it is told to"
    assert b"@media print" in render_night(full())
    assert b":focus-visible" in render_night(full())


def test_nothing_is_fetched_and_no_script_runs(read_page: Any) -> None:
    data = render_night(full())
    page = read_page(data)
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/jpeg;base64,", "#")), (tag, name, value)
    assert not re.search(rb"https?://|@import|//cdn|url\((?!data:image/jpeg;base64,)", data)
    assert not {"script", "link", "iframe", "object", "form", "base"} & {tag for tag, _ in page.elements}
    policy = next(each for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in (policy["content"] or "")


def test_hostile_words_are_only_words(read_page: Any) -> None:
    hostile, harmless = read_page(render_night(full(HOSTILE))), read_page(render_night(full("harmless")))
    words = " ".join(HOSTILE.split())
    assert hostile.text.count(words) == harmless.text.count("harmless") > 40
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in harmless.elements]
    assert [set(each) for _, each in hostile.elements] == [set(each) for _, each in harmless.elements]
    names = render_night(full("max_drop.<i>x_y"))
    assert b"max_<wbr>drop.<wbr>&lt;i&gt;x_<wbr>y" in names
    assert not read_page(names).all("i")
    # The negative control: the check sees a page that does not escape.
    broken = render_night(full("harmless")).replace(b">harmless<", b"><script>alert(1)</script><", 1)
    assert read_page(broken).all("script")


def test_bytes_repeat_and_stay_below_the_limit(read_page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LIMIT == 5_000_000
    assert render_night(full()) == render_night(full())
    monkeypatch.setattr(drawing, "LIMIT", 400_000)
    noise = np.random.default_rng(0).integers(0, 256, (60, 96, 96, 3), np.uint8)
    cards = [Card(f"sku-{number}", "", picture) for number, picture in enumerate(noise)]
    small, large = (
        render_night(replace(full(), changes=[ChangeGroup("added", 1, 1, held)])) for held in (cards[:10], cards)
    )
    assert len(large) < 400_000
    widths = [max(int(each["width"] or 0) for each in read_page(page).all("img")) for page in (small, large)]
    assert widths[0] == 96 > widths[1], "more pictures than there is room for become smaller"


def test_plain_values_hold_all_but_the_pixels() -> None:
    found = plain(full())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["neighbourhoods"][0]["rows"][0]["now"][0]["item_id"] == "sku-1"
    assert plain([float("nan"), np.float64(2.0)]) == [None, 2.0]

    def arrays(value: Any) -> Iterator[Any]:
        if isinstance(value, np.ndarray):
            yield value
        for held in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from arrays(held)

    assert not list(arrays(found))
    assert {each.name for each in fields(NightReport)} == set(found)
    assert is_dataclass(full().measures[0])


def test_the_sentence_names_what_decided() -> None:
    kept = VerdictLine("min_items", None, 900.0, 1.0, None, None, True)
    close = VerdictLine("max_quarantine", None, 0.198, 0.2, None, None, True)
    fell = VerdictLine("max_drop.photo_recall", "Shoes", 0.80, 0.02, 0.90, 0.01, False)
    assert sentence([kept]) == "Passed: all 1 gates kept their limits."
    assert "Closest to its limit: max_quarantine found 0.198, its limit is 0.2." in sentence([kept, close])
    refused = sentence([fell, kept])
    assert refused.startswith("Refused by 1 of 2 gates: max_drop.photo_recall of Shoes fell by 0.1 to 0.8")
    let = sentence([replace(fell, allowed="ana: a new camera"), kept])
    assert let.startswith("Passed, with 1 of 2 gates let pass once.")
    assert "let pass this once: ana: a new camera" in let
    assert sentence([]) == "No gates are recorded of this release."


def test_directions_are_those_of_most_variance() -> None:
    rows = np.random.default_rng(1).normal(size=(200, 5)) * [1, 9, 2, 5, 1] + 7
    middle, axes, explained = _directions(rows)
    _, singular, right = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(middle, rows.mean(axis=0))
    np.testing.assert_allclose(np.abs(axes.T @ right[:2].T), np.eye(2), atol=1e-9)
    assert explained == pytest.approx((singular[:2] ** 2).sum() / (singular**2).sum())
    assert all(axes[np.abs(axes[:, column]).argmax(), column] > 0 for column in range(2))


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2."""
    channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_stand_out_on_both_grounds() -> None:
    schemes = re.findall(r":root \{([^}]*--page[^}]*)\}", render_night(full()).decode())
    light, dark, printed = (dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", scheme)) for scheme in schemes)
    for scheme in (light, dark):
        for ink, ground in [("warn", "warn-tint"), ("bad", "bad-tint"), ("bad", "card"), ("accent", "page")]:
            assert contrast(scheme[ink], scheme[ground]) >= 4.5, (ink, ground)
    assert contrast(printed["quiet"], printed["page"]) >= 4.5
    for on_light, on_dark in COLOURS:
        assert contrast(on_light, light["page"]) >= 3
        assert contrast(on_dark, dark["page"]) >= 3


def command(*words: str, expect: int = 0) -> dict[str, Any]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*words, "--json"])
    assert code == expect, err.getvalue()
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


@pytest.fixture
def nights(tmp_path: Path, maker: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[Any]]:
    """Three releases; names and categories are hostile, the second has other neighbours, the third lacks two items."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = open_store(str(tmp_path / "store"))
    photos = [replace(photo, item_id=f"{photo.item_id}{HOSTILE}") for photo in maker.some_photos(30, most=2)]
    photos = [replace(photo, category=photo.category and f"{photo.category}{HOSTILE}") for photo in photos]
    moved = [replace(photo, mean=photo.mean * np.float32([1, 1, 1, 0, -1, 3])) for photo in photos]
    ids = sorted({photo.item_id for photo in photos})
    fewer = [photo for photo in moved if photo.item_id not in ids[:2]]
    refused = [(ids[0], "s3://photos/0/0.jpg", "fetch", "missing"), (ids[1], "s3://photos/1/0.jpg", "decode", "broken")]
    made = [maker.make_release(store, photos, run="one")]
    made.append(maker.make_release(store, moved, run="two", parent=made[0].release_id))
    made.append(maker.make_release(store, fewer, run="three", parent=made[1].release_id, refused=refused))
    return tmp_path, made


def test_neighbours_of_both_releases_are_those_of_brute_force(nights: tuple[Path, list[Any]], maker: Any) -> None:
    folder, made = nights
    found = command("report", made[1].release_id, "--category", "category", f"store={folder / 'store'}")["report"]
    assert found["release"] == made[1].release_id
    assert found["other"] == made[0].release_id
    titles = [group["title"] for group in found["neighbourhoods"]]
    assert titles == ["Random items", "Worst items", "Most moved items"], "nothing is new"
    for group in found["neighbourhoods"]:
        for row in group["rows"]:
            key = row["query"]["item_id"]
            for side, release in (("now", made[1]), ("before", made[0])):
                expected = [
                    name for name, _ in maker.brute_force(release, "cosine", release.means(key), 8, left_out=[key])
                ]
                assert [near["item_id"] for near in row[side]] == expected
            now, before = ([near["item_id"] for near in row[side]] for side in ("now", "before"))
            assert [near["mark"] == "new" for near in row["now"]] == [each not in before for each in now]
            assert [near["mark"] == "gone" for near in row["before"]] == [each not in now for each in before]
    assert [name for name, _ in found["left_out"] if "draws" in name] == ["What the model draws"]


def test_any_pair_is_compared_and_the_later_is_shown(nights: tuple[Path, list[Any]]) -> None:
    folder, made = nights
    where = f"store={folder / 'store'}"
    first, second = (
        command("report", *pair, where)["report"]
        for pair in ((made[0].release_id, made[2].release_id), (made[2].release_id, made[0].release_id))
    )
    assert first == second
    assert first["release"] == made[2].release_id
    changes = {group["name"]: (group["photos"], group["items"]) for group in first["changes"]}
    lacking = {photo.item_id for photo in made[0].photos} - {photo.item_id for photo in made[2].photos}
    photos = sum(photo.item_id in lacking for photo in made[0].photos)
    assert changes["removed"] == (photos, 2)
    assert changes["quarantined"] == (2, 2)
    assert changes["added"] == changes["returned"] == (0, 0)
    tasks = {task["name"]: task["count"] for task in first["tomorrow"]}
    assert tasks["asked for again"] == 1
    assert tasks["not asked for again"] == 1
    assert (
        "is the first" in dict(command("report", made[0].release_id, where)["report"]["left_out"])["The other release"]
    )
    assert "named twice" in command("report", made[0].release_id, made[0].release_id, where, expect=2)["error"]
    assert "no release" in command("report", "nothing-0123456789ab", where, expect=3)["error"]


def test_files_hold_what_the_page_shows(read_page: Any, nights: tuple[Path, list[Any]]) -> None:
    folder, made = nights
    where = f"store={folder / 'store'}"
    found = command("report", where, "--to", str(folder / "out"), "--price", "4")  # the channel's current one
    assert found["release"] == made[2].release_id
    page = read_page((folder / "out" / "report.html").read_bytes())
    assert not page.all("script")
    assert " ".join(HOSTILE.split()) in page.text
    stored = json.loads((folder / "out" / "report.json").read_bytes())
    assert stored == found["report"]
    near = pq.read_table(folder / "out" / "neighbours.parquet")
    rows = [row for group in stored["neighbourhoods"] for row in group["rows"]]
    assert near.num_rows == sum(len(row["now"]) + len(row["before"] or ()) for row in rows)
    assert near.schema.field("rank").type == pa.int64()
    again = command("report", where, "--price", "4", "--to", str(folder / "again.html"))
    assert Path(again["files"][0]).read_bytes() == (folder / "out" / "report.html").read_bytes()
    for target, told in (("again.html", "there"), ("x.pdf", "ends in .pdf"), ("out", "already")):
        assert told in command("report", where, "--to", str(folder / target), expect=2)["error"]

"""`codebooks history`: what releases measured, as a table, as columns and as curves."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from jobs.__main__ import main
from pipeline.release import publish, write_release
from pipeline.report.trends import HEIGHT, Curve, Point
from pipeline.storage import Store, open_store

# Model, items, recall (None: not measured) of one night after the other.
NIGHTS: Sequence[tuple[str, int, float | None]] = (
    ("m1", 1000, 0.96), ("m1", 1100, None), ("m2", 1200, 0.94), ("m2", 900, 0.98),
)  # fmt: skip
EXPIRED = 2  # of the nights, whose manifest is gone


def publish_night(store: Store, number: int, model: str, items: int, recall: float | None) -> None:
    name = f"night{number}-0123456789ab"
    written = write_release(
        store, release_id=name,
        files=dict.fromkeys(("items", "quarantine", "changes"), (b"x", ".parquet", 1)), parts=(),
        release_key="0" * 64, run=f"night{number}", attempt=1, parent=None, model_id=model, model_kind="vae",
        latent_dim=3, transform_id="t", metric="l2", index_kind="flat", code_version="0",
        counts={"items": items, "removed": 0}, measures={} if recall is None else {"recall": recall, "hubness": 1.5},
        config={"gates": {"min_recall": 0.95, "max_removed": None}},
    )  # fmt: skip
    publish(
        store, "stable", expected_head=number, release_id=name, manifest_sha256=written.manifest_sha256,
        run=f"night{number}", attempt=1,
    )  # fmt: skip


@pytest.fixture
def nights(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path / "store"))
    for number, night in enumerate(NIGHTS):
        publish_night(store, number, *night)
    return store


def test_every_release_with_its_counts_measures_and_gates(nights: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", f"store={nights.url}", "--json"]) == 0
    taken = capsys.readouterr()
    rows = json.loads(taken.out)["releases"]
    assert [(row["counts"]["items"], row["measures"].get("recall")) for row in rows] == [n[1:] for n in NIGHTS]
    assert [row["bundle_changed"] for row in rows] == [False, False, True, False]
    assert [row["current"] for row in rows] == [False, False, False, True]
    assert [[gate["passed"] for gate in row["gates"]] for row in rows] == [[True], [], [False], [True]]
    lines = taken.err.splitlines()
    words = {line.split()[0]: line.split()[1:] for line in lines[2:] if line}
    assert lines[1].split() == ["1", "2", "!3", "*4"]
    assert words["items"] == ["1,000", "1,100", "1,200", "900"]
    assert words["recall"] == ["0.96", "-", "0.94", "0.98"]
    assert words["verdict"] == ["passed"] * 4


def test_an_expired_release_keeps_its_column_and_hides_no_change(
    nights: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    nights.delete(f"releases/night{EXPIRED}-0123456789ab/manifest.json")
    assert main(["history", f"store={nights.url}", "--json"]) == 0
    taken = capsys.readouterr()
    rows = json.loads(taken.out)["releases"]
    assert [row["expired"] for row in rows] == [False, False, True, False]
    assert [row["bundle_changed"] for row in rows] == [False, False, False, True]
    assert (rows[EXPIRED]["counts"], rows[EXPIRED]["verdict"]) == ({}, None)
    assert "night2-0123456789ab" in taken.err
    assert main(["history", f"store={nights.url}", "--last", "2", "--json"]) == 0
    taken = capsys.readouterr()
    assert [row["number"] for row in json.loads(taken.out)["releases"]] == [3, 4]
    assert "2 older entries are left out" in taken.err


def test_the_same_columns_as_parquet_and_csv(nights: Store, tmp_path: Path) -> None:
    files = [tmp_path / "history.parquet", tmp_path / "history.csv"]
    for file in files:
        assert main(["history", f"store={nights.url}", "--to", str(file)]) == 0
    table = pq.read_table(files[0])
    assert table["count_items"].to_pylist() == [items for _, items, _ in NIGHTS]
    assert table["measure_recall"].to_pylist() == [recall for _, _, recall in NIGHTS]
    assert table["model_id"].to_pylist() == [model for model, _, _ in NIGHTS]
    assert table["limit_min_recall"].to_pylist() == [0.95, None, 0.95, 0.95]
    again = csv.read_csv(io.BytesIO(files[1].read_bytes()))
    assert again.column_names == table.column_names
    assert again["measure_recall"].to_pylist() == table["measure_recall"].to_pylist()


class Seen(HTMLParser):
    """Counts the tags of a page and keeps the words for screen readers."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.labels: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag == "svg":
            self.labels.append(dict(attrs)["aria-label"])


def test_the_page_has_a_curve_and_a_table_for_each(nights: Store, tmp_path: Path) -> None:
    page = tmp_path / "history.html"
    assert main(["history", f"store={nights.url}", "--to", str(page)]) == 0
    text = page.read_text()
    seen = Seen(text)
    assert (seen.tags.count("svg"), seen.tags.count("table")) == (4, 5)  # a table of the entries too
    assert seen.tags.count("line") == 4  # the new bundle, on each
    assert "items (count) over 4 releases" in seen.labels[0]
    assert "smallest 900, largest 1,200" in seen.labels[0]
    assert not {"script", "link", "img"} & set(seen.tags)
    assert not re.search(r"(src|href)=", text)


def test_a_curve_lies_where_its_values_do() -> None:
    values = [1.0, 3.0, None, 2.0, 2.0]
    curve = Curve("x", [Point(str(at), value, str(value)) for at, value in enumerate(values)])
    top, bottom = 18, HEIGHT - 18
    assert [one.y for one in curve.placed()] == [bottom, top, None, (top + bottom) / 2, (top + bottom) / 2]
    xs = [one.x for one in curve.placed()]
    assert xs == sorted(xs)
    assert [len(points.split()) for points in curve.lines()] == [2, 2]  # nothing is drawn across the gap
    flat = Curve("x", [Point("a", 5.0, "5")])
    assert [one.y for one in flat.placed()] == [(top + bottom) / 2]


def test_what_cannot_be_told_is_said(nights: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = tmp_path / "there.csv"
    taken.write_text("mine")
    for words, why in (
        (["--last", "0"], "--last is 0"),
        (["--to", str(tmp_path / "history.xlsx")], ".html, .parquet, .csv"),
        (["--to", str(taken)], "is there already"),
        (["--to", str(tmp_path / "no" / "history.csv")], "is no folder"),
    ):
        assert main(["history", f"store={nights.url}", *words, "--json"]) == 2
        assert why in json.loads(capsys.readouterr().out)["error"]
    assert taken.read_text() == "mine"
    assert main(["history", f"store={nights.url}", "--channel", "canary", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["releases"] == []

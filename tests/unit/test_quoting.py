"""Quotes in tables of text: nothing is swallowed, and whatever is read in another way than it stands is counted."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path
from typing import Any

import pytest

from pipeline.catalogue import CatalogueConfig, catalogue_notes, read_photos
from pipeline.catalogue import csv as csv_source
from pipeline.errors import InputError
from pipeline.storage import Files

HEADER = "item_id,title,image\n"


def read(folder: Path, text: str, name: str = "c.csv", **settings: Any) -> Any:
    path = folder / name
    path.write_bytes(text.encode())
    return read_photos(CatalogueConfig(source=str(path), **settings), Files())


def counted(photos: Any) -> dict[str, tuple[int, str]]:
    return {what: (found.number, found.where) for what, found in catalogue_notes(photos).counted.items()}


def refusal(folder: Path, text: str, name: str = "c.csv", **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(folder, text, name, **settings)
    return str(caught.value)


def forty(opened: int, closed: int | None, delimiter: str) -> str:
    """Forty rows; a quote opens the title of one and, unless None, ends the title of another."""
    rows = [[f"sku{n:02}", f"Thing {n}", f"{n}.jpg"] for n in range(40)]
    rows[opened][1] = '"' + rows[opened][1]
    if closed is not None:
        rows[closed][1] += '"'
    return "".join(delimiter.join(row) + "\n" for row in [["item_id", "title", "image"], *rows])


@pytest.mark.parametrize("closed", [8, 19, 39, None])
def test_tab_separated_quotes_are_text_and_no_row_is_lost(tmp_path: Path, closed: int | None) -> None:
    photos = read(tmp_path, forty(7, closed, "\t"), "c.tsv")
    assert photos["item_id"].to_pylist() == [f"sku{n:02}" for n in range(40)]
    assert photos["title"][7].as_py() == '"Thing 7'
    assert counted(photos) == {}


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
@pytest.mark.parametrize(
    ("closed", "lines"),
    [(8, "lines 9 to 10 are one row"), (19, "lines 9 to 21 are one row"), (None, "line 9: the quote")],
)
def test_a_quote_that_would_swallow_rows_is_refused_by_line(
    tmp_path: Path, delimiter: str, closed: int | None, lines: str
) -> None:
    text = forty(7, closed, delimiter)
    said = refusal(tmp_path, text)
    assert f"{tmp_path}/c.csv {lines}" in said
    assert "Thing 7" in said
    assert "catalogue.quoting: none" in said
    assert read(tmp_path, text, quoting="none").num_rows == 40
    if closed is not None:  # whoever says so gets the one long cell, and is told of it
        photos = read(tmp_path, text, quoting="minimal")
        assert photos.num_rows == 40 - (closed - 7)
        spans = closed - 7 + 1
        where = f"the longest {spans} lines, from line 9 of {tmp_path}/c.csv"
        assert counted(photos) == {"rows that span several lines": (1, where)}


def test_prose_of_several_lines_is_read_and_its_longest_row_is_named(tmp_path: Path) -> None:
    rows = [["a", "Red, blue, green\nSmall, medium, large", "a.jpg"], ["b", "one\n\n\nfour", "b.jpg"], ["c", "x", "c"]]
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows([["item_id", "title", "image"], *rows])
    photos = read(tmp_path, out.getvalue())
    assert photos["title"].to_pylist() == [row[1] for row in rows]
    assert counted(photos) == {
        "rows that span several lines": (2, f"the longest 4 lines, from line 4 of {tmp_path}/c.csv")
    }


def test_a_quote_within_a_cell_is_text_and_what_follows_a_closing_one_is_counted(tmp_path: Path) -> None:
    photos = read(tmp_path, HEADER + 'a,5" cable,a.jpg\nb,"15" screen,b.jpg\nc,"2"" plug",c.jpg\nd,"" x,d.jpg\n')
    assert photos["title"].to_pylist() == ['5" cable', "15 screen", '2" plug', "x"]
    what = "cells that go on after their closing quote, read without the quotes"
    assert counted(photos) == {what: (2, f"line 3 of {tmp_path}/c.csv")}


def test_rows_of_empty_cells_are_passed_over_and_counted_but_a_row_without_a_key_is_refused(tmp_path: Path) -> None:
    photos = read(tmp_path, HEADER + "a,x,a.jpg\n,,\n,\n , ,\nb,y,b.jpg\n" + ',"",\n', attributes=())
    assert photos["item_id"].to_pylist() == ["a", "b"]
    assert counted(photos) == {"rows of empty cells only": (4, f"after line 2 of {tmp_path}/c.csv")}
    # The column `title` is not read, but it says that something is there.
    assert "1 row(s) have a null or empty key: row 2" in refusal(tmp_path, HEADER + "a,x,a.jpg\n,y,\n", attributes=())


def test_ragged_rows_are_all_counted_and_the_first_shown_with_their_lines(tmp_path: Path) -> None:
    text = HEADER + 'a,"two\nlines",a.jpg\n\n' + "".join(f"{n},x\n" for n in range(9))
    said = refusal(tmp_path, text)
    assert all(f"line {n + 5} has 2 ('{n},x')" in said for n in range(5))
    assert "and 4 more" in said
    assert "line 10" not in said


def test_a_record_without_an_end_is_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.catalogue.records.LONGEST_BYTES", 200)
    monkeypatch.setattr(csv_source, "_BLOCK_BYTES", 100)
    text = HEADER + 'a,"x,1.jpg\n' + "b,y y,2.jpg\n" * 100
    assert "line 2: the quote before 'x,1.jpg' is not closed within" in refusal(tmp_path, text)


CELLS = ["a", 'b"c', '"q"', '"x,y"', '"l\nm"', '"d""e"', "", '""', '"', " p ", '"z" t', '"l\r\nm"', '"m,n,o\np,q,r"']


@pytest.mark.parametrize("quoting", ["auto", "minimal", "none"])
def test_blocks_of_any_size_give_the_same_rows_and_they_are_those_of_another_reader(
    tmp_path: Path, quoting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = random.Random(11)
    find, whole = csv_source.find_dialect, [b""]
    monkeypatch.setattr(csv_source, "find_dialect", lambda _, config, file: find(whole[0], config, file))
    compared = 0
    for _ in range(60):
        end = choose.choice(["\n", "\r\n", "\r"])
        lines = [",".join(choose.choice(CELLS) for _ in range(3)) for _ in range(choose.randint(1, 10))]
        lines.insert(choose.randint(0, len(lines)), choose.choice(["", " ", ",,", "a,b,c"]))
        text = end.join(["item_id,image,x", *lines]) + choose.choice(["", end])
        whole[0] = text.encode()
        config: dict[str, Any] = {"rows": "photo", "quoting": quoting, "delimiter": ","}
        seen = []
        for size in (1 << 20, choose.choice([33, 40, 61])):
            monkeypatch.setattr(csv_source, "_BLOCK_BYTES", size)
            try:
                photos = read(tmp_path, text, **config)
            except InputError:
                seen.append(None)
            else:
                seen.append((photos.to_pylist(), {what: number for what, (number, _) in counted(photos).items()}))
        assert seen[0] == seen[1], text
        if seen[0] is not None and quoting != "none" and not any("closing quote" in what for what in seen[0][1]):
            oracle = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text, newline=""))][1:]
            keys = sorted(row[0] for row in oracle if any(row))
            assert sorted({row["item_id"] for row in seen[0][0]}) == sorted(set(keys)), text
            compared += 1
    assert compared > 5 or quoting == "none"


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"encoding": "utf-9"}, "'utf-9' is no text encoding"),
        ({"encoding": "base64"}, "'base64' is no text encoding"),
        ({"delimiter": '"'}, "a quote or a line break"),
        ({"delimiter": ""}, "at least 1 character"),
        ({"quoting": "all"}, "'auto', 'minimal' or 'none'"),
    ],
)
def test_settings_that_mean_nothing(settings: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        CatalogueConfig(source="c.csv", **settings)

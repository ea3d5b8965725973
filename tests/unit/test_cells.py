"""One image cell that cannot be read is one row of the quarantine, with the right reason; the other photos go on."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.catalogue import (
    CatalogueConfig,
    Failed,
    FailureLimits,
    PhotoReader,
    catalogue_files,
    read_photos,
    resolve_tokens,
)
from pipeline.catalogue.cells import unreadable, what_is_wrong
from pipeline.errors import InputError

GOOD = ["a.jpg", "b.jpg", "c.jpg"]
LISTS = pa.list_(pa.string())
BAD, NONE, GONE = "bad_uri", "no_image", "missing"


def resolved(source: Path, **settings: Any) -> pa.Table:
    for name in GOOD:
        (source.parent / name).write_bytes(name.encode())
    config = CatalogueConfig(source=str(source), **settings)
    files = catalogue_files(config)
    return resolve_tokens(read_photos(config, files), config, files)[0]


def check(photos: pa.Table, reason: str | None, said: str, *, good: int) -> None:
    """Hold the photos against one refusal of the item `bad`, or none, and so many that can be had."""
    rows = photos.to_pylist()
    refused = [row for row in rows if row["reason"] is not None]
    assert [(row["item_id"], row["reason"], row["token"]) for row in refused] == (
        [("bad", reason, "")] if reason else []
    )
    assert all(said in row["detail"] for row in refused)
    assert sum(row["reason"] is None for row in rows) == good
    failed = [Failed("", row["uri"], row["reason"], row["detail"]) for row in refused]
    FailureLimits(photos["uri"], 0.01).check(failed)  # one never stops a night


@pytest.mark.parametrize(
    ("cell", "reason", "said", "good"),
    [
        ('["a.jpg"', BAD, "begins like a list", 3),
        ("[front.jpg]", BAD, 'write ["a.jpg", "b.jpg"]', 3),
        ('["a.jpg"]x', BAD, "begins like a list", 3),
        ("[" * 5_000, BAD, "begins like a list", 3),
        ('["a.jpg", 5]', BAD, "'5' is no address", 4),
        ('[["a.jpg"]]', BAD, "write a text", 3),
        ('["\\ud800.jpg"]', BAD, "is no address", 3),
        ('{"url": "a.jpg"}', BAD, "is no address", 3),
        ("{front.jpg", GONE, "{front.jpg is not there", 3),
        ("[]", NONE, "names no photo", 3),
        ("[null]", NONE, "names no photo", 3),
        ('["a.jpg", null]', None, "", 4),
        ("   ", NONE, "names no photo", 3),
        ("x%zz.jpg", GONE, "is not there", 3),
        ("%ff.jpg", GONE, "is not there", 3),
        ("y" * 256, BAD, "too long for a disk", 3),
        ("é" * 128, BAD, "too long for a disk", 3),
        ("y" * 255, GONE, "is not there", 3),
        ("z/" * 2_100 + "z.jpg", BAD, "too long for a disk", 3),
        ("s3://shop/" + "k" * 1_025, BAD, "longer than 1024 bytes", 3),
        ("data:image/png;base64,AAAA", BAD, "use a binary column", 3),
        ("a\0b.jpg", BAD, "NUL", 3),
        ("https://host.example:99999/a.jpg", BAD, "Port out of range", 3),
    ],
)
def test_a_cell_of_text(tmp_path: Path, cell: str, reason: str | None, said: str, good: int) -> None:
    quoted = '"' + cell.replace('"', '""') + '"'
    path = tmp_path / "c.csv"
    path.write_text("item_id,image\n" + "".join(f"{name},{name}\n" for name in GOOD) + f"bad,{quoted}\n")
    check(resolved(path, allowed_prefixes=("s3://shop/",)), reason, said, good=good)
    pq.write_table(pa.table({"item_id": [*GOOD, "bad"], "image": [*GOOD, cell]}), tmp_path / "c.parquet")
    check(resolved(tmp_path / "c.parquet", allowed_prefixes=("s3://shop/",)), reason, said, good=good)


def as_text(name: str) -> Any:
    return name


def as_list(name: str) -> Any:
    return [name]


def as_object(name: str) -> Any:
    return {"bytes": None, "path": name}


@pytest.mark.parametrize("others", [as_text, as_list, as_object], ids=["texts", "lists", "objects"])
@pytest.mark.parametrize(
    ("cell", "reason", "said", "good"),
    [
        (5, BAD, "'5' is no address", 3),
        (True, BAD, "'true' is no address", 3),
        ({"bytes": 5}, BAD, "is no address", 3),
        ([["a.jpg"]], BAD, "is no address", 3),
        ([1], BAD, "'1' is no address", 3),
        (["a.jpg", 5], BAD, "'5' is no address", 4),
        (["a.jpg", None], None, "", 4),
        ("a.jpg", None, "", 4),
        (["a.jpg"], None, "", 4),
        ({"bytes": None, "path": "a.jpg"}, None, "", 4),
        ([], NONE, "names no photo", 3),
        (None, NONE, "names no photo", 3),
        ("  ", NONE, "names no photo", 3),
        ("data:image/png;base64,A!", BAD, "is no base64", 3),
        ("data:image/png,AAAA", BAD, "data:image/jpeg;base64,...", 3),
        ({"bytes": "A!"}, BAD, "is no base64", 3),
        (["data:image/png;base64,AAAA"], BAD, "one a row", 3),
    ],
)
def test_a_cell_of_json_lines(
    tmp_path: Path, others: Callable[[str], Any], cell: Any, reason: str | None, said: str, good: int
) -> None:
    rows = [*({"item_id": name, "image": others(name)} for name in GOOD), {"item_id": "bad", "image": cell}]
    path = tmp_path / "c.jsonl"
    for ordered in (rows, rows[::-1]):
        path.write_text("".join(json.dumps(row) + "\n" for row in ordered))
        check(resolved(path), reason, said, good=good)


def test_in_a_later_block_of_json_lines_too(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    filler = "".join(f'{{"item_id": "{number}", "image": "a.jpg", "x": "{"y" * 1000}"}}\n' for number in range(4500))
    path.write_text(filler + '{"item_id": "bad", "image": {"url": "a.jpg"}}\n')
    check(resolved(path, attributes=()), BAD, "is no address", good=4500)


@pytest.mark.parametrize("cell", [[], [None], None, [" "]])
def test_an_empty_list_of_parquet(tmp_path: Path, cell: Any) -> None:
    table = pa.table({"item_id": [*GOOD, "bad"], "image": pa.array([*([name] for name in GOOD), cell], LISTS)})
    pq.write_table(table, tmp_path / "c.parquet")
    check(resolved(tmp_path / "c.parquet"), NONE, "names no photo", good=3)


def test_photos_beside_a_bad_cell_are_read_from_their_lines(tmp_path: Path) -> None:
    photo = base64.b64encode(b"picture").decode()
    cells = [f"data:image/png;base64,{photo}", "data:image/png;base64,A!", "a.jpg", [f"data:image/png;base64,{photo}"]]
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"item_id": str(at), "image": cell}) + "\n" for at, cell in enumerate(cells)))
    photos = resolved(path)
    assert photos["reason"].to_pylist() == [None, BAD, None, BAD]
    config = CatalogueConfig(source=str(path))
    reader = PhotoReader(catalogue_files(config), config, threads=1)
    assert reader.read(photos.take([0, 2])) == [b"picture", b"a.jpg"]


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_photo_without_a_version(tmp_path: Path, value: str | None) -> None:
    table = pa.table({"item_id": [*GOOD, "bad"], "image": [*GOOD, "a.jpg"], "v": ["1", "1", "2", value]})
    pq.write_table(table, tmp_path / "c.parquet")
    check(resolved(tmp_path / "c.parquet", version="v"), "no_version", "catalogue.version is empty", good=3)
    lines = [f"{name},{name},1\n" for name in GOOD]
    (tmp_path / "c.csv").write_text("item_id,image,v\n" + "".join(lines) + f"bad,a.jpg,{value or ''}\n")
    check(resolved(tmp_path / "c.csv", version="v"), "no_version", "fill it", good=3)


def test_many_without_a_version_are_the_columns_fault() -> None:
    photos = pa.chunked_array([[f"/p/{number}.jpg" for number in range(60)]])
    failed = [Failed("", "u", "no_version", "it is empty")] * 10
    FailureLimits(photos, 0.01).check(failed[:9])
    with pytest.raises(InputError, match=r"10 of 60 photos have no version.*max_unreachable"):
        FailureLimits(photos, 0.01).check(failed)


def test_a_field_that_holds_no_photo_at_all_is_refused_by_its_type(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"item_id": "a", "image": {"url": "1"}}\n{"item_id": "b", "image": 5}\n')
    with pytest.raises(InputError, match="give it one type"):
        resolved(path)


def test_what_a_bad_cell_says_holds_no_secret_and_no_bytes() -> None:
    signed = '["https://u:word@h/a.jpg?X-Amz-Signature=abcdef"'
    assert unreadable("list", signed).endswith(':["https://***@h/a.jpg?X-Amz-Signature=***"')
    assert "SECRET" not in unreadable("data", "data:image/png;base64,SECRET")
    assert unreadable("list", "[" + "a" * 200 + "1") != unreadable("list", "[" + "a" * 200 + "2")
    assert what_is_wrong("/photos/cell:1.jpg") is None
    assert what_is_wrong("cell:list:1.jpg") is None

"""Values that no column can hold, in JSON lines and tar shards: refused with file and place, or carried exactly."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from pipeline.catalogue import CatalogueConfig, catalogue_notes, jsonl, read_photos
from pipeline.errors import InputError
from pipeline.storage import Files

GOOD = b'{"item_id": "a", "image": "1.jpg", "x": 1}\n'


def read(path: Path, **settings: Any) -> Any:
    return read_photos(CatalogueConfig(source=str(path), **settings), Files())


def lines(folder: Path, *second: bytes) -> Path:
    path = folder / "c.jsonl"
    path.write_bytes(GOOD + b"\n".join(second) + b"\n")
    return path


def shard(folder: Path, *members: tuple[str | bytes, bytes]) -> Path:
    path = folder / "s.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            held = name if isinstance(name, str) else name.decode("utf-8", "surrogateescape")
            info = tarfile.TarInfo(held)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


BAD = [
    (b"9223372036854775808", "is beyond 64 bits; write it as text"),
    (b"-9223372036854775809", "is beyond 64 bits"),
    (b"1" + b"0" * 60, "a number of more than 40 digits, which is beyond 64 bits"),
    (b"1" * 5000, "is not JSON"),
    (b'2, "z": "\\ud800"', "half a character"),
    (b'2, "z": "\\udc00\\ud800"', "half a character"),
    (b'"caf\xe9"', "no UTF-8"),
    (b"1e999", "larger than any double"),
    (b'"XL"', "'XL', of texts, and 1, of whole numbers"),
    (b"true", "of truth values"),
    (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
    (b'1, "x": 2', "the field 'x' twice"),
]


@pytest.mark.parametrize(("value", "why"), BAD, ids=[why for _, why in BAD])
def test_values_of_json_lines_that_nothing_can_hold(tmp_path: Path, value: bytes, why: str) -> None:
    path = lines(tmp_path, b'{"item_id": "b", "image": "2.jpg", "x": %s}' % value)
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).startswith(f"row 2 of {path}")
    assert why in str(caught.value)


@pytest.mark.parametrize("value", [b"9223372036854775808", b'"XL"', b"true", b"[1]", b'"\\ud83d\\ude00"', b'1, "x": 2'])
def test_a_field_that_nobody_asked_for_stops_no_night(tmp_path: Path, value: bytes) -> None:
    path = lines(tmp_path, b'{"item_id": "b", "image": "2.jpg", "y": 5, "x": %s}' % value)
    assert read(path, attributes=("y",))["y"].to_pylist() == [None, 5]
    assert read(path, attributes=()).column_names == read(lines(tmp_path, b""), attributes=()).column_names
    # A shard of the same items.
    for member in (b'{"x": 1}', b'{"y": 5, "x": %s}' % value):
        found = read(
            shard(tmp_path, ("a.jpg", b"1"), ("a.json", member), ("b.jpg", b"2"), ("b.json", b'{"y": 5}')),
            attributes=("y",),
        )
        assert found["y"].to_pylist()[1] == 5


@pytest.mark.parametrize(
    "text", [b"null", b"null\nnull", b"1", b'"x"', b' \n {"item_id": "a",\n"image": "1"}', b'{"a": 1} {"a":\n2}']
)
def test_lines_that_are_no_objects(tmp_path: Path, text: bytes) -> None:
    """A block of `null` alone kills the process inside of Arrow's parser."""
    path = tmp_path / "c.jsonl"
    path.write_bytes(text)
    with pytest.raises(InputError, match=rf"row 1 of {path} (must hold a JSON object|is not JSON)"):
        read(path)


def test_whole_numbers_and_text_are_carried_exactly(tmp_path: Path) -> None:
    largest, smallest = 2**63 - 1, -(2**63)
    path = lines(tmp_path, b'{"item_id": "b", "image": "2.jpg", "x": %d, "z": "\\ud83d\\ude00"}' % largest)
    assert read(path)["x"].to_pylist() == [1, largest]
    assert read(path)["z"].to_pylist() == [None, "\U0001f600"]
    path = lines(tmp_path, b'{"item_id": "b", "image": "2.jpg", "x": %d}' % smallest)
    assert read(path)["x"].to_pylist() == [1, smallest]
    # 2^53 + 1 beside a fraction: as doubles it would be 2^53.
    path = lines(
        tmp_path,
        *(
            b'{"item_id": "%s", "image": "2.jpg", "x": %s}' % pair
            for pair in ((b"b", b"9007199254740993"), (b"c", b"0.5"))
        ),
    )
    with pytest.raises(InputError, match=r"row 2 of .* cannot be held exactly beside numbers with a fraction"):
        read(path)
    path = lines(tmp_path, b'{"item_id": "b", "image": "2.jpg", "x": 0.5}')
    assert read(path)["x"].to_pylist() == [1.0, 0.5]


def test_text_that_looks_like_a_moment_stays_text_wherever_it_begins(tmp_path: Path) -> None:
    rows = [{"item_id": f"{row:03}", "image": "p", "day": None if row < 150 else "2024-01-01"} for row in range(200)]
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(path)["day"].to_pylist()[149:151] == [None, "2024-01-01"]


def test_types_that_move_between_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "_BLOCK_BYTES", 64)
    values = [1, 2, 0.5, 3, None, 4]
    path = tmp_path / "c.jsonl"
    path.write_text(
        "".join(
            json.dumps({"item_id": str(row), "image": "p", "x": value, "no": [value]}) + "\n"
            for row, value in enumerate(values)
        )
    )
    for settings in ({}, {"attributes": ("x",)}):
        assert read(path, **settings)["x"].to_pylist() == values
    assert catalogue_notes(read(path)).skipped_columns == ("no",)
    path.write_text(
        "".join(
            json.dumps({"item_id": str(row), "image": "p", "x": value}) + "\n"
            for row, value in enumerate([1, 2, 3, "XL"])
        )
    )
    with pytest.raises(
        InputError, match=r"c.jsonl: the column 'x' holds different types: int64 from row 1 on, string from row 4 on"
    ):
        read(path)


def test_numbers_of_csv_are_numbers_only_where_they_are_held_exactly(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    columns = {
        "a": ["1", "2.5"],
        "b": ["9007199254740993", "0.5"],
        "c": ["1e999", "1"],
        "d": ["12345678901234567890"] * 2,
    }
    rows = zip(*columns.values(), strict=True)
    path.write_text("item_id,image,a,b,c,d\n" + "".join(f"k{n},p,{','.join(row)}\n" for n, row in enumerate(rows)))
    found = read(path)
    assert found["a"].to_pylist() == [1.0, 2.5]
    for name in "bcd":
        assert found[name].to_pylist() == columns[name]


def test_a_column_of_another_encoding_that_nobody_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_bytes(b"item_id,image,x,y\na,1.jpg,caf\xe9,5\n")
    assert read(path, attributes=("y",))["y"].to_pylist() == [5]
    with pytest.raises(InputError, match=r"c.csv line 2: byte \d+ \(0xe9\) is no UTF-8"):
        read(path)
    path.write_bytes(b"item_id,image,x,y\na,1.jpg,caf\xe9\n")  # a row of too few cells beside it
    with pytest.raises(InputError, match=r"c.csv line 2: byte \d+ \(0xe9\) is no UTF-8"):
        read(path, attributes=("y",))


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (("b.json", b'{"x": 9223372036854775808}'), "the item 'b' of .*beyond 64 bits"),
        (("b.json", b'{"z": "\\ud800"}'), "the item 'b' of .*half a character"),
        (("b.json", b'{"x": "XL"}'), "the item 'b' of .*of texts, and 1, of whole numbers, in the item 'a'"),
        (("b.json", b"[" * 100_000), "the member 'b.json' of .*nested too deeply"),
        (("b.json", b'{"x": "caf\xe9"}'), "the member 'b.json' of .*no UTF-8"),
        (("b.cls", b"caf\xe9"), "the member 'b.cls' of .*no UTF-8"),
        ((b"caf\xe9.jpg", b"2"), "the member 'caf.udce9.jpg', whose name is no UTF-8"),
    ],
    ids=str,
)
def test_values_of_tar_shards_that_nothing_can_hold(
    tmp_path: Path, second: tuple[str | bytes, bytes], why: str
) -> None:
    path = shard(tmp_path, ("a.jpg", b"1"), ("a.json", b'{"x": 1}'), ("b.jpg", b"2"), second)
    with pytest.raises(InputError, match=why):
        read(path)

"""What a catalogue's names and structs would merge or drop: refused, or counted and said."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.catalogue import (
    CatalogueConfig,
    PhotoReader,
    catalogue_files,
    catalogue_notes,
    read_photos,
    resolve_tokens,
)
from pipeline.catalogue.proposal import propose
from pipeline.errors import CodebooksError, ConfigError, InputError
from pipeline.storage import Files

FILES = Files()
CABLES = ["cable-1.0m.jpg", "cable-1.5m.jpg", "cable-2.0m.jpg", "cable-2.2m.jpg", "cable-2.5m.jpg"]
JOINED = "photos that their names join to another of their item"


def shard(folder: Path, names: list[str], **texts: str) -> Path:
    path = folder / "s.tar"
    with tarfile.open(path, "w") as tar:
        for name in [*names, *texts]:
            data = texts.get(name, name).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def read(source: Path, **settings: Any) -> tuple[list[tuple[str, bytes]], dict[str, tuple[int, str]]]:
    """Return (item_id, bytes) of each photo, fetched, and what was counted."""
    config = CatalogueConfig(source=str(source), **settings)
    photos = read_photos(config, FILES)
    held = photos.filter(pa.array([uri != "" for uri in photos["uri"].to_pylist()]))
    fetched = PhotoReader(FILES, config).read(held)
    notes = catalogue_notes(photos).counted
    pairs = list(zip(held["item_id"].to_pylist(), fetched, strict=True))
    return pairs, {what: (found.number, found.where) for what, found in notes.items()}


def refusal(source: Path, error: type[CodebooksError] = InputError, **settings: Any) -> str:
    with pytest.raises(error) as caught:
        read(source, **settings)
    return str(caught.value)


@pytest.mark.parametrize(
    "names",
    [CABLES, ["shoe.left.jpg", "shoe.right.jpg"], ["tv-4.5k.png", "tv-4.5k.2.png"], ["a.jpg", "a.tmp.jpg"]],
    ids=lambda names: names[0],
)
def test_two_products_of_a_shard_never_become_one_unsaid(tmp_path: Path, names: list[str]) -> None:
    path = shard(tmp_path, names)
    said = refusal(path)
    assert repr(names[0]) in said
    assert repr(names[1]) in said
    assert "catalogue.item_id: name" in said
    whole, counted = read(path, item_id="name")
    assert whole == [(name.rsplit(".", 1)[0], name.encode()) for name in names]
    assert counted == {}
    by_rule, counted = read(path, item_id="key")
    assert [key for key, _ in by_rule] == [name.split(".", 1)[0] for name in names]
    assert sorted(data for _, data in by_rule) == sorted(name.encode() for name in names)
    assert counted[JOINED][0] == len(names) - len({name.split(".", 1)[0] for name in names})
    assert propose(str(path)).config.item_id == "name"


def test_numbered_photos_of_a_shard_are_joined_and_counted(tmp_path: Path) -> None:
    path = shard(tmp_path, ["a.0.jpg", "a.1.jpg", "a.2.jpg", "b.jpg", "c-1.5.jpg"])
    pairs, counted = read(path)
    assert [key for key, _ in pairs] == ["a", "a", "a", "b", "c-1"]
    assert counted == {JOINED: (2, f"'a' has {path}#a.0.jpg and {path}#a.1.jpg")}


def test_a_key_that_ends_before_more_than_a_number_is_said(tmp_path: Path) -> None:
    path = shard(tmp_path, ["cable-1.0m.jpg", "cable-2.5m.jpg"])
    pairs, counted = read(path)
    assert [key for key, _ in pairs] == ["cable-1", "cable-2"]
    assert [(number, where) for number, where in counted.values()] == [
        (2, "cable-1.0m.jpg is the item 'cable-1'"),
    ]


def test_two_members_that_say_different_things_of_an_item(tmp_path: Path) -> None:
    texts = {"a.json": json.dumps({"cls": "Shoes"}), "a.cls": "Bags"}
    said = refusal(shard(tmp_path, ["a.jpg"], **texts))
    assert "'a.cls'" in said
    assert "'Bags'" in said
    assert "'Shoes'" in said
    same = shard(tmp_path, ["a.jpg"], **{**texts, "a.cls": "Shoes"})
    assert read(same)[0] == [("a", b"a.jpg")]


def test_a_key_of_a_shard_is_one_of_two(tmp_path: Path) -> None:
    assert "allowed are key, name" in refusal(shard(tmp_path, ["a.jpg"]), ConfigError, item_id="sku")


def test_photos_of_a_folder_that_one_name_joins_are_counted(tmp_path: Path) -> None:
    for name in ("Shoes/a.1.jpg", "Shoes/a.2.jpg", "Bags/a.jpg", "b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    pairs, counted = read(tmp_path, rows="photo")
    assert [key for key, _ in pairs] == ["a", "a", "a", "b"]
    assert counted == {JOINED: (2, f"'a' has {tmp_path}/Bags/a.jpg and {tmp_path}/Shoes/a.1.jpg")}


def test_rows_without_a_photo_beside_others_are_counted(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("item_id,image\na,\na,a.jpg\nb,\nb,\nc,c.jpg\n")
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "c.jpg").write_bytes(b"c")
    pairs, counted = read(tmp_path / "c.csv", rows="photo")
    assert pairs == [("a", b"a"), ("c", b"c")]
    assert counted == {"rows without a photo, beside others of the same item": (2, "'a' in row 1")}


HALVES: list[Any] = [
    {"bytes": b"embedded", "path": "not this.jpg"},
    {"bytes": None, "path": "beside.jpg"},
    {"bytes": None, "path": None},
    None,
    {"bytes": b"alone", "path": None},
    {"bytes": None, "path": "2024-01-02"},
]
FETCHED = [("k0", b"embedded"), ("k1", b"beside.jpg"), ("k4", b"alone"), ("k5", b"2024-01-02")]


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    for name in ("beside.jpg", "2024-01-02"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())], ids=str
)
def test_both_halves_of_a_struct_in_parquet(beside: Path, kind: pa.DataType) -> None:
    whole = pa.array([cell and cell["bytes"] for cell in HALVES], pa.binary())
    data = whole.dictionary_encode() if pa.types.is_dictionary(kind) else whole.cast(kind)
    path = pa.array([cell and cell["path"] for cell in HALVES], pa.string())
    mask = pa.array([cell is None for cell in HALVES])
    cells = pa.StructArray.from_arrays([data, path], ["bytes", "path"], mask=mask)
    pq.write_table(pa.table({"item_id": [f"k{n}" for n in range(6)], "image": cells}), beside / "c.parquet")
    assert read(beside / "c.parquet")[0] == FETCHED


@pytest.mark.parametrize("block", [1 << 20, 80])
@pytest.mark.parametrize("settings", [{}, {"attributes": ("n",)}], ids=["all", "some"])
@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_both_halves_of_an_object_in_json_lines(
    beside: Path, monkeypatch: pytest.MonkeyPatch, block: int, settings: dict[str, Any], prefix: str
) -> None:
    monkeypatch.setattr("pipeline.catalogue.jsonl._BLOCK_BYTES", block)
    text = ""
    for number, cell in enumerate(HALVES):
        image = cell and {**cell, "bytes": cell["bytes"] and prefix + base64.b64encode(cell["bytes"]).decode()}
        text += json.dumps({"item_id": f"k{number}", "image": image, "n": number}) + "\n"
    (beside / "c.jsonl").write_text(text)
    assert read(beside / "c.jsonl", **settings)[0] == FETCHED


def test_objects_without_one_half_and_others(beside: Path) -> None:
    lines = ['{"item_id": "a", "image": {"path": "beside.jpg"}}', '{"item_id": "b", "image": {"bytes": "eA=="}}']
    (beside / "c.jsonl").write_text("\n".join(lines))
    assert read(beside / "c.jsonl")[0] == [("a", b"beside.jpg"), ("b", b"x")]
    (beside / "c.jsonl").write_text('{"item_id": "a", "image": {"url": "x.jpg"}}')
    assert "the image column 'image'" in refusal(beside / "c.jsonl")
    (beside / "c.jsonl").write_text('{"item_id": "a", "image": {"bytes": "no base64!"}}')
    config = CatalogueConfig(source=str(beside / "c.jsonl"))
    files = catalogue_files(config)
    [photo] = resolve_tokens(read_photos(config, files), config, files)[0].to_pylist()
    assert (photo["item_id"], photo["reason"]) == ("a", "bad_uri")

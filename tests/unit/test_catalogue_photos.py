"""Folders of photos, tar shards, and fetching the photos of every kind of source."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.catalogue import CatalogueConfig, PhotoReader, catalogue_notes, read_photos, resolve_tokens
from pipeline.errors import InputError, PhotoRefused, Unavailable
from pipeline.schema import PHOTOS
from pipeline.storage import Files, open_store

FILES = Files()


def folder(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def read(source: Path | str, **settings: Any) -> tuple[pa.Table, CatalogueConfig]:
    config = CatalogueConfig(source=str(source), **settings)
    table = read_photos(config, FILES)
    table.validate(full=True)
    return table, config


def rows(table: pa.Table, *columns: str) -> list[tuple[Any, ...]]:
    return list(zip(*(table[name].to_pylist() for name in columns), strict=True))


def fetch(table: pa.Table, config: CatalogueConfig) -> list[bytes | PhotoRefused]:
    return PhotoReader(FILES, config, threads=4).read(table)


def test_a_folder_with_categories(tmp_path: Path) -> None:
    folder(
        tmp_path,
        "Shoes/b.1.JPG", "Shoes/Boots/c.png", "a.webp", "Bags/z.jpeg",
        "Shoes/notes.txt", ".DS_Store", "__MACOSX/Shoes/._b.jpg", "Bags/._z.jpeg", "LICENSE",
    )  # fmt: skip
    table, config = read(tmp_path)
    assert rows(table, "item_id", "uri", "view", "category") == [
        ("a", f"{tmp_path}/a.webp", 0, None),
        ("b.1", f"{tmp_path}/Shoes/b.1.JPG", 0, "Shoes"),
        ("c", f"{tmp_path}/Shoes/Boots/c.png", 0, "Shoes/Boots"),
        ("z", f"{tmp_path}/Bags/z.jpeg", 0, "Bags"),
    ]
    notes = catalogue_notes(table)
    assert notes.skipped == {".txt": 1, ".ds_store": 1, ".jpg": 1, ".jpeg": 1, "LICENSE": 1}
    assert (notes.photos, notes.listed) == (4, 9)
    resolved, cost = resolve_tokens(table, config, FILES)
    assert resolved["token"].to_pylist() == table["token"].to_pylist()
    assert all(token.startswith("stat:") for token in table["token"].to_pylist())
    assert (cost.listed, cost.heads) == (9, 0)
    assert fetch(resolved, config) == [b"a.webp", b"Shoes/b.1.JPG", b"Shoes/Boots/c.png", b"Bags/z.jpeg"]


def test_keys_of_a_folder(tmp_path: Path) -> None:
    folder(tmp_path, "Shoes/1/front.jpg", "Shoes/1/back.jpg", "Bags/1/front.jpg", "Bags/2.0.jpg", "Bags/2.1.jpg")
    with pytest.raises(InputError) as caught:
        read(tmp_path)
    text = str(caught.value)
    assert f"'front' ({tmp_path}/Bags/1/front.jpg, {tmp_path}/Shoes/1/front.jpg)" in text
    assert "catalogue.item_id: path if names repeat" in text
    by_path, _ = read(tmp_path, item_id="path", category="kind")
    assert rows(by_path, "item_id", "kind")[0] == ("Bags/1/front", "Bags/1")
    by_folder, _ = read(tmp_path, item_id="folder", rows="photo")
    assert rows(by_folder, "item_id", "view", "category") == [
        ("Bags", 0, None),
        ("Bags", 1, None),
        ("Bags/1", 0, "Bags"),
        ("Shoes/1", 0, "Shoes"),
        ("Shoes/1", 1, "Shoes"),
    ]
    by_name, _ = read(tmp_path / "Bags", rows="photo")
    assert rows(by_name, "item_id", "view") == [("2", 0), ("2", 1), ("front", 0)]


def test_photos_in_the_source_itself_have_no_folder_to_be_named_by(tmp_path: Path) -> None:
    folder(tmp_path, "a.jpg", "b/c.jpg")
    with pytest.raises(InputError, match="null or empty key"):
        read(tmp_path, item_id="folder", rows="photo")


def test_tar_shards(tmp_path: Path) -> None:
    shard(
        tmp_path / "0.tar",
        [
            ("b.10.jpg", b"b10"), ("b.9.jpg", b"b9"), ("b.cls", b" Shoes\n"), ("b.txt", "rote Schuhe, größer".encode()),
            ("sub/a.json", json.dumps({"price": 3, "tags": ["x"], "colour": "red"}).encode()), ("sub/a.png", b"a"),
            ("b.npy", b"x"), ("README", b"x"),
        ],
    )  # fmt: skip
    shard(tmp_path / "1.tar", [("./c.jpg", b"c"), ("d.json", b'{"price": 1.5}')])
    with pytest.raises(InputError) as caught:  # b comes back after another key: two samples of one name
        read(tmp_path)
    assert f"{tmp_path}/0.tar#b.9.jpg" in str(caught.value)
    table, config = read(tmp_path, rows="photo", category="cls")
    assert rows(table, "item_id", "uri", "view", "cls", "price") == [
        ("b", f"{tmp_path}/0.tar#b.9.jpg", 0, "Shoes", None),
        ("b", f"{tmp_path}/0.tar#b.10.jpg", 1, "Shoes", None),
        ("c", f"{tmp_path}/1.tar#./c.jpg", 0, None, None),
        ("d", "", 0, None, 1.5),
        ("sub/a", f"{tmp_path}/0.tar#sub/a.png", 0, None, 3.0),
    ]
    assert table["txt"].to_pylist()[0] == "rote Schuhe, größer"
    digests = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in (b"b9", b"b10", b"c", b"", b"a")]
    assert table["token"].to_pylist() == [*digests[:3], None, digests[4]]
    notes = catalogue_notes(table)
    assert notes.skipped == {".npy": 1, "README": 1}
    assert notes.skipped_columns == ("tags",)
    assert notes.no_image == 1
    resolved, cost = resolve_tokens(table, config, FILES)
    assert (cost.listed, cost.heads) == (0, 0)
    assert resolved["reason"].to_pylist() == [None, None, None, "no_image", None]
    usable = resolved.filter(pa.array([row != 3 for row in range(5)]))
    assert fetch(usable, config) == [b"b9", b"b10", b"c", b"a"]


def test_a_tar_shard_of_many_items_is_read_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.catalogue.tar._BATCH_ITEMS", 7)
    members = [(f"{item:04}.{view}.jpg", f"{item}-{view}".encode()) for item in range(50) for view in range(2)]
    table, config = read(shard(tmp_path / "s.tar", members))
    assert table["view"].to_pylist() == [0, 1] * 50
    assert fetch(table, config) == [data for _, data in members]


@pytest.fixture
def embedded(tmp_path: Path) -> tuple[pa.Table, CatalogueConfig, list[bytes]]:
    data = [f"photo {row}".encode() * (row + 1) for row in range(40)]
    keys = [f"{(row * 7) % 40:02}" for row in range(40)]  # another order than the table's
    pq.write_table(pa.table({"item_id": keys, "image": data}), tmp_path / "c.parquet", row_group_size=6)
    table, config = read(tmp_path / "c.parquet")
    return table, config, [data[keys.index(key)] for key in table["item_id"].to_pylist()]


def test_embedded_photos_in_any_order_and_piece_by_piece(
    embedded: tuple[pa.Table, CatalogueConfig, list[bytes]],
) -> None:
    table, config, expected = embedded
    reader = PhotoReader(FILES, config)
    assert reader.read(table) == expected
    assert [photo for start in range(0, 40, 3) for photo in reader.read(table.slice(start, 3))] == expected
    assert pickle.loads(pickle.dumps(reader)).read(table) == expected
    assert reader.read(table.slice(0, 0)) == []


def test_large_row_groups_are_streamed(
    embedded: tuple[pa.Table, CatalogueConfig, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    table, config, expected = embedded
    monkeypatch.setattr("pipeline.catalogue.embedded._KEPT_BYTES", 0)
    monkeypatch.setattr("pipeline.catalogue.embedded._STREAMED_BYTES", 100)
    assert fetch(table, config) == expected


def test_a_row_group_is_read_once_for_neighbouring_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"item_id": [f"{row:02}" for row in range(40)], "image": [bytes([row]) for row in range(40)]})
    pq.write_table(table, tmp_path / "c.parquet", row_group_size=20)
    photos, config = read(tmp_path / "c.parquet")
    groups: list[int] = []
    real = pq.ParquetFile.read_row_group

    def counted(self: pq.ParquetFile, group: int, **settings: Any) -> pa.Table:
        groups.append(group)
        return real(self, group, **settings)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    reader = PhotoReader(FILES, config)
    assert [photo for start in range(0, 40, 5) for photo in reader.read(photos.slice(start, 5))] == [
        bytes([row]) for row in range(40)
    ]
    assert groups == [0, 1]


def test_embedded_photos_that_changed_since_the_plan(
    tmp_path: Path, embedded: tuple[pa.Table, CatalogueConfig, list[bytes]]
) -> None:
    table, config, expected = embedded
    shorter = pa.table({"item_id": ["a"] * 7, "image": [expected[0], None, *expected[1:6]]})
    pq.write_table(shorter, tmp_path / "c.parquet")
    found = fetch(table, config)
    for row, photo in zip(table.to_pylist(), found, strict=True):
        if row["offset"] == 0:
            assert photo == expected[0]
        else:
            assert isinstance(photo, PhotoRefused)
            assert (photo.stage, photo.reason) == ("fetch", "changed")
    (tmp_path / "c.parquet").write_bytes(b"nothing like a table")
    assert {photo.reason for photo in fetch(table, config) if isinstance(photo, PhotoRefused)} == {"changed"}
    (tmp_path / "c.parquet").unlink()
    found = fetch(table, config)
    assert [(photo.stage, photo.reason) for photo in found if isinstance(photo, PhotoRefused)] == [
        ("fetch", "missing")
    ] * 40


def test_photos_of_json_lines(tmp_path: Path) -> None:
    data = [b"", b"\x00\xff" * 50, b"last"]
    lines = [
        {"item_id": row, "title": "ü" * row, "image": f"data:image/png;base64,{base64.b64encode(value).decode()}"}
        for row, value in enumerate(data)
    ]
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    table, config = read(path)
    assert fetch(table, config) == data
    path.write_text(path.read_text().replace("last", "l\nst").upper())
    assert all(isinstance(photo, PhotoRefused) and photo.reason == "changed" for photo in fetch(table, config))


def test_photos_by_uri_and_their_refusals(tmp_path: Path) -> None:
    folder(tmp_path, "a.jpg", "b.jpg")
    store = open_store("memory://catalogue-photos")
    store.put("k/c d+%.jpg", b"c")
    uris = [
        "a.jpg",
        "gone.jpg",
        "b.jpg",
        "memory://catalogue-photos/k/c d+%.jpg",
        "memory://catalogue-photos/k/",
        "x//y.jpg",
    ]
    lines = "".join(f"{row},{uri}\n" for row, uri in enumerate(uris))
    (tmp_path / "c.csv").write_text("item_id,image\n" + lines)
    table, config = read(tmp_path / "c.csv")
    resolved, _ = resolve_tokens(table, config, FILES)
    assert resolved["stage"].to_pylist() == [None, "plan", None, None, "plan", "plan"]
    assert resolved["reason"].to_pylist() == [None, "missing", None, None, "unreadable", "missing"]
    assert resolved["token"].to_pylist()[1] == ""
    assert "gone.jpg" in resolved["detail"].to_pylist()[1]
    found = fetch(resolved, config)
    assert [photo.reason if isinstance(photo, PhotoRefused) else photo for photo in found] == [
        b"a.jpg", "missing", b"b.jpg", b"c", "unreadable", "missing",
    ]  # fmt: skip


def test_a_photo_without_an_answer_is_unreachable(tmp_path: Path) -> None:
    class Flaky(Files):
        def fetch(self, uri: str, **_: Any) -> Any:
            raise Unavailable(f"{uri}: HTTP 503")

    folder(tmp_path, "a.jpg", "b.jpg")
    table, config = read(tmp_path)
    found = PhotoReader(Flaky(), config).read(table)
    assert [answer.reason for answer in found if isinstance(answer, PhotoRefused)] == ["unreachable"] * 2


def test_a_digest_token_is_held_against_the_bytes(tmp_path: Path) -> None:
    folder(tmp_path, "a.jpg")
    photo = {
        "item_id": "a",
        "uri": f"{tmp_path}/a.jpg",
        "view": 0,
        "token": f"sha256:{hashlib.sha256(b'a.jpg').hexdigest()}",
    }
    config = CatalogueConfig(source=str(tmp_path))
    assert fetch(pa.Table.from_pylist([photo], schema=PHOTOS), config) == [b"a.jpg"]
    (tmp_path / "a.jpg").write_bytes(b"other")
    (refused,) = fetch(pa.Table.from_pylist([photo], schema=PHOTOS), config)
    assert isinstance(refused, PhotoRefused)
    assert refused.reason == "changed"

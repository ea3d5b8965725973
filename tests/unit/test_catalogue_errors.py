"""Every way a catalogue can be wrong, and what the error says of it."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from pipeline.catalogue import CatalogueConfig, catalogue_notes, read_photos
from pipeline.errors import CodebooksError, ConfigError, Forbidden, InputError
from pipeline.storage import Files, open_store

FILES = Files()


def refused(source: Path | str, *parts: str, error: type[CodebooksError] = InputError, **settings: Any) -> None:
    """Assert that reading raises `error` and that its text holds every part."""
    with pytest.raises(error) as caught:
        read_photos(CatalogueConfig(source=str(source), **settings), FILES)
    text = str(caught.value)
    for part in parts:
        assert part in text, text


def parquet(folder: Path, **columns: Any) -> Path:
    path = folder / "c.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def csv(folder: Path, text: str) -> Path:
    path = folder / "c.csv"
    path.write_text(text)
    return path


def test_repeated_keys_name_their_rows_and_the_remedy(tmp_path: Path) -> None:
    path = csv(tmp_path, "item_id,image\na,1\nb,2\na,3\nc,4\nb,5\na,6\n")
    refused(path, "2 key(s)", "'a' (row 1, row 3, row 6)", "'b' (row 2, row 5)", "catalogue.rows: photo")


def test_repeated_keys_across_files_name_the_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.csv").write_text("item_id,image\na,1\n")
    refused(tmp_path, f"row 1 of {tmp_path}/one.csv", f"row 1 of {tmp_path}/two.csv")


def test_many_repeated_keys_are_counted(tmp_path: Path) -> None:
    lines = "".join(f"{row % 50:02},p\n" for row in range(100))
    refused(csv(tmp_path, "item_id,image\n" + lines), "50 key(s)", "'04' (row 5, row 55) and 45 more")


def test_null_and_empty_keys_name_their_rows(tmp_path: Path) -> None:
    path = parquet(tmp_path, item_id=["a", None, "", "d"], image=["1", "2", "3", "4"])
    refused(path, "2 row(s) have a null or empty key: row 2, row 3", "drop the row")


def test_float_keys_are_refused_with_the_likely_cause(tmp_path: Path) -> None:
    refused(parquet(tmp_path, item_id=[1.0, 2.0], image=["1", "2"]), "'item_id'", "holds double values", "pandas")


@pytest.mark.parametrize("keys", [[True], [b"x"], [["a"]]], ids=["bool", "binary", "list"])
def test_keys_of_other_types_are_refused(tmp_path: Path, keys: list[Any]) -> None:
    refused(parquet(tmp_path, item_id=keys, image=["1"]), "a key must be text or integers")


@pytest.mark.parametrize("role", ["item_id", "image", "category", "version", "attributes"])
def test_missing_columns_list_those_there_are_and_the_near_spelling(tmp_path: Path, role: str) -> None:
    path = parquet(tmp_path, item_id=["a"], image=["1"], Colour=["red"])
    value = ("Color",) if role == "attributes" else "Color"
    refused(
        path,
        f"catalogue.{role} names the column 'Color'",
        "item_id, image, Colour",
        "did you mean 'Colour'?",
        **{role: value},
    )


def test_a_column_missing_from_one_of_several_files_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("item_id,image\na,1\n")
    (tmp_path / "b.csv").write_text("item_id,picture\nb,1\n")
    refused(tmp_path, "'image'", f"{tmp_path}/b.csv does not have")


def test_reserved_attribute_names(tmp_path: Path) -> None:
    path = parquet(tmp_path, item_id=["a"], image=["1"], status=["x"], score=[1])
    refused(path, "'score', 'status'", "rename them", "catalogue.attributes", attributes=("score", "status"))
    refused(path, "'status'", "catalogue.category", category="status")
    found = read_photos(CatalogueConfig(source=str(path)), FILES)  # a feed may get such a column any night
    assert found.num_rows == 1
    assert not {"score", "status"} & set(found.column_names)
    assert catalogue_notes(found).skipped_columns == ("score", "status")


def test_nested_attributes_named_explicitly(tmp_path: Path) -> None:
    path = parquet(tmp_path, item_id=["a"], image=["1"], tags=[["x"]])
    refused(path, "'tags'", "holds list", "take it out", attributes=("tags",))
    refused(path, "'tags'", "holds list", category="tags")


@pytest.mark.parametrize(
    ("cells", "part"), [([1], "holds int64 values"), ([[b"x"]], "catalogue.rows: photo"), ([{"path": "x"}], "struct")]
)
def test_image_columns_of_other_types(tmp_path: Path, cells: list[Any], part: str) -> None:
    refused(parquet(tmp_path, item_id=["a"], image=cells), "the image column 'image'", part)


@pytest.mark.parametrize("name", ["c.parquet", "c.csv", "c.jsonl"])
def test_empty_tables(tmp_path: Path, name: str) -> None:
    if name == "c.parquet":
        parquet(tmp_path, item_id=pa.array([], pa.string()), image=pa.array([], pa.string()))
    else:
        (tmp_path / name).write_text("item_id,image\n" if "csv" in name else "\n\n")
    refused(tmp_path / name, "no rows", "an empty catalogue would delist every item")


def test_a_csv_file_without_a_header(tmp_path: Path) -> None:
    refused(csv(tmp_path, ""), "is empty", "the first line of a CSV file must name its columns")


@pytest.mark.parametrize("name", ["c.parquet", "c.csv", "c.jsonl", "c.tar", "folder", "s.json.gz"])
def test_missing_sources(tmp_path: Path, name: str) -> None:
    refused(tmp_path / name, f"{tmp_path / name}", "check the path and the bucket")


def test_missing_folders_of_photos(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "holds no files", format="folder")


def test_a_bucket_without_this_key() -> None:
    open_store("memory://catalogue-errors").put("other", b"x")
    refused("memory://catalogue-errors/c.parquet", "memory://catalogue-errors/c.parquet is not there")


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = csv(tmp_path, "item_id,image\na,1\n")

    def denied(self: Path, *_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.open", denied)
    refused(path, f"catalogue.source {path} may not be read", "check the credentials")


@pytest.mark.parametrize("name", ["c.parquet", "c.jsonl", "c.tar", "c.csv.gz"])
def test_damaged_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not what it says" * 100)
    refused(tmp_path / name, str(tmp_path / name))


def test_a_cut_parquet_file(tmp_path: Path) -> None:
    path = parquet(tmp_path, item_id=["a"], image=["1"])
    path.write_bytes(path.read_bytes()[:-20])
    refused(path, f"{path} cannot be read as Parquet")


def test_a_cut_gzip_file(tmp_path: Path) -> None:
    text = "item_id,image\n" + "".join(f"{row},{hash(row)}.jpg\n" for row in range(10_000))
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(text.encode())[:-100])
    refused(tmp_path / "c.csv.gz", "is damaged")


def test_csv_rows_of_other_lengths_and_encodings(tmp_path: Path) -> None:
    refused(csv(tmp_path, "item_id,image\na,1\nb,2,3\n"), "has 2 columns", "line 3 has 3 ('b,2,3')")
    (tmp_path / "c.csv").write_bytes("item_id,image\nä,1\n".encode("latin-1"))
    refused(tmp_path / "c.csv", "line 2: byte 14 (0xe4) is no UTF-8", "cp1252", "'ä,1'")


def test_doubled_columns(tmp_path: Path) -> None:
    refused(csv(tmp_path, "item_id,image,x,x\na,1,2,3\n"), "more than one column named 'x'")


def test_jsonl_that_mixes_types_or_breaks_lines(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"item_id": "a", "image": "1"}\n{"item_id": 2, "image": "1"}\n')
    refused(path, f"row 2 of {path}", "'item_id' holds 2, of whole numbers", "'a', of texts, in row 1", "one type")
    path.write_text('{"item_id": "a",\n "image": "1"}\n')
    refused(path, f"row 1 of {path} is not JSON", "one whole object")
    path.write_text('{"item_id": "a", "image": "1"}\nnonsense\n')
    refused(path, f"row 2 of {path} is not JSON", "one whole object")


def test_types_that_differ_between_files(tmp_path: Path) -> None:
    for number, value in enumerate([1, "x"]):
        table = pa.table({"item_id": [str(number)], "image": ["p"], "size": [value]})
        pq.write_table(table, tmp_path / f"{number}.parquet")
    refused(tmp_path, "different types", "size", "leave it out of catalogue.attributes")


def test_repeated_photos_of_an_item(tmp_path: Path) -> None:
    path = csv(tmp_path, "item_id,image\na,x.jpg\nb,x.jpg\na,y.jpg\na,x.jpg\n")
    refused(path, "1 photo(s)", f"'a' names {tmp_path}/x.jpg in row 1, row 4", "one row a photo", rows="photo")


def test_data_uris_in_a_packed_file(tmp_path: Path) -> None:
    packed = tmp_path / "c.jsonl.gz"
    uri = f"data:image/png;base64,{base64.b64encode(b'x').decode()}"
    packed.write_bytes(gzip.compress(('{"item_id": "a", "image": "' + uri + '"}\n').encode()))
    refused(packed, "unpack it")


def test_folders_of_several_things(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("item_id,image\na,a.jpg\n")
    (tmp_path / "a.jpg").write_bytes(b"x")
    refused(tmp_path, "1 csv file(s), 1 photo(s)", "catalogue.format")
    assert read_photos(CatalogueConfig(source=str(tmp_path), format="folder"), FILES).num_rows == 1
    assert read_photos(CatalogueConfig(source=str(tmp_path), format="csv"), FILES).num_rows == 1
    refused(tmp_path, "holds no parquet files", format="parquet")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "readme.md").write_text("x")
    refused(empty, "neither tables", "readme.md")


def test_a_delta_table_would_bring_back_deleted_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"item_id": ["a"], "image": ["1"]}), tmp_path / "part-0.parquet")
    (tmp_path / "_delta_log").mkdir()
    (tmp_path / "_delta_log" / "0.json").write_text("{}")
    refused(tmp_path, "Delta Lake", "export its current rows")


def test_settings_that_a_folder_or_tar_shard_does_not_have(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    refused(tmp_path, "'sku'", "name, path, folder", error=ConfigError, item_id="sku")
    refused(tmp_path, "catalogue.version", error=ConfigError, version="v")
    refused(tmp_path, "catalogue.attributes", error=ConfigError, attributes=("x",))
    refused(tmp_path, "'score'", category="score")
    refused(tmp_path / "x.tar", "catalogue.version", error=ConfigError, version="v")
    refused(tmp_path / "x.tar.gz", "is packed")


def test_tar_shards_with_bad_members(tmp_path: Path) -> None:
    def shard(**members: bytes) -> Path:
        path = tmp_path / "s.tar"
        with tarfile.open(path, "w") as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(name.replace("_", "."))
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    refused(shard(a_json=b"{", a_jpg=b"x"), "the member 'a.json'", "is not JSON")
    refused(shard(a_json=b"[]", a_jpg=b"x"), "must hold a JSON object")
    refused(shard(a_json=b'{"score": 1}', a_jpg=b"x"), "'score'", "rename them", attributes=("score",))
    refused(shard(a_json=b'{"score": 1}', a_jpg=b"x"), "'score'", "rename them", category="score")
    assert (
        "score"
        not in read_photos(CatalogueConfig(source=str(shard(a_json=b'{"score": 1}', a_jpg=b"x"))), FILES).schema.names
    )
    refused(shard(a_json=b'{"n": 1}', b_json=b'{"n": "x"}', a_jpg=b"x"), "'n'", "of texts, and 1, of whole numbers")
    refused(shard(a_json=b'{"Colour": 1}', a_jpg=b"x"), "did you mean 'Colour'?", category="color")
    cut = shard(a_jpg=b"x" * 5000)
    cut.write_bytes(cut.read_bytes()[:2000])
    refused(cut, "is damaged")


def test_tar_shards_that_were_cut_or_put_one_behind_another(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(3):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = 700
            tar.addfile(info, io.BytesIO(b"x" * 700))
    whole = path.read_bytes()
    ended = 3 * (512 + 1024)
    silent = 0
    for length in range(0, ended + 1, 64):
        path.write_bytes(whole[:length])
        refused(path, "write it anew")
        with contextlib.suppress(tarfile.ReadError), tarfile.open(path) as cut:
            silent += len(cut.getmembers()) < 3  # known wrong: Python's own reader says nothing of what is not there
    assert silent > 10
    for length in (ended + 512, len(whole)):
        path.write_bytes(whole[:length])
        assert read_photos(CatalogueConfig(source=str(path)), FILES).num_rows == 3
    path.write_bytes(whole + whole)
    refused(path, f"up to byte {ended:,}", "two shards in one file")
    damaged = bytearray(whole)
    damaged[2 * (512 + 1024) + 150] ^= 1  # in the checksum of the last header
    path.write_bytes(damaged)
    refused(path, "a damaged header")


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"https_prefixes": ("https://cdn.example",)}, "a host and a slash"),
        ({"https_prefixes": ("http://cdn.example/",)}, "must begin with https://"),
        ({"item_id": "x", "image": "x"}, "must be two columns"),
        ({"attributes": ("a", "a")}, "lists 'a' twice"),
        ({"attributes": ("image",)}, "take it out"),
        ({"sourc": "x"}, "Extra inputs"),
    ],
)
def test_configs_that_cannot_be(settings: dict[str, Any], part: str) -> None:
    with pytest.raises(ValidationError) as caught:
        CatalogueConfig(source="x.csv", **settings)
    assert part in str(caught.value)


def test_a_limit_below_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        read_photos(CatalogueConfig(source=str(tmp_path)), FILES, limit=0)


def test_a_file_in_a_bucket_that_may_not_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    open_store("memory://catalogue-closed").put("c.csv", b"item_id,image\na,b.jpg\n")

    def denied(self: Files, uri_prefix: str) -> Any:
        raise Forbidden(f"{uri_prefix}: ListBucket denied")

    monkeypatch.setattr(Files, "list", denied)
    assert read_photos(CatalogueConfig(source="memory://catalogue-closed/c.csv"), FILES).num_rows == 1
    refused("memory://catalogue-closed/photos", "may not be read", "check the credentials")

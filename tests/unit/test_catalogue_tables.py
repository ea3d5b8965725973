"""Catalogue tables in every format and layout, read into photos."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.catalogue import CatalogueConfig, catalogue_notes, read_photos
from pipeline.schema import PHOTOS
from pipeline.storage import Files, open_store

FILES = Files()


def read(source: Path | str, **settings: Any) -> pa.Table:
    table = read_photos(CatalogueConfig(source=str(source), **settings), FILES)
    table.validate(full=True)
    assert table.schema.names[: len(PHOTOS)] == PHOTOS.names
    for field in PHOTOS:
        assert table.schema.field(field.name).type == field.type
    order = list(zip(table["item_id"].to_pylist(), table["view"].to_pylist(), strict=True))
    assert order == sorted(order)
    return table


def photos(table: pa.Table) -> list[tuple[str, str, int]]:
    return [(row["item_id"], row["uri"], row["view"]) for row in table.to_pylist()]


def sha(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_csv_with_relative_uris_keys_as_text_and_typed_attributes(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.csv"
    path.write_text(
        "sku,photo,category,price,stock,sale,code\n"
        "0012,images/b.jpg,Shoes,1.5,3,true,007\n"
        '0007,./images/a.jpg,"Bags, large",2,,FALSE,12\n'
        "12,images/x/../c.jpg,,1e3,-4,True,13\n"
    )
    table = read(path, item_id="sku", image="photo", category="category")
    assert photos(table) == [
        ("0007", f"{tmp_path}/images/a.jpg", 0),
        ("0012", f"{tmp_path}/images/b.jpg", 0),
        ("12", f"{tmp_path}/images/c.jpg", 0),
    ]
    assert table["token"].null_count == 3
    assert table.select(["category", "price", "stock", "sale", "code"]).to_pydict() == {
        "category": ["Bags, large", "Shoes", None],
        "price": [2.0, 1.5, 1000.0],
        "stock": [None, 3, -4],
        "sale": [False, True, True],
        "code": ["12", "007", "13"],  # a leading zero makes all of them text
    }
    assert table.schema.field("stock").type == pa.int64()


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_delimiters_byte_order_mark_and_line_breaks_in_cells(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "c.csv"
    rows = [["item_id", "image", "text"], ["1", "a.jpg", '"two\nlines"'], ["2", "b.jpg", '""']]
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join(delimiter.join(row) for row in rows).encode())
    table = read(path)
    assert table["item_id"].to_pylist() == ["1", "2"]
    assert table["text"].to_pylist() == ["two\nlines", None]


def test_csv_types_come_from_all_blocks_not_from_the_first(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    lines = "".join(f"{row:07},img/{row:07}-{'x' * 60}.jpg,{row}\n" for row in range(80_000))
    path.write_text("item_id,image,size\n" + lines + "9999999,last.jpg,XL\n")
    table = read(path)
    assert table.num_rows == 80_001
    assert table["size"][0].as_py() == "0"
    assert table["size"][80_000].as_py() == "XL"


def test_csv_with_lists_of_photos_as_json_text(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text('item_id,image\n2,"[""b.jpg"", ""a.jpg"", null, """", ""b.jpg""]"\n1,one.jpg\n3,[]\n4,"[null]"\n')
    table = read(path)
    assert photos(table) == [
        ("1", f"{tmp_path}/one.jpg", 0),
        ("2", f"{tmp_path}/b.jpg", 0),
        ("2", f"{tmp_path}/a.jpg", 1),
        ("3", "", 0),
        ("4", "", 0),
    ]
    notes = catalogue_notes(table)
    assert (notes.rows, notes.items, notes.photos, notes.no_image, notes.repeated) == (4, 4, 3, 2, 1)


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.string(), 2)])
def test_parquet_with_lists_of_photos(tmp_path: Path, kind: pa.DataType) -> None:
    cells = [["b", "a"], [None, "c"], None]
    table = pa.table({"item_id": ["y", "x", "z"], "image": pa.array(cells, kind), "n": [1, 2, 3]})
    pq.write_table(table, tmp_path / "c.parquet")
    found = read(tmp_path / "c.parquet")
    root = str(tmp_path)
    assert photos(found) == [("x", f"{root}/c", 0), ("y", f"{root}/b", 0), ("y", f"{root}/a", 1), ("z", "", 0)]
    assert found["n"].to_pylist() == [2, 1, 1, 3]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (pa.array([10, 9], pa.int64()), ["10", "9"]),
        (pa.array([2**64 - 1, 0], pa.uint64()), ["0", str(2**64 - 1)]),
        (pa.array([Decimal(10), Decimal(-2)], pa.decimal128(38, 0)), ["-2", "10"]),
        (pa.array(["b", "a"], pa.large_string()), ["a", "b"]),
        (pa.array(["b", "a"], pa.string_view()), ["a", "b"]),
        (pa.array(["b", "a"]).dictionary_encode(), ["a", "b"]),
    ],
)
def test_keys_of_every_type_become_text(tmp_path: Path, keys: pa.Array, expected: list[str]) -> None:
    pq.write_table(pa.table({"item_id": keys, "image": ["1.jpg", "2.jpg"]}), tmp_path / "c.parquet")
    assert read(tmp_path / "c.parquet")["item_id"].to_pylist() == expected


def test_keys_sort_by_utf8_bytes_whatever_their_script(tmp_path: Path) -> None:
    keys = ["é", "z", "Z", "日", "\U0001f600", "\uffff", "a\u0000b", "a"]
    pq.write_table(pa.table({"item_id": keys, "image": [f"{n}.jpg" for n in range(len(keys))]}), tmp_path / "c.parquet")
    found = read(tmp_path / "c.parquet")["item_id"].to_pylist()
    assert found == sorted(keys, key=lambda key: key.encode())


@pytest.mark.parametrize(
    "kind",
    [pa.binary(), pa.large_binary(), pa.binary(3), pa.struct([("bytes", pa.binary()), ("path", pa.string())])],
    ids=str,
)
def test_embedded_photos(tmp_path: Path, kind: pa.DataType) -> None:
    data = [b"abc", b"def", None, b"ghi"]
    cells = [None if d is None else {"bytes": d, "path": "p"} for d in data] if pa.types.is_struct(kind) else data
    table = pa.table({"item_id": ["3", "1", "0", "2"], "image": pa.array(cells, kind), "n": [3, 1, 0, 2]})
    pq.write_table(table, tmp_path / "c.parquet", row_group_size=2)
    found = read(tmp_path / "c.parquet")
    assert photos(found) == [("0", "", 0), ("1", sha(b"def"), 0), ("2", sha(b"ghi"), 0), ("3", sha(b"abc"), 0)]
    assert found["token"].to_pylist() == [None, sha(b"def"), sha(b"ghi"), sha(b"abc")]
    assert found["offset"].to_pylist() == [None, 1, 3, 0]
    assert found["source"].to_pylist() == [None] + [f"{tmp_path}/c.parquet"] * 3
    assert found["n"].to_pylist() == [0, 1, 2, 3]


@pytest.mark.slow
def test_large_embedded_photos_are_read_in_small_batches(tmp_path: Path) -> None:
    data = [bytes([row]) * 9_000_000 for row in range(12)]
    table = pa.table({"item_id": [f"{row:02}" for row in range(12)], "image": data})
    pq.write_table(table, tmp_path / "c.parquet", compression="none", use_dictionary=False)
    assert [row["uri"] for row in read(tmp_path / "c.parquet").to_pylist()] == [sha(value) for value in data]


def test_rows_of_photos_keep_their_order_of_appearance(tmp_path: Path) -> None:
    table = pa.table(
        {
            "item_id": ["b", "a", "b", "a", "c", "b", "c"],
            "image": ["z.jpg", "1.jpg", "y.jpg", None, None, "x.jpg", None],
            "side": list("1234567"),
        }
    )
    pq.write_table(table, tmp_path / "c.parquet")
    found = read(tmp_path / "c.parquet", rows="photo")
    root = str(tmp_path)
    assert photos(found) == [
        ("a", f"{root}/1.jpg", 0),
        ("b", f"{root}/z.jpg", 0),
        ("b", f"{root}/y.jpg", 1),
        ("b", f"{root}/x.jpg", 2),
        ("c", "", 0),
    ]
    assert found["side"].to_pylist() == ["2", "1", "3", "6", "5"]


def test_absolute_uris_stay_as_they_are(tmp_path: Path) -> None:
    uris = [
        "s3://b/k//x y%20.jpg",
        "/abs/a.jpg",
        "file:///abs/b.jpg",
        "memory://m/c.jpg",
        "https://cdn.example/p/d.jpg?v=1",
    ]
    pq.write_table(pa.table({"item_id": list("abcde"), "image": uris}), tmp_path / "c.parquet")
    found = read(tmp_path / "c.parquet", https_prefixes=("https://cdn.example/p/",))
    assert found["uri"].to_pylist() == uris


def test_jsonl_with_mixed_numbers_missing_fields_and_dates_as_text(tmp_path: Path) -> None:
    rows = [
        {"item_id": "2024-01-01", "image": ["2024-01-02", "b.jpg"], "price": 1, "when": "2024-01-03"},
        {"item_id": "b", "image": [], "price": 1.5, "nested": {"a": 1}},
        {"item_id": "c", "price": None},
    ]
    path = tmp_path / "c.jsonl"
    path.write_text("\n  \n".join(json.dumps(row) for row in rows) + "\n\r\n")
    found = read(path)
    root = str(tmp_path)
    assert photos(found) == [
        ("2024-01-01", f"{root}/2024-01-02", 0),
        ("2024-01-01", f"{root}/b.jpg", 1),
        ("b", "", 0),
        ("c", "", 0),
    ]
    assert found["price"].to_pylist() == [1.0, 1.0, 1.5, None]
    assert found["when"].to_pylist() == ["2024-01-03", "2024-01-03", None, None]
    assert catalogue_notes(found).skipped_columns == ("nested",)


def test_jsonl_of_many_blocks_agrees_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"item_id": row, "image": f"{row}.jpg", "size": row if row < 90 else row + 0.5} for row in range(100)]
    rows[3]["late"] = "only here"
    rows[0]["size"] = rows[1]["size"] = rows[2]["size"] = None  # whole blocks that do not know the type
    rows[50]["rating"] = 4.5
    path = tmp_path / "c.ndjson"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    whole = read(path)
    monkeypatch.setattr("pipeline.catalogue.jsonl._BLOCK_BYTES", 64)
    assert read(path).to_pylist() == whole.to_pylist()
    assert whole.num_rows == 100
    assert whole["size"].to_pylist()[-1] == 99.5
    assert whole.schema.field("rating").type == pa.float64()


def test_jsonl_with_photos_as_data_uris(tmp_path: Path) -> None:
    data = [bytes([row]) * (row + 1) for row in range(3)]
    rows = [
        {"item_id": row, "image": f"data:image/png;base64,{base64.b64encode(value).decode()}"}
        for row, value in enumerate(data)
    ]
    rows.insert(1, {"item_id": 9, "image": "plain.png"})
    path = tmp_path / "c.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in rows))
    found = read(path)
    assert found["uri"].to_pylist() == [*map(sha, data), f"{tmp_path}/plain.png"]
    assert found["token"].to_pylist() == [*map(sha, data), None]
    raw = path.read_bytes()
    for row in found.to_pylist()[:3]:
        assert json.loads(raw[row["offset"] : row["offset"] + row["length"]])["item_id"] == int(row["item_id"])


@pytest.mark.parametrize("name", ["c.csv.gz", "c.jsonl.gz"])
def test_packed_tables(tmp_path: Path, name: str) -> None:
    text = "item_id,image\n1,a.jpg\n" if "csv" in name else '{"item_id": 1, "image": "a.jpg"}\n'
    (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    assert photos(read(tmp_path / name)) == [("1", f"{tmp_path}/a.jpg", 0)]


def test_a_folder_of_files_is_one_table_and_its_path_holds_columns(tmp_path: Path) -> None:
    root = tmp_path / "catalogue.parquet"  # as Spark names its folders
    for number, category in enumerate(["Bags", "Shoes%20%26%20Boots", "__HIVE_DEFAULT_PARTITION__"]):
        folder = root / f"category={category}"
        folder.mkdir(parents=True)
        columns = {"item_id": [f"k{number}"], "image": [f"p{number}.jpg"], ("n" if number else "m"): [number]}
        pq.write_table(pa.table(columns), folder / "part-0.parquet")
        (folder / ".part-0.parquet.crc").write_bytes(b"x")
    (root / "_SUCCESS").write_bytes(b"")
    found = read(root, category="category")
    assert found["category"].to_pylist() == ["Bags", "Shoes & Boots", None]
    assert found["uri"].to_pylist() == [f"{root}/p{number}.jpg" for number in range(3)]
    assert (found["m"].to_pylist(), found["n"].to_pylist()) == ([0, None, None], [None, 1, 2])
    notes = catalogue_notes(found)
    assert (notes.files, notes.format, notes.skipped) == (3, "parquet", {".crc": 3, "_SUCCESS": 1})


def test_attributes_leave_out_what_holds_no_plain_values(tmp_path: Path) -> None:
    table = pa.table(
        {
            "item_id": ["1"],
            "image": ["a.jpg"],
            "tags": [["x"]],
            "thumb": [b"x"],
            "colour": pa.array(["red"]).dictionary_encode(),
            "nothing": pa.nulls(1),
            "price": pa.array([Decimal("1.50")]),
        }
    )
    pq.write_table(table, tmp_path / "c.parquet")
    found = read(tmp_path / "c.parquet")
    assert found.schema.names[len(PHOTOS) :] == ["colour", "nothing", "price"]
    assert found.schema.field("colour").type == found.schema.field("nothing").type == pa.string()
    assert catalogue_notes(found).skipped_columns == ("tags", "thumb")
    chosen = read(tmp_path / "c.parquet", attributes=("price",), category="colour")
    assert chosen.schema.names[len(PHOTOS) :] == ["colour", "price"]
    assert read(tmp_path / "c.parquet", attributes=()).schema.names == PHOTOS.names


def test_a_version_column_is_the_token_and_no_attribute(tmp_path: Path) -> None:
    table = pa.table({"item_id": ["a", "b"], "image": [["1", "2"], None], "v": [7, None], "w": ["x", "y"]})
    pq.write_table(table, tmp_path / "c.parquet")
    found = read(tmp_path / "c.parquet", version="v")
    assert found["token"].to_pylist() == ["version:7", "version:7", None]
    assert found.schema.names[len(PHOTOS) :] == ["w"]
    kept = read(tmp_path / "c.parquet", version="v", attributes=("v",))
    assert kept["v"].to_pylist() == [7, 7, None]


def test_sources_in_memory_and_as_file_urls(tmp_path: Path) -> None:
    store = open_store("memory://catalogue-tables")
    store.put("shop/catalogue.csv", b"item_id,image\n1,images/a.jpg\n2,memory://other/b.jpg\n")
    assert read("memory://catalogue-tables/shop/catalogue.csv")["uri"].to_pylist() == [
        "memory://catalogue-tables/shop/images/a.jpg",
        "memory://other/b.jpg",
    ]
    (tmp_path / "c.csv").write_text("item_id,image\n1,a.jpg\n")
    assert read(f"file://{tmp_path}/c.csv")["uri"].to_pylist() == [f"file://{tmp_path}/a.jpg"]


def test_local_uris_do_not_depend_on_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.csv").write_text("item_id,image\n1,a.jpg\n")
    monkeypatch.chdir(tmp_path)
    assert read("c.csv")["uri"].to_pylist() == [f"{tmp_path}/a.jpg"]


def test_a_sample_is_stable_and_grows_from_itself(tmp_path: Path) -> None:
    def write(items: int) -> CatalogueConfig:
        lines = [f'{row},"[""{row}-0.jpg"", ""{row}-1.jpg""]"' for row in range(items)]
        (tmp_path / "c.csv").write_text("\n".join(["item_id,image", *lines]))
        return CatalogueConfig(source=str(tmp_path / "c.csv"))

    def keys(config: CatalogueConfig, limit: int, seed: int = 0) -> set[str]:
        found = read_photos(config, FILES, limit=limit, seed=seed)
        assert found.num_rows == 2 * limit  # whole items
        assert catalogue_notes(found).items == limit
        assert catalogue_notes(found).sampled_from == config_items
        return set(found["item_id"].to_pylist())

    config_items = 1000
    config = write(config_items)
    small, large = keys(config, 50), keys(config, 100)
    assert small < large
    assert keys(config, 50) == small
    assert keys(config, 50, seed=1) != small
    config_items = 1100
    grown = keys(write(config_items), 100)
    assert len(grown & large) >= 80  # about 1 in 11 of the sample is new
    assert read_photos(write(5), FILES, limit=10).num_rows == 10


@pytest.mark.parametrize("space", [" ", "\t", "\x0b", "\x0c", "\x1c", "\x1f", "\x85", "\xa0", "\u2009", "\u3000"])
def test_cells_of_csv_are_trimmed_of_every_white_space(tmp_path: Path, space: str) -> None:
    path = tmp_path / "c.csv"
    lines = ["item_id;image;x", f"{space}a{space};{space}a.jpg;b {space} c", "b;b.jpg;", f"c;{space};", ""]
    path.write_text("\n".join(lines))
    rows = read_photos(CatalogueConfig(source=str(path)), Files()).to_pylist()
    assert [(row["item_id"], row["uri"].rpartition("/")[2], row["x"]) for row in rows] == [
        ("a", "a.jpg", f"b {space} c"), ("b", "b.jpg", None), ("c", "", None)
    ]  # fmt: skip


@pytest.mark.parametrize(("last", "kind"), [("7", pa.int64()), ("7.5", pa.float64()), ("XL", pa.string())])
def test_the_type_of_an_attribute_is_that_of_all_its_values(tmp_path: Path, last: str, kind: pa.DataType) -> None:
    path = tmp_path / "c.csv"
    rows = "".join(f"{number},a.jpg,{number}\n" for number in range(1500))
    path.write_text(f"item_id,image,size\n{rows}last,a.jpg,{last}\n")
    assert read_photos(CatalogueConfig(source=str(path)), Files()).schema.field("size").type == kind

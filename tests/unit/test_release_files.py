"""Tables in several files (manifests of format 2) and in one (format 1, byte for byte as before); look-ups in both."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError, IntegrityError, UnknownItem
from pipeline.index.item_files import ItemFiles
from pipeline.reader import open_release
from pipeline.release import (
    Manifest,
    absent,
    manifest_name,
    read_manifest,
    read_table,
    tables,
    verify_release,
    write_table,
)
from pipeline.release.manifest import check_format
from pipeline.release.tables import hashed_table, table_files
from pipeline.schema import ITEMS, stored_schema
from pipeline.storage import LocalStore, Store, open_store

ITEMS_COUNT = 60


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def cut() -> Any:
    """Return a `change` for `make_release` that writes every table by `table_files`."""

    def changed(fields: dict[str, Any]) -> dict[str, Any]:
        held = {role: fields["files"][role] for role in ("items", "quarantine", "changes")}
        again = {role: table_files(pq.read_table(io.BytesIO(data))) for role, (data, *_) in held.items()}
        return {**fields, "files": {**fields["files"], **again}}

    return changed


def made(maker: Any, store: Store, **given: Any) -> Any:
    refused = [(f"bad-{n:02d}", f"u/{n}", "decode", "truncated") for n in range(25)]
    removed = [f"gone-{n:02d}" for n in range(25)]
    photos = maker.some_photos(ITEMS_COUNT)
    return maker.make_release(store, photos, refused=refused, removed=removed, change=cut(), **given)


def test_one_file_has_the_bytes_that_it_always_had(maker: Any) -> None:
    photos = maker.some_photos(30)
    table = maker.items_table(photos, ["latents/m/a.parquet", "latents/m/b.parquet", "latents/m/c.parquet"])
    plain = table.cast(stored_schema(table.schema))
    assert plain.schema.field("latents_part").type == pa.string()
    sink = io.BytesIO()
    pq.write_table(plain.combine_chunks(), sink, compression="zstd")
    assert write_table(table) == sink.getvalue()
    assert write_table(pa.concat_tables([table.slice(0, 7), table.slice(7)])) == sink.getvalue()
    sink = io.BytesIO()
    pq.write_table(plain.combine_chunks(), sink, compression="zstd", row_group_size=10)
    assert write_table(table, group_rows=10) == sink.getvalue()
    empty = table.slice(0, 0)
    assert pq.read_table(io.BytesIO(write_table(empty))).schema == plain.schema


def test_a_small_release_is_of_format_1_and_a_long_one_of_format_2(
    maker: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = made(maker, store)
    document = json.loads(store.get(manifest_name(small.release_id)))
    assert document["format"] == 1
    assert {type(entry) for entry in document["files"].values()} == {dict}
    monkeypatch.setattr(tables, "FILE_ROWS", 10)
    long = made(maker, store, run="second", parent=small.release_id)
    data = store.get(manifest_name(long.release_id))
    document = json.loads(data)
    assert document["format"] == 2
    assert len(document["files"]["items"]) == -(-len(long.photos) // 10)
    assert [len(document["files"][role]) for role in ("quarantine", "changes", "index")] == [3, 3, 1]
    with pytest.raises(InputError, match="upgrade visual-codebooks"):
        check_format(document, "manifest.json", newest=1)  # what an earlier version says
    manifest = read_manifest(store, long.release_id)
    assert manifest.to_bytes() == data
    before, after = (read_table(store, read_manifest(store, one.release_id), "items") for one in (small, long))
    assert after["uri"].to_pylist() == before["uri"].to_pylist() == [photo.uri for photo in long.photos]
    assert after.schema.field("latents_part").type == ITEMS.field("latents_part").type
    assert read_table(store, manifest, "items", columns=["view"]).column_names == ["view"]
    assert read_table(store, manifest, "items", without=after.column_names[1:]).column_names == ["item_id"]
    some = read_table(store, manifest, "items", of_items=pa.array(["sku-003", "sku-050", "other"]))
    assert some.equals(after.filter(pc.is_in(after["item_id"], value_set=pa.array(["sku-003", "sku-050"]))))
    assert verify_release(store, long.release_id).problems == ()
    with pytest.raises(IntegrityError, match="files of the role 'items', expected one"):
        manifest.file("items")


def test_the_digest_of_a_table_is_that_of_its_one_file(maker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    table = maker.changes_table([f"i{n}" for n in range(30)])
    one = hashed_table(table)
    assert (one.digest, one.manifest_format) == (tables.digest_of(write_table(table)), 1)
    assert [file.data for file in one.files] == [write_table(table)]
    monkeypatch.setattr(tables, "FILE_ROWS", 20)
    several = hashed_table(table)
    assert several.manifest_format == 2
    assert several.digest != hashed_table(table.slice(0, 29)).digest
    assert [file.rows for file in several.files] == [20, 10]
    assert [file.rows for file in table_files(table.slice(0, 0))] == [0]


@pytest.mark.usefixtures("_cache")
@pytest.mark.parametrize("rows", [7, 10, 1000])
def test_a_reader_finds_the_same_in_several_files(
    maker: Any, store: Store, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(tables, "FILE_ROWS", rows)
    long = made(maker, store)
    release = open_release(store.url)
    assert release.item_ids() == sorted({photo.item_id for photo in long.photos})
    for item in ("sku-000", "sku-031", "sku-059"):
        maker.check(release.similar(item, 5), maker.brute_force(long, "cosine", long.means(item), 5, left_out=[item]))
    asked = ["sku-059", "sku-000", "sku-030"]
    found = release.latents(asked)
    expected = [(p.uri, p.view) for item in asked for p in long.photos if p.item_id == item]
    assert list(zip(found["uri"].to_pylist(), found["view"].to_pylist(), strict=True)) == expected
    with pytest.raises(UnknownItem, match=r"bad-24.*quarantined.*truncated"):
        release.similar("bad-24")
    with pytest.raises(UnknownItem, match=r"gone-24.*delisted"):
        release.similar("gone-24")
    with pytest.raises(UnknownItem, match="never seen"):
        release.similar("gone-25")


def test_a_damaged_second_file_is_found(maker: Any, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "FILE_ROWS", 10)
    long = made(maker, store)
    manifest = read_manifest(store, long.release_id)
    second = manifest.files["items"][1]
    path = Path(store.url.removeprefix("file://")) / second.name
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[:-1] + b"X")
    assert any(second.name in problem for problem in verify_release(store, long.release_id).problems)
    with pytest.raises(IntegrityError, match=second.name):
        read_table(store, manifest, "items")
    path.unlink()
    assert verify_release(store, long.release_id).problems == (f"{second.name} is missing",)


def test_manifests_that_fit_no_format_are_refused(maker: Any, store: Store) -> None:
    document = json.loads(store.get(manifest_name(made(maker, store).release_id)))
    one = document["files"]["items"]
    for wrong in ({"format": 1, "items": [one, one]}, {"format": 2, "items": one}, {"format": 2, "items": []}):
        files = {role: [entry] if wrong["format"] == 2 else entry for role, entry in document["files"].items()}
        with pytest.raises(ValueError, match="items"):
            Manifest.model_validate(
                {**document, "format": wrong["format"], "files": {**files, "items": wrong["items"]}}
            )


def test_rows_of_items_are_taken_across_files(tmp_path: Path) -> None:
    paths = []
    for number, rows in enumerate((5, 1, 9)):
        table = pa.table(
            {"item_id": [f"{number}-{row}" for row in range(rows)], "view": pa.array(range(rows), pa.int32())}
        )
        paths.append(str(tmp_path / f"{number}.parquet"))
        pq.write_table(table, paths[-1], row_group_size=3)
    whole = pa.concat_tables(pq.read_table(path) for path in paths)
    files = ItemFiles(paths, "items")
    for wanted in ([14, 0, 5, 5, 6, 4], [], [5], list(range(15))):
        got = files.rows(pa.array(wanted, pa.int64()).to_numpy(), ["view", "item_id"])
        assert got.to_pydict() == whole.select(["view", "item_id"]).take(pa.array(wanted, pa.int64())).to_pydict()


@pytest.mark.usefixtures("_cache")
def test_long_histories_are_looked_into_where_they_lie(
    maker: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first look-up of an unknown id fetched every night's changes whole, also of nights without removals."""
    first = made(maker, store, run="n1", counts={"removed": 25})
    calm = maker.make_release(store, maker.some_photos(3), run="n2", parent=first.release_id, counts={"removed": 0})
    maker.make_release(store, maker.some_photos(3), run="n3", parent=calm.release_id, counts={"removed": 0})
    monkeypatch.setattr(absent, "_SHORT", 0)
    opened: list[str] = []
    real = LocalStore.open

    def counted(self: LocalStore, name: str) -> Any:
        opened.append(name.split("/")[1][:2])
        return real(self, name)

    monkeypatch.setattr(LocalStore, "open", counted)
    release = open_release(store.url)
    with pytest.raises(UnknownItem, match=f"release {first.release_id} removed it"):
        release.similar("gone-07")
    assert opened == ["n3", "n1"], "its own quarantine, and the one night that removed something"
    changes = read_manifest(store, first.release_id).file("changes")
    path = Path(store.url.removeprefix("file://")) / changes.name
    held = path.read_bytes()
    path.unlink()
    with pytest.raises(UnknownItem, match="never seen"):
        release.similar("gone-07")  # that night is being expired
    path.write_bytes(held[:4] + b"more" + held[4:])
    with pytest.raises(IntegrityError, match="its manifest says"):
        release.similar("gone-07")

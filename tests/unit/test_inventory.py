"""S3 Inventories laid out as S3 writes them, on a real S3 server: tokens equal to a listing's, without a listing."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import time
import urllib.parse
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.catalogue import CatalogueConfig, read_photos, resolve_tokens
from pipeline.errors import InputError, NotFound
from pipeline.storage import Entry, Files, Store, open_store

pytestmark = pytest.mark.s3

KEYS = [*(f"images/{number:03}.jpg" for number in range(30)), 'images/odd + %41 ü, "q".jpg', "images/NA"]
SCHEMA = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag, StorageClass"


@pytest.fixture(scope="module")
def shop(s3_server: Any) -> str:
    root = str(s3_server.make_bucket("inventory-shop"))
    store = open_store(root)
    for key in KEYS:
        store.put(key, key.encode())
    table = pa.table({"item_id": [f"i{n}" for n in range(len(KEYS))], "image": KEYS})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    store.put("catalogue.parquet", sink.getvalue())
    return root


@pytest.fixture
def lists(s3_server: Any, request: pytest.FixtureRequest) -> Store:
    return open_store(str(s3_server.make_bucket(f"lists-{abs(hash(request.node.name)) % 10**9}")))


def csv_lines(entries: list[Entry], bucket: str) -> bytes:
    """As S3 has them: no header, every cell quoted, keys encoded as in a form; old versions and deletions beside."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    for entry in entries:
        key, etag = urllib.parse.quote_plus(entry.name, safe="/"), entry.token.removeprefix("etag:")
        for version, latest, deleted, tag in (
            ("new", "true", "false", etag), ("old", "false", "false", "0" * 32), ("gone", "false", "true", "")
        ):  # fmt: skip
            writer.writerow(
                [bucket, key, version, latest, deleted, entry.size, "2026-11-29T00:00:00.000Z", tag, "STANDARD"]
            )
    return gzip.compress(text.getvalue().encode())


def parquet_rows(entries: list[Entry], bucket: str) -> bytes:
    columns = {
        "bucket": [bucket] * len(entries), "key": [entry.name for entry in entries],
        "version_id": ["new"] * len(entries), "is_latest": [True] * len(entries),
        "is_delete_marker": [False] * len(entries), "size": [entry.size for entry in entries],
        "e_tag": [entry.token.removeprefix("etag:") for entry in entries],
    }  # fmt: skip
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def take_inventory(
    shop: str, lists: Store, *, kind: str = "CSV", leave_out: tuple[str, ...] = (), day: int = 29, **changes: Any
) -> str:
    """Write an inventory of two files, and return the folder of its configuration."""
    bucket = shop.removeprefix("s3://")
    entries = [entry for entry in open_store(shop).list("images/") if entry.name not in leave_out]
    made = csv_lines if kind == "CSV" else parquet_rows
    end, files = {"CSV": "csv.gz", "Parquet": "parquet"}[kind], []
    for number, part in enumerate((entries[:7], entries[7:])):
        data = made(part, bucket)
        key = f"logs/{bucket}/daily/data/{day}-{number}.{end}"
        lists.put(key, data)
        files.append({"key": key, "size": len(data), "MD5checksum": hashlib.md5(data).hexdigest()})
    manifest = {
        "sourceBucket": bucket, "destinationBucket": f"arn:aws:s3:::{lists.url.removeprefix('s3://')}",
        "version": "2016-11-30", "creationTimestamp": str(int(time.time() * 1000) - 86_400_000), "fileFormat": kind,
        "fileSchema": SCHEMA if kind == "CSV" else "message s3.inventory {...}", "files": files, **changes,
    }  # fmt: skip
    lists.put(f"logs/{bucket}/daily/2026-11-{day}T01-00Z/manifest.json", json.dumps(manifest).encode())
    lists.put(f"logs/{bucket}/daily/hive/dt=2026-11-{day}-01-00/symlink.txt", b"s3://...")
    return f"{lists.url}/logs/{bucket}/daily/"


def resolved(shop: str, inventory: str | None, known: pa.Table | None = None) -> tuple[pa.Table, Any]:
    config = CatalogueConfig(source=f"{shop}/catalogue.parquet", inventory=inventory)
    files = Files()
    table, cost = resolve_tokens(read_photos(config, files), config, files, known=known, max_bytes=1000)
    return table.select(["uri", "token", "reason"]), cost


def listings(server: Any, shop: str) -> int:
    asked = [path for _, path in server.requests() if path.startswith(shop.removeprefix("s3:/"))]
    return sum("list-type=2" in path and "prefix=images" in path for path in asked)


@pytest.mark.parametrize("kind", ["CSV", "Parquet"])
def test_tokens_are_those_of_a_listing_and_the_bucket_is_not_listed(
    s3_server: Any, shop: str, lists: Store, kind: str
) -> None:
    s3_server.reset_counts()
    listed, _ = resolved(shop, None)
    assert listings(s3_server, shop) == 1
    folder = take_inventory(shop, lists, kind=kind)
    s3_server.reset_counts()
    found, cost = resolved(shop, folder)
    assert found.equals(listed)
    assert (found["token"].null_count, found["reason"].null_count) == (0, len(KEYS))
    assert (cost.listed, cost.heads) == (len(KEYS), 0)
    assert listings(s3_server, shop) == 0


def test_the_newest_inventory_counts_and_what_it_lacks_is_asked_for(s3_server: Any, shop: str, lists: Store) -> None:
    listed, _ = resolved(shop, None)
    take_inventory(shop, lists, day=27, fileFormat="ORC")
    folder = take_inventory(shop, lists, leave_out=tuple(KEYS[3:5]))
    found, cost = resolved(shop, folder)
    assert found.equals(listed)
    assert cost.heads <= 2  # else by a listing, of as few names
    other, _ = resolved(shop, f"{folder}2026-11-29T01-00Z/manifest.json")
    assert other.equals(listed)


def test_a_photo_that_differs_from_the_last_release_is_asked_once_more(shop: str, lists: Store) -> None:
    """It may have been replaced again since the inventory was made."""
    listed, _ = resolved(shop, None)
    folder = take_inventory(shop, lists)
    tokens = ["etag:before", *listed["token"].to_pylist()[1:]]
    known = pa.table({"uri": listed["uri"], "token": pa.array(tokens, pa.string())})
    found, cost = resolved(shop, folder, known)
    assert found.equals(listed)
    assert cost.heads == 1


def test_inventories_that_cannot_be_used_are_refused(shop: str, lists: Store) -> None:
    with pytest.raises(NotFound, match="holds no inventory"):
        resolved(shop, f"{lists.url}/logs/other/")
    for changes, said in (
        ({"creationTimestamp": str(int((time.time() - 40 * 86_400) * 1000))}, "40 days ago"),
        ({"fileFormat": "ORC"}, "ORC"),
        ({"fileSchema": "Bucket, Key, Size"}, "no ETag"),
        ({"files": "none"}, "no manifest of an S3 Inventory"),
    ):
        folder = take_inventory(shop, lists, **changes)
        with pytest.raises(InputError, match=said):
            resolved(shop, folder)
    folder = take_inventory(shop, lists)
    key = f"logs/{shop.removeprefix('s3://')}/daily/data/29-1.csv.gz"
    lists.put(key, lists.get(key) + b" ")
    with pytest.raises(InputError, match=r"29-1\.csv\.gz is not the file"):
        resolved(shop, folder)


def test_the_setting_is_in_no_frozen_config_that_does_not_use_it() -> None:
    assert "inventory" not in CatalogueConfig(source="/a").model_dump()
    assert CatalogueConfig(source="/a", inventory="s3://b/c/").model_dump()["inventory"] == "s3://b/c/"
    with pytest.raises(ValueError, match="inventory"):
        CatalogueConfig(source="/a", inventory="photos")

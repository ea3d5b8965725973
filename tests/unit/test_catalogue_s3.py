"""Catalogues on a real S3 server."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.catalogue import CatalogueConfig, PhotoReader, catalogue_notes, compare, read_photos, resolve_tokens
from pipeline.errors import Forbidden, InputError, NotFound, PhotoRefused
from pipeline.storage import Body, Entry, Files, open_store

pytestmark = pytest.mark.s3

ODD = "images/odd + %41 ü.jpg"


@pytest.fixture(scope="module")
def bucket(s3_server: Any) -> str:
    root = str(s3_server.make_bucket("catalogue-photos"))
    store = open_store(root)
    for number in range(40):
        store.put(f"images/{number:03}.jpg", b"%d" % number)
    store.put(ODD, b"odd")
    other = str(s3_server.make_bucket("catalogue-other"))
    open_store(other).put("deep/er/x.jpg", b"x")
    lines = [f"{number:03},images/{number:03}.jpg" for number in range(40)]
    lines += [
        f'odd,"{ODD}"',
        "far,s3://catalogue-other/deep/er/x.jpg",
        "gone,images/gone.jpg",
        "no,s3://catalogue-nowhere/a.jpg",
    ]
    store.put("catalogue.csv", "\n".join(["item_id,image", *lines]).encode())
    return root


def test_relative_and_absolute_uris(bucket: str, s3_server: Any) -> None:
    files = Files()
    config = CatalogueConfig(source=f"{bucket}/catalogue.csv")
    table = read_photos(config, files)
    assert table.num_rows == 44
    s3_server.reset_counts()
    resolved, cost = resolve_tokens(table, config, files)
    assert s3_server.count_gets() == []  # no photo is read for its token
    # The two that no listing holds are confirmed by HEADs.
    assert (cost.listed, cost.heads) == (42, 2)
    reasons = {row["item_id"]: row["reason"] for row in resolved.to_pylist() if row["reason"]}
    assert reasons == {"gone": "missing", "no": "missing"}
    assert all(token.startswith("etag:") for token in resolved["token"].to_pylist() if token)
    found = dict(zip(resolved["item_id"].to_pylist(), PhotoReader(files, config).read(resolved), strict=True))
    assert found["007"] == b"7"
    assert found["odd"] == b"odd"
    assert found["far"] == b"x"
    for name in ("gone", "no"):
        refused = found[name]
        assert isinstance(refused, PhotoRefused)
        assert (refused.stage, refused.reason) == ("fetch", "missing")


def test_listing_and_heads_agree_on_every_token(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CatalogueConfig(source=f"{bucket}/catalogue.csv")
    table = read_photos(config, Files())
    listed, _ = resolve_tokens(table, config, Files())
    monkeypatch.setattr("pipeline.catalogue.listing.NAMES_MORE", -10_000)
    asked, cost = resolve_tokens(table, config, Files())
    assert cost.heads == 44
    assert asked["token"].to_pylist() == listed["token"].to_pylist()
    assert compare(asked, None, None).counts["added"] == 42


def test_a_changed_object_has_another_token(bucket: str) -> None:
    files = Files()
    store = open_store(bucket)
    store.put("changing/a.jpg", b"before")
    config = CatalogueConfig(source=f"{bucket}/changing")
    before = read_photos(config, files)["token"].to_pylist()
    assert read_photos(config, files)["token"].to_pylist() == before
    store.put("changing/a.jpg", b"after!")
    assert read_photos(config, files)["token"].to_pylist() != before


def test_a_folder_and_a_missing_bucket(bucket: str) -> None:
    config = CatalogueConfig(source=f"{bucket}/images/")
    table = read_photos(config, Files())
    assert table.num_rows == 41
    assert catalogue_notes(table).listed == 41
    resolved, cost = resolve_tokens(table, config, Files())
    assert cost.heads == 0
    assert PhotoReader(Files(), config).read(resolved.slice(0, 2)) == [b"0", b"1"]
    for source in ("s3://catalogue-nowhere/c.csv", f"{bucket}/nothing.csv", "s3://catalogue-nowhere/folder"):
        with pytest.raises(InputError, match="check the path and the bucket") as caught:
            read_photos(CatalogueConfig(source=source), Files())
        assert source in str(caught.value)


def test_a_long_folder_is_listed_in_ranges_at_once(
    bucket: str, s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One prefix of 100 million names took 100,000 requests one after the other."""
    config = CatalogueConfig(source=f"{bucket}/catalogue.csv")
    plain, cost = resolve_tokens(read_photos(config, Files()), config, Files())
    monkeypatch.setattr("pipeline.catalogue.listing._RANGE", 10)
    photos = read_photos(config, Files())
    s3_server.reset_counts()
    ranged, again = resolve_tokens(photos, config, Files())
    assert ranged.equals(plain)
    assert again == cost
    asked = [path for _, path in s3_server.requests() if "list-type=2" in path and "prefix=images" in path]
    assert len(asked) == 4, asked
    assert sum("start-after=images" in path for path in asked) == 3


def test_embedded_photos_and_tar_shards_are_read_by_ranges(bucket: str, s3_server: Any) -> None:
    store = open_store(bucket)
    sink = io.BytesIO()
    data = [bytes([number]) * 1000 for number in range(30)]
    pq.write_table(pa.table({"item_id": list(range(30)), "image": data}), sink, row_group_size=10)
    store.put("tables/c.parquet", sink.getvalue())
    shard = io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w") as tar:
        for number, value in enumerate(data):
            info = tarfile.TarInfo(f"{number:03}.jpg")
            info.size = len(value)
            tar.addfile(info, io.BytesIO(value))
    store.put("shards/0.tar", shard.getvalue())
    for source in ("tables", "shards"):
        config = CatalogueConfig(source=f"{bucket}/{source}")
        resolved, cost = resolve_tokens(read_photos(config, Files()), config, Files())
        assert (cost.listed, cost.heads) == (0, 0)
        expected = {
            row["uri"]: data[number]
            for number, row in enumerate(sorted(resolved.to_pylist(), key=lambda row: row["offset"]))
        }
        assert PhotoReader(Files(), config).read(resolved) == [expected[uri] for uri in resolved["uri"].to_pylist()]


class Guarded(Files):
    """An S3 client that may not see one folder: moto checks no policies, so the 403 is made here."""

    def list(self, uri_prefix: str, *, after: str = "") -> Iterator[tuple[str, Entry]]:
        raise Forbidden(f"{uri_prefix}: AccessDenied (HTTP 403)")

    def stat(self, uri: str) -> Entry:
        self._guard(uri)
        return super().stat(uri)

    def fetch(self, uri: str, **bounds: Any) -> Body:
        self._guard(uri)
        return super().fetch(uri, **bounds)

    def _guard(self, uri: str) -> None:
        if "/03" in uri:
            raise Forbidden(f"{uri}: AccessDenied (HTTP 403)")
        if "/02" in uri:
            raise NotFound(f"{uri} is not there (HTTP 404)")


def test_forbidden_photos_are_refused_and_the_others_read(bucket: str) -> None:
    config = CatalogueConfig(source=f"{bucket}/catalogue.csv")
    files = Guarded()
    resolved, cost = resolve_tokens(read_photos(config, Files()), config, files)
    assert (cost.listed, cost.heads) == (0, 44)
    assert resolved["reason"].to_pylist().count("forbidden") == 10
    assert resolved["reason"].to_pylist().count("missing") == 12
    found = PhotoReader(files, config).read(resolved)
    assert [photo.reason for photo in found if isinstance(photo, PhotoRefused)].count("forbidden") == 10


def test_a_table_that_may_not_be_read(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Files, uri: str) -> Any:
        raise Forbidden(f"{uri}: AccessDenied (HTTP 403)")

    monkeypatch.setattr(Files, "open", denied)
    with pytest.raises(InputError, match=r"may not be read .*AccessDenied.* check the credentials"):
        read_photos(CatalogueConfig(source=f"{bucket}/catalogue.csv"), Files())

"""What a catalogue may name: its own place and the allowed prefixes, whatever a cell, a link or an address says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from pipeline.catalogue import (
    CatalogueConfig,
    PhotoReader,
    catalogue_files,
    prefixes_to_add,
    read_photos,
    resolve_tokens,
)
from pipeline.catalogue.allowed import check_living, judge, own_place
from pipeline.errors import ConfigError, InputError, NotAllowed, PhotoRefused
from pipeline.storage import Places, open_store
from pipeline.storage.addresses import address_of, leaves_its_path, names_loopback, refused_ip, shown


def resolved(source: Path | str, **settings: Any) -> list[dict[str, Any]]:
    config = CatalogueConfig(source=str(source), **settings)
    files = catalogue_files(config)
    table, _ = resolve_tokens(read_photos(config, files), config, files)
    return list(table.to_pylist())


def shop(tmp_path: Path, *cells: str) -> Path:
    """A shop's folder with a table of these cells, beside a folder that is not the shop's."""
    (tmp_path / "shop" / "photos").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (tmp_path / "shop" / "photos" / "a.jpg").write_bytes(b"photo")
    (tmp_path / "secret" / "key").write_bytes(b"aws_secret_access_key")
    lines = "\n".join(f'{number},"{cell}"' for number, cell in enumerate(cells))
    (tmp_path / "shop" / "c.csv").write_text(f"item_id,image\n{lines}\n")
    return tmp_path / "shop" / "c.csv"


@pytest.mark.parametrize(
    "cell",
    ["{0}/secret/key", "file://{0}/secret/key", "file://localhost{0}/secret/key", "../secret/key",
     "photos/../../secret/key",
     "photos/out.jpg", "photos/folder/key", "file://{0}/shop/photos/%2e%2e/%2e%2e/secret/key",
     "file://{0}/shop/photos/out.jpg", "{0}/shop-of-others/a.jpg"],
)  # fmt: skip
def test_local_files_outside_of_the_folder_are_not_allowed(tmp_path: Path, cell: str) -> None:
    table = shop(tmp_path, "photos/a.jpg", cell.format(tmp_path))
    (tmp_path / "shop-of-others").mkdir()
    (tmp_path / "shop-of-others" / "a.jpg").write_bytes(b"photo")
    (tmp_path / "shop" / "photos" / "out.jpg").symlink_to(tmp_path / "secret" / "key")
    (tmp_path / "shop" / "photos" / "folder").symlink_to(tmp_path / "secret")
    inside, outside = resolved(table)
    assert inside["reason"] is None
    assert inside["token"].startswith("stat:5:")
    assert (outside["stage"], outside["reason"], outside["token"]) == ("plan", "not_allowed", "")
    wanted = tmp_path / ("shop-of-others" if "others" in cell else "secret")
    assert list(prefixes_to_add(pa.chunked_array([[outside["detail"]]]))) == [f"{wanted}/"]
    # What the message proposes is what is missing.
    assert [row["reason"] for row in resolved(table, allowed_prefixes=(f"{wanted}/",))] == [None, None]


def test_links_inside_and_linked_folders_are_allowed(tmp_path: Path) -> None:
    table = shop(tmp_path, "photos/a.jpg", "photos/b.jpg")
    (tmp_path / "shop" / "photos" / "b.jpg").symlink_to(tmp_path / "shop" / "photos" / "a.jpg")
    (tmp_path / "linked").symlink_to(tmp_path / "shop")
    assert [row["reason"] for row in resolved(table)] == [None, None]
    assert [row["reason"] for row in resolved(tmp_path / "linked" / "c.csv")] == [None, None]


def test_a_folder_of_photos_is_held_to_itself(tmp_path: Path) -> None:
    shop(tmp_path)
    (tmp_path / "shop" / "photos" / "b.jpg").symlink_to(tmp_path / "secret" / "key")
    rows = {row["item_id"]: row["reason"] for row in resolved(tmp_path / "shop" / "photos")}
    assert rows == {"a": None, "b": "not_allowed"}


def test_a_link_made_after_the_plan_is_not_followed_out(tmp_path: Path) -> None:
    table = shop(tmp_path, "photos/a.jpg")
    config = CatalogueConfig(source=str(table))
    files = catalogue_files(config)
    photos, _ = resolve_tokens(read_photos(config, files), config, files)
    assert PhotoReader(files, config).read(photos) == [b"photo"]
    (tmp_path / "shop" / "photos" / "a.jpg").unlink()
    (tmp_path / "shop" / "photos" / "a.jpg").symlink_to(tmp_path / "secret" / "key")
    (refused,) = PhotoReader(files, config).read(photos)
    assert isinstance(refused, PhotoRefused)
    assert (refused.stage, refused.reason) == ("fetch", "not_allowed")
    assert "aws" not in refused.detail


def test_a_named_pipe_holds_nobody(tmp_path: Path) -> None:
    table = shop(tmp_path, "photos/pipe.jpg")
    os.mkfifo(tmp_path / "shop" / "photos" / "pipe.jpg")
    (row,) = resolved(table)
    assert row["reason"] == "missing"


def test_buckets_and_tables_from_elsewhere(tmp_path: Path) -> None:
    cells = ["b.jpg", "memory://allowed-shop/p/c.jpg", "memory://allowed-other/d.jpg", "memory://allowed-shop-2/e.jpg",
             "s3://bucket/f.jpg", "/etc/passwd", "file:///etc/passwd", "../../g.jpg", "gs://bucket/h.jpg",
             "http://shop.example/i.jpg", "https://cdn.example.evil.net/p/j.jpg", "https://cdn.example/q/k.jpg",
             "https://cdn.example/p/..%252f..%252fl.jpg", "https://me:pa55@cdn.example/p/m.jpg"]  # fmt: skip
    lines = "\n".join(f"{number:02},{cell}" for number, cell in enumerate(cells))
    open_store("memory://allowed-shop").put("t/c.csv", f"item_id,image\n{lines}\n".encode())
    open_store("memory://allowed-shop").put("t/b.jpg", b"b")
    open_store("memory://allowed-shop").put("p/c.jpg", b"c")
    open_store("memory://allowed-other").put("d.jpg", b"d")
    rows = resolved("memory://allowed-shop/t/c.csv", allowed_prefixes=("https://cdn.example/p/",))
    assert [row["reason"] for row in rows] == [
        None, None, "not_allowed", "not_allowed", "not_allowed", "not_allowed", "not_allowed", "not_allowed", "bad_uri",
        "bad_uri", "not_allowed", "not_allowed", "not_allowed", "bad_uri",
    ]  # fmt: skip
    assert "photos are read from s3://" in rows[8]["detail"]
    proposed = prefixes_to_add(pa.chunked_array([[row["detail"] for row in rows]]))
    assert set(proposed) == {
        "memory://allowed-other/", "memory://allowed-shop-2/", "s3://bucket/", "/etc/", "https://cdn.example.evil.net/",
        "https://cdn.example/",
    }  # fmt: skip
    assert "pa55" not in str(rows[13]["uri"]) + rows[13]["detail"]
    allowed = ("memory://allowed-other", "https://cdn.example/p/")
    assert resolved("memory://allowed-shop/t/c.csv", allowed_prefixes=allowed)[2]["reason"] is None


def test_tokens_from_a_version_column_are_judged_too(tmp_path: Path) -> None:
    table = shop(tmp_path)
    table.write_text(f"item_id,image,v\n1,photos/a.jpg,7\n2,{tmp_path}/secret/key,7\n")
    rows = resolved(table, version="v")
    assert [(row["token"], row["reason"]) for row in rows] == [("version:7", None), ("", "not_allowed")]


def test_a_setting_does_not_delist_what_lives(tmp_path: Path) -> None:
    table = shop(tmp_path, "photos/a.jpg", *(f"{tmp_path}/secret/{number}.jpg" for number in range(12)))
    rows = pa.Table.from_pylist(resolved(table))
    items = rows.select(["item_id", "uri"])
    with pytest.raises(NotAllowed, match=rf"12 photos of the current release .*allowed_prefixes: {tmp_path}/secret/\."):
        check_living(rows, items, 0.01)
    check_living(rows, items, 1.0)
    check_living(rows, None, 0.01)  # a first night delists nothing
    check_living(rows, items.slice(0, 10), 0.01)  # nine of them lived: single photos


def test_data_uris_outside_of_json_lines_are_rows_without_their_bytes(tmp_path: Path) -> None:
    table = shop(tmp_path, "photos/a.jpg", "data:image/png;base64,c2VjcmV0")
    rows = resolved(table)
    assert [row["reason"] for row in rows] == [None, "bad_uri"]
    assert "c2VjcmV0" not in rows[1]["uri"] + rows[1]["detail"]
    assert "in Parquet use a binary column" in rows[1]["detail"]


def test_the_own_place_of_a_source(tmp_path: Path) -> None:
    table = shop(tmp_path)
    assert own_place(str(table)) == f"{tmp_path}/shop/"
    assert own_place(f"{tmp_path}/shop/") == f"{tmp_path}/shop/"
    assert own_place("s3://bucket/a/b.parquet") == "s3://bucket/"
    assert own_place("https://host/a/b.csv") == "https://host/a/"


def test_many_plain_uris_cost_a_comparison_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Places, "check", lambda *_: pytest.fail("looked at one by one"))
    uris = pa.chunked_array([[f"s3://shop/p/{number}.jpg" for number in range(1000)], [None, "s3://shop/last.jpg"]])
    assert judge(uris, Places(("s3://shop/",))).reason.null_count == 1002


def test_prefixes_that_are_none(tmp_path: Path) -> None:
    for prefix in ("photos/", "http://host/", "https://host", "https://me@host/", "s3://", "gs://b/", "https://h/?a=b"):
        with pytest.raises(ValidationError, match="is no place of photos; write s3://BUCKET/"):
            CatalogueConfig(source="x", allowed_prefixes=(prefix,))
    CatalogueConfig(source="x", allowed_prefixes=("s3://b", "/a", "file:///a/", "https://host/a"))


@pytest.mark.parametrize(
    ("ip", "refused"),
    [
        ("169.254.169.254", True), ("169.254.0.1", True), ("fe80::1", True), ("fe80::1%eth0", True),
        ("100.100.100.200", True), ("fd00:ec2::254", True), ("::ffff:169.254.169.254", True),
        ("::169.254.169.254", True),
        ("2002:a9fe:a9fe::", True), ("64:ff9b::a9fe:a9fe", True), ("93.184.216.34", False), ("10.0.0.5", False),
        ("2606:2800:220:1::1", False), ("100.100.100.201", False),
    ],
)  # fmt: skip
def test_link_local_and_metadata_addresses_are_never_asked(ip: str, refused: bool) -> None:
    for loopback in (True, False):
        assert (refused_ip(ip, loopback=loopback) is not None) == refused


@pytest.mark.parametrize("ip", ["127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1", "0.1.2.3"])
def test_loopback_only_where_it_is_named(ip: str) -> None:
    assert refused_ip(ip, loopback=True) is None
    assert "this machine itself" in (refused_ip(ip, loopback=False) or "")


def test_hosts_that_are_this_machine() -> None:
    for host in ("localhost", "a.localhost", "127.0.0.1", "::1", "2130706433", "0x7f000001", "0177.0.0.1", "127.1"):
        assert names_loopback(host)
    for host in ("shop.example", "10.0.0.1", "localhost.shop.example", "169.254.169.254", "2852039166"):
        assert not names_loopback(host)


def test_nobody_is_told_to_allow_what_is_never_asked(tmp_path: Path) -> None:
    hosts = ("169.254.169.254", "2852039166", "0xa9fea9fe", "[fd00:ec2::254]", "[::ffff:169.254.169.254]")
    rows = resolved(shop(tmp_path, *(f"https://{host}/latest/a.jpg" for host in hosts)))
    assert [row["reason"] for row in rows] == ["not_allowed"] * len(hosts)
    assert all("never asked" in row["detail"] for row in rows)
    assert prefixes_to_add(pa.array([row["detail"] for row in rows])) == {}


def test_addresses_are_shown_without_secrets() -> None:
    assert shown("https://me:pa55@host:1/a.jpg?X-Amz-Signature=abc") == "https://***@host:1/a.jpg?..."
    assert shown("https://host/a@b.jpg") == "https://host/a@b.jpg"
    assert shown("s3://bucket/a?b") == "s3://bucket/a?b"
    with pytest.raises(ConfigError) as caught:
        address_of("https://me:pa55@host/a.jpg?sig=abc")
    assert "pa55" not in str(caught.value)
    assert "abc" not in str(caught.value)


def test_paths_that_lead_elsewhere_however_often_they_are_escaped() -> None:
    for path in ("/a/../b", "/a/%2e%2e/b", "/a/%252e%252e/b", "/a/..%2fb", "/a/..%5cb", "/a/%2E/b"):
        assert leaves_its_path(f"https://host{path}")
    for path in ("/a..b/c", "/...", "/a%2fb", "/a?b=../c"):
        assert not leaves_its_path(f"https://host{path}")


def test_a_path_that_no_file_can_have() -> None:
    for uri in ("/a\0b.jpg", "/\ud800.jpg"):
        with pytest.raises((InputError, ConfigError), match=r"NUL|no file|UTF-8"):
            Places(("/shop/",)).check(uri)

"""Signed addresses: what of them is a photo's identity, and what is a credential."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.catalogue import CatalogueConfig, compare, read_photos
from pipeline.catalogue.identity import identities, identity
from pipeline.storage import Files

# Two signed forms of one address, as each service documents them, and what both name.
SIGNED = {
    "sigv4": (
        ("https://b.s3.amazonaws.com/a.jpg?versionId=7&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIA%2F20261129"
        "&X-Amz-Date={0}&X-Amz-Expires=900&X-Amz-SignedHeaders=host&x-id=GetObject&X-Amz-Signature=ab{0}"),
        "https://b.s3.amazonaws.com/a.jpg?versionId=7",
    ),
    "sigv2": (
        "https://b.s3.amazonaws.com/a.jpg?AWSAccessKeyId=AKIA&Expires={0}&Signature=ab%2F{0}%3D",
        "https://b.s3.amazonaws.com/a.jpg",
    ),
    "cloudfront": (
        "https://d1.cloudfront.net/a.jpg?w=200&Expires={0}&Signature=a-{0}_~&Key-Pair-Id=K2",
        "https://d1.cloudfront.net/a.jpg?w=200",
    ),
    "cloudfront policy": (
        "https://d1.cloudfront.net/a.jpg?Policy=ey{0}&Signature=a-{0}&Key-Pair-Id=K2&Hash-Algorithm=SHA1",
        "https://d1.cloudfront.net/a.jpg",
    ),
    "gcs v4": (
        ("https://storage.googleapis.com/b/a.jpg?X-Goog-Algorithm=GOOG4-RSA-SHA256&X-Goog-Credential=c&X-Goog-Date={0}"
        "&X-Goog-Expires=9&X-Goog-SignedHeaders=host&X-Goog-Signature=ff{0}&generation=3"),
        "https://storage.googleapis.com/b/a.jpg?generation=3",
    ),
    "gcs v2": ("https://s.example/a.jpg?GoogleAccessId=me&Expires={0}&Signature=x{0}", "https://s.example/a.jpg"),
    "azure": (
        "https://a.blob.core.windows.net/c/a.jpg?sv=2023-11-03&st={0}&se={0}&sr=b&sp=r&sig=q{0}%3D&snapshot=5",
        "https://a.blob.core.windows.net/c/a.jpg?snapshot=5",
    ),
    "akamai": (
        "https://cdn.example/a.jpg?size=2&hdnts=exp={0}~acl=/*~hmac=abcdef0123456789",
        "https://cdn.example/a.jpg?size=2",
    ),
    "imgix": (
        "https://shop.imgix.net/a.jpg?w=300&expires={0}&s=0123456789abcdef0123456{0}",
        "https://shop.imgix.net/a.jpg?w=300",
    ),
    "oss": (
        "https://b.oss.aliyuncs.com/a.jpg?x-oss-process=image/resize,w_9&OSSAccessKeyId=k&Expires={0}&Signature=s{0}",
        "https://b.oss.aliyuncs.com/a.jpg?x-oss-process=image/resize,w_9",
    ),
    "cos": (
        ("https://b.cos.example/a.jpg?q-sign-algorithm=sha1&q-ak=k&q-sign-time={0}&q-key-time={0}&q-header-list=host"
        "&q-url-param-list=&q-signature=f{0}"),
        "https://b.cos.example/a.jpg",
    ),
    "json web token": (
        "https://p.supabase.co/object/sign/a.jpg?token=eyJhbGciOiJIUzI1NiJ9.eyJleHAi{0}.sig-{0}&v=2",
        "https://p.supabase.co/object/sign/a.jpg?v=2",
    ),
    "bunny": ("https://b.b-cdn.net/a.jpg?token=h{0}&expires={0}", "https://b.b-cdn.net/a.jpg"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SIGNED)
def test_signatures_are_dropped_and_the_rest_stays(kind: str) -> None:
    pattern, named = SIGNED[kind]
    nights = [pattern.format(night) for night in ("179034561", "179043201")]
    assert {identity(address, "auto") for address in nights} == {named}
    assert {identity(address, "full") for address in nights} == set(nights)
    assert {identity(address, "path") for address in nights} == {named.partition("?")[0]}


@pytest.mark.parametrize(
    "address",
    [
        "https://cdn.shopify.com/a.jpg?v=1790345610&width=800", "https://h/image.php?id=7&s=300&sp=red&st=2&expires=no",
        "https://h/a.jpg?token=abc", "https://h/a.jpg?policy=1&se=2", "https://h/a.jpg#x", "https://h/a.jpg?a=b&c",
        "s3://b/a.jpg?Signature=1", "/folder/a.jpg?sig=1", "https://h/a@2x.jpg",
    ],
)  # fmt: skip
def test_what_is_no_signature_stays(address: str) -> None:
    for rule in ("auto", "full"):
        assert identities(pa.array([address]), rule).to_pylist() == [address]


def test_users_and_passwords_are_never_an_identity() -> None:
    assert identity("https://me:word@host/a.jpg", "auto") == "https://***@host/a.jpg"


def night(tmp_path: Path, stamp: str, **settings: Any) -> pa.Table:
    cells = [f"https://cdn.example/{n}.jpg?w=1&X-Amz-Date={stamp}&X-Amz-Signature=f{stamp}" for n in "ab"]
    pq.write_table(pa.table({"item_id": ["a", "b"], "image": cells}), tmp_path / "c.parquet")
    settings = {"source": str(tmp_path / "c.parquet"), "allowed_prefixes": ("https://cdn.example/",), **settings}
    return read_photos(CatalogueConfig(**settings), Files())


def test_another_night_is_the_same_photos_at_new_addresses(tmp_path: Path) -> None:
    first, second = night(tmp_path, "20261129"), night(tmp_path, "20261130")
    assert first["uri"].to_pylist() == ["https://cdn.example/a.jpg?w=1", "https://cdn.example/b.jpg?w=1"]
    assert first["uri"] == second["uri"]
    assert "20261130" in second["signed_uri"][0].as_py()
    token = pa.array(['etag:"1"', 'etag:"2"'])
    items = pa.table({
        "item_id": first["item_id"], "uri": first["uri"], "view": first["view"], "token": token,
        "digest": ["1", "2"], "latents_part": ["p", "p"], "latents_row": pa.array([0, 1], pa.int32()),
        "pixels_part": pa.nulls(2, pa.string()), "pixels_row": pa.nulls(2, pa.int32()),
    })  # fmt: skip
    tonight = second.set_column(second.schema.get_field_index("token"), "token", token)
    counts = compare(tonight, items, None).counts
    assert (counts["same"], counts["added"], counts["removed"]) == (2, 0, 0)
    full = night(tmp_path, "20261130", uri_identity="full")
    assert "20261130" in full["uri"][0].as_py()
    assert full["signed_uri"].null_count == 2


def test_plain_addresses_have_no_second_form(tmp_path: Path) -> None:
    pq.write_table(pa.table({"item_id": ["a"], "image": ["p.jpg"]}), tmp_path / "c.parquet")
    photos = read_photos(CatalogueConfig(source=str(tmp_path / "c.parquet")), Files())
    assert photos["signed_uri"].to_pylist() == [None]

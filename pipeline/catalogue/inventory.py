"""Tokens of photos from an S3 Inventory: the bucket's own daily list of its objects, instead of asking for one.

Format: https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html
"""

from __future__ import annotations

import hashlib
import re
import time
import urllib.parse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import InputError, NotFound
from ..ordering import joined, take_rows
from ..storage import Files

_READERS = 8  # files read at once
_OLDEST_DAYS = 10.0  # weekly inventories are the rarest, and late by up to two days
_NIGHT = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}-\d{2}Z/manifest\.json$")
_PARQUET = {"Bucket": "bucket", "Key": "key", "ETag": "e_tag", "Size": "size", "IsLatest": "is_latest",
            "IsDeleteMarker": "is_delete_marker"}  # fmt: skip
_NAMES = pa.schema([pa.field("uri", pa.large_string()), pa.field("token", pa.string()), pa.field("size", pa.int64())])


class _File(BaseModel):
    key: str
    size: int = Field(ge=0)
    md5: str = Field(alias="MD5checksum")


class _Manifest(BaseModel):
    """What is needed of an inventory's manifest.json."""

    model_config = ConfigDict(extra="ignore")

    source: str = Field(alias="sourceBucket")
    destination: str = Field(alias="destinationBucket")
    created: int = Field(alias="creationTimestamp", ge=0)  # milliseconds
    kind: str = Field(alias="fileFormat")
    columns: str = Field(alias="fileSchema")
    files: list[_File]


@dataclass(frozen=True, slots=True)
class Inventoried:
    """What an inventory says of photos. tokens, sizes: null where it lacks one; listed: objects that it names."""

    tokens: pa.ChunkedArray
    sizes: pa.ChunkedArray
    listed: int


def inventory_tokens(uris: pa.Array, inventory: str, files: Files) -> Inventoried:
    """Return what an inventory says of these distinct URIs (large_string).

    inventory: the URI of a manifest.json, or of the folder of an inventory configuration, whose newest one is taken.
    What an object without a line was, nobody knows: it may be newer than the inventory. Raises InputError for an
    inventory that is too old, damaged, of ORC files or without ETags, NotFound where there is none.
    """
    at = inventory if inventory.endswith("manifest.json") else _newest(inventory, files)
    manifest = _read_manifest(at, files)
    root = f"s3://{manifest.destination.removeprefix('arn:aws:s3:::')}"
    with ThreadPoolExecutor(_READERS) as pool:
        tables = list(pool.map(lambda file: _objects(f"{root}/{file.key}", file, manifest, files), manifest.files))
    names = pa.concat_tables([_NAMES.empty_table(), *tables])
    place = pc.index_in(uris, value_set=names["uri"])
    said = take_rows(names.select(["token", "size"]), place)
    return Inventoried(said["token"], said["size"], names.num_rows)


def _newest(folder: str, files: Files) -> str:
    found = [uri for uri, _ in files.list(folder) if _NIGHT.search(uri)]
    if not found:
        raise NotFound(
            f"catalogue.inventory {folder} holds no inventory (.../2026-11-29T01-00Z/manifest.json); name the folder "
            "of one inventory configuration, and note that the first one comes up to two days after it was set up"
        )
    return max(found)


def _read_manifest(uri: str, files: Files) -> _Manifest:
    try:
        manifest = _Manifest.model_validate_json(files.read(uri))
    except ValidationError as error:
        raise InputError(f"{uri} is no manifest of an S3 Inventory: {error}") from error
    if manifest.kind not in ("CSV", "Parquet"):
        raise InputError(f"{uri} is an inventory of {manifest.kind} files; set it up with the format CSV or Parquet")
    days = (time.time() - manifest.created / 1000) / 86_400
    if days > _OLDEST_DAYS:
        raise InputError(
            f"{uri} was made {days:.0f} days ago, and an inventory is taken for {_OLDEST_DAYS:.0f} days; is it still "
            "set up? Take catalogue.inventory away to have photos listed instead"
        )
    if manifest.kind == "CSV":
        lacking = {"Bucket", "Key", "ETag"} - set(_csv_columns(manifest))
        if lacking:
            raise InputError(f"{uri} has no {', '.join(sorted(lacking))}; add the optional field ETag to the inventory")
    return manifest


def _csv_columns(manifest: _Manifest) -> list[str]:
    return [name.strip() for name in manifest.columns.split(",")]


def _objects(uri: str, file: _File, manifest: _Manifest, files: Files) -> pa.Table:
    """Return the objects that one file of an inventory names, as they are now: no old version and no deleted one."""
    data = files.read(uri)
    if len(data) != file.size or hashlib.md5(data, usedforsecurity=False).hexdigest() != file.md5.lower():
        raise InputError(f"{uri} is not the file that its inventory's manifest names; take an inventory that is whole")
    table = _of_csv(data, _csv_columns(manifest)) if manifest.kind == "CSV" else _of_parquet(data, uri)
    for column, wanted in (("IsLatest", "true"), ("IsDeleteMarker", "false")):
        if column in table.column_names:
            said = pc.utf8_lower(table[column].cast(pa.string()))
            table = table.filter(pc.fill_null(pc.equal(said, wanted), True))
    key = table["Key"].cast(pa.large_string())
    if manifest.kind == "CSV":
        key = _decoded(key)
    root, none = pa.scalar(f"s3://{manifest.source}/", pa.large_string()), pa.scalar("", pa.large_string())
    token = pc.binary_join_element_wise("etag:", pc.replace_substring(table["ETag"], '"', ""), "")
    size = table["Size"].cast(pa.int64()) if "Size" in table.column_names else pa.nulls(table.num_rows, pa.int64())
    return pa.table([pc.binary_join_element_wise(root, key, none), token.cast(pa.string()), size], schema=_NAMES)


def _of_csv(data: bytes, columns: Sequence[str]) -> pa.Table:
    wanted = [name for name in columns if name in _PARQUET]
    plain = pa.BufferReader(data)
    stream = pa.CompressedInputStream(plain, "gzip") if data[:2] == b"\x1f\x8b" else plain
    return pacsv.read_csv(
        stream,
        read_options=pacsv.ReadOptions(column_names=list(columns)),
        parse_options=pacsv.ParseOptions(newlines_in_values=True),
        convert_options=pacsv.ConvertOptions(
            include_columns=wanted,
            column_types={name: pa.int64() if name == "Size" else pa.string() for name in wanted},
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
        ),
    )


def _of_parquet(data: bytes, uri: str) -> pa.Table:
    there = set(pq.read_schema(pa.BufferReader(data)).names)
    if lacking := {"bucket", "key", "e_tag"} - there:
        raise InputError(f"{uri} has no {', '.join(sorted(lacking))}; add the optional field ETag to the inventory")
    wanted = {name: column for name, column in _PARQUET.items() if column in there}
    table = pq.read_table(pa.BufferReader(data), columns=list(wanted.values()))
    return table.select(list(wanted.values())).rename_columns(list(wanted))


def _decoded(keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the keys of a CSV inventory, which are encoded as in a form, as they are."""
    coded = pc.match_substring_regex(keys, "[%+]")
    if not pc.any(coded).as_py():
        return keys
    texts = [urllib.parse.unquote_plus(key) for key in keys.filter(coded).to_pylist()]
    return pa.chunked_array([pc.replace_with_mask(joined(keys), joined(coded), pa.array(texts, keys.type))])

"""What a catalogue is and how to read it, as the config file says it."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from ..storage import StorageOptions
from ..storage.hosts import CONNECTIONS
from .identity import UriIdentity


class CatalogueConfig(BaseModel):
    """Where the catalogue lies and which column means what.

    source: a table, a folder of tables, a folder of photos, a tar shard or a folder of shards; `s3://...` or a path.
    format: `auto` goes by the suffix, and for a folder by what lies in it.
    item_id: the column of keys. For a folder of photos: `name` (the default: file name without suffix), `path` (path
        below the source without suffix) or `folder` (each folder is one item; needs `rows: photo`). For tar shards:
        `key` (a name up to its first dot, as WebDataset has it) or `name` (up to its last dot); the default is `key`,
        but refuses to make one item of photos whose names differ by more than a number.
    image: a column of URIs, of lists of URIs, or of embedded bytes (binary, or `data:` URIs in JSON lines).
    image_separator: what stands between several addresses in one cell of `image`, such as `,` or `|`; spaces around it
        are passed over. Where a cell begins with a scheme or `//`, only separators before another such address count,
        so that addresses may hold commas. None: a cell is one address (or a JSON list of them).
    category: a column that must be there and is kept as an attribute; for folders and tar shards its name.
    attributes: the columns kept beside the key; None keeps every other column that holds plain values.
    rows: `item`: each key once; `photo`: a key may repeat, its photos are viewed in order of appearance.
    version: a column that changes when the photo does; with it no photo is ever listed or asked for its state.
    inventory: an S3 Inventory of the bucket that holds the photos, with ETags, as CSV or Parquet: the folder of its
        configuration, of which the newest is taken, or one manifest.json. Photos are then neither listed nor asked for
        one by one, but those that it lacks or that differ from the last release. What is replaced after it was made is
        taken up by the night whose inventory shows it. None: photos are listed.
    encoding: of CSV and JSON lines: `auto` (UTF-8, or what a byte order mark says), or any text encoding that Python
        knows: utf-8, cp1252, latin-1, utf-16, ... A byte order mark goes before it.
    delimiter: of CSV: `auto` (a `sep=` line, else the one of comma, semicolon, tab and bar that the first lines agree
        in, counted outside of quotes), or any text.
    quoting: of CSV: `minimal`: cells may stand in double quotes, which are doubled inside; a quote within a cell is
        text; a quote that is never closed, or closed amid a cell on another line, is refused. `none`: quotes are text,
        and each line is a row. `auto`: `none` for tab-separated files without a quote in their header, but for those
        named .csv; `minimal` for all others, where cells that swallowed what looks like whole rows are refused too.
    allowed_prefixes: where photos may come from beside the source's own bucket or folder, each with all below it:
        `s3://BUCKET/`, `s3://BUCKET/FOLDER/`, `https://HOST/`, `https://HOST/FOLDER/`, `/FOLDER/`. A photo anywhere
        else is quarantined as `not_allowed`; so is what a symbolic link or a redirect leads out to. Machines on
        link-local and metadata addresses are never asked, this one only under a prefix that names it
        (`https://127.0.0.1/`).
    https_prefixes: an older name for `allowed_prefixes` on https; both count.
    uri_identity: what of a web address tells one photo from another and is published. `auto`: all but a signature's
        parameters (Amazon, Google, Azure, CloudFront, Akamai, imgix and others) and a user; `path`: all but the query;
        `full`: everything, credentials too. The whole address is kept in the run's plan, to fetch it, and nowhere else.
    max_unreachable: share of the photos that may newly fail to answer (or have no usable address) in a night; they are
        quarantined, fewer than 10 always; more stop the run with exit 6, as does every one when it is 0.
    host_connections: requests to one web host at once, of each process.
    storage: how to reach the source and its photos; None: as the store.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    source: str = Field(min_length=1)
    format: Literal["auto", "parquet", "csv", "jsonl", "folder", "tar"] = "auto"
    item_id: str = Field(default="item_id", min_length=1)
    image: str = Field(default="image", min_length=1)
    image_separator: str | None = Field(default=None, min_length=1)
    category: str | None = Field(default=None, min_length=1)
    attributes: tuple[str, ...] | None = None
    rows: Literal["item", "photo"] = "item"
    version: str | None = Field(default=None, min_length=1)
    inventory: str | None = Field(default=None, pattern=r"^(s3|memory)://[^/]+/.|^/")
    encoding: str = "auto"
    delimiter: str = Field(default="auto", min_length=1)
    quoting: Literal["auto", "minimal", "none"] = "auto"
    allowed_prefixes: tuple[str, ...] = ()
    https_prefixes: tuple[str, ...] = ()
    max_unreachable: float = Field(default=0.01, ge=0.0, le=1.0)
    uri_identity: UriIdentity = "auto"
    host_connections: int = Field(default=CONNECTIONS, ge=1)
    storage: StorageOptions | None = None

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # So that what an earlier version froze is still this config.
        values: dict[str, Any] = dump(self)
        return {name: value for name, value in values.items() if name != "inventory" or value is not None}

    @field_validator("allowed_prefixes")
    @classmethod
    def _whole_places(cls, prefixes: tuple[str, ...]) -> tuple[str, ...]:
        for prefix in prefixes:
            if not re.match(r"https://[^/@?#]+/[^?#]*$|(s3|memory)://[^/]+(/|$)|file:///|/", prefix):
                raise ValueError(
                    f"{prefix!r} is no place of photos; write s3://BUCKET/, s3://BUCKET/FOLDER/, https://HOST/, "
                    "https://HOST/FOLDER/ or the absolute path of a folder"
                )
        return prefixes

    @field_validator("https_prefixes")
    @classmethod
    def _whole_hosts(cls, prefixes: tuple[str, ...]) -> tuple[str, ...]:
        for prefix in prefixes:
            # Without the slash `https://cdn.shop.com` would also allow `https://cdn.shop.com.elsewhere.net/`.
            if not re.match(r"https://[^/@?#]+/", prefix):
                raise ValueError(
                    f"{prefix!r} must begin with https://, a host and a slash: https://host/ or https://host/path/"
                )
        return prefixes

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str) -> str:
        try:
            known = encoding == "auto" or isinstance(b"a\0a\0".decode(encoding, "replace"), str)
        except (LookupError, ValueError):
            known = False
        if not known:
            raise ValueError(
                f"{encoding!r} is no text encoding that Python knows; name one, such as utf-8, cp1252, latin-1 or "
                "utf-16, or auto"
            )
        return encoding

    @field_validator("delimiter", "image_separator")
    @classmethod
    def _written_escapes(cls, text: str | None) -> str | None:
        """`\\t` and `\\n` in two letters, as a shell or an unquoted YAML text hands them over, are meant as one."""
        return None if text is None else text.replace("\\t", "\t").replace("\\n", "\n")

    @field_validator("delimiter")
    @classmethod
    def _delimiter_apart(cls, delimiter: str) -> str:
        if set(delimiter) & set('"\r\n'):
            raise ValueError(f"{delimiter!r} holds a quote or a line break, which mean something else in CSV")
        return delimiter

    @model_validator(mode="after")
    def _distinct_columns(self) -> CatalogueConfig:
        if self.item_id == self.image:
            raise ValueError(f"item_id and image both name the column {self.item_id!r}; they must be two columns")
        listed = self.attributes or ()
        for name in listed:
            if listed.count(name) > 1:
                raise ValueError(f"attributes lists {name!r} twice; list it once")
            if name in (self.item_id, self.image):
                raise ValueError(f"attributes lists {name!r}, which is the key or the image column; take it out")
        return self

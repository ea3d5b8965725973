"""What a catalogue is and how to read it, as the config file says it."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..storage import StorageOptions


class CatalogueConfig(BaseModel):
    """Where the catalogue lies and which column means what.

    source: a table, a folder of tables, a folder of photos, a tar shard or a folder of shards; `s3://...` or a path.
    format: `auto` goes by the suffix, and for a folder by what lies in it.
    item_id: the column of keys. For a folder of photos: `name` (the default: file name without suffix), `path` (path
        below the source without suffix) or `folder` (each folder is one item; needs `rows: photo`).
    image: a column of URIs, of lists of URIs, or of embedded bytes (binary, or `data:` URIs in JSON lines).
    category: a column that must be there and is kept as an attribute; for folders and tar shards its name.
    attributes: the columns kept beside the key; None keeps every other column that holds plain values.
    rows: `item`: each key once; `photo`: a key may repeat, its photos are viewed in order of appearance.
    version: a column that changes when the photo does; with it no photo is ever listed or asked for its state.
    https_prefixes: where https photos may come from; everything else on the web is refused.
    max_unreachable: share of the photos that may newly fail to answer (or have no usable address) in a night; they are
        quarantined, fewer than 10 always; more stop the run with exit 6, as does every one when it is 0.
    storage: how to reach the source and its photos; None: as the store.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(min_length=1)
    format: Literal["auto", "parquet", "csv", "jsonl", "folder", "tar"] = "auto"
    item_id: str = Field(default="item_id", min_length=1)
    image: str = Field(default="image", min_length=1)
    category: str | None = Field(default=None, min_length=1)
    attributes: tuple[str, ...] | None = None
    rows: Literal["item", "photo"] = "item"
    version: str | None = Field(default=None, min_length=1)
    https_prefixes: tuple[str, ...] = ()
    max_unreachable: float = Field(default=0.01, ge=0.0, le=1.0)
    storage: StorageOptions | None = None

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

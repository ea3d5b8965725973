"""The part of a config that every command needs, and the only one for those that just look at releases.

Nothing here imports torch or ray, so `codebooks releases` starts in a moment and works in a base install.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from jobs.checking import check_and_build
from jobs.command import Arguments
from jobs.sources import merge, read_sources
from pipeline.release import PublishConfig
from pipeline.storage import NO_SECRETS, StorageOptions, Store, holds_user, open_store
from pipeline.storage.urls import scheme_of


def absolute(location: str) -> str:
    """Return a local path as an absolute one, from the current folder; anything with a scheme as it is."""
    return location if scheme_of(location) else str(Path(location).expanduser().absolute())


class StoreConfig(StorageOptions):
    """Where the store lies (`s3://BUCKET/PREFIX` or a local path) and how it is reached."""

    url: str = Field(min_length=1)

    @field_validator("url")
    @classmethod
    def _absolute(cls, url: str) -> str:
        if holds_user(url):
            raise ValueError(f"must not name a user or password; {NO_SECRETS}")
        # Workers run in other folders than the command that was given a relative path.
        return absolute(url)

    def options(self) -> StorageOptions:
        """Return how the store is reached."""
        return StorageOptions.model_validate(self.model_dump(exclude={"url"}))

    def open(self) -> Store:
        """Return the store."""
        return open_store(self.url, self.options())


class LightConfig(BaseModel):
    """What `releases`, `rollback`, `similar` and `search` read of a config; the other sections are passed over."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: StoreConfig
    publish: PublishConfig = PublishConfig()
    catalogue: Any = None
    images: Any = None
    model: Any = None
    train: Any = None
    prior: Any = None
    encode: Any = None
    index: Any = None
    gates: Any = None
    cluster: Any = None


def load_light(arguments: Arguments) -> LightConfig:
    """Return the store and channel of a command line. Raises ConfigError."""
    return check_and_build(merge(read_sources(arguments)), LightConfig)

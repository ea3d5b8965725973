"""The section `store` of a config."""

from __future__ import annotations

from pydantic import Field, field_validator

from . import open_store
from .base import Store
from .local import expanded
from .options import NO_SECRETS, StorageOptions
from .secrets import holds_user
from .urls import scheme_of


def absolute(location: str) -> str:
    """Return a local path as an absolute one, from the current folder; anything with a scheme as it is."""
    return location if scheme_of(location) else str(expanded(location).absolute())


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

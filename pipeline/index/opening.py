"""On what terms a reader opens releases."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, TypedDict

from ..errors import ConfigError
from ..release import TrustedKey, read_trusted_keys
from .fetching import Progress


class Opening(TypedDict, total=False):
    """What `open_release` takes beside the place; see there."""

    expect_model: str | None
    lease: bool
    trusted_keys: Iterable[str | os.PathLike[str]] | None
    progress: Progress | None
    check_one_in: int | None
    trusted_channel: bool


@dataclass(frozen=True, slots=True)
class Terms:
    """The same, checked. trusted: () opens releases that nobody has signed too; trusted_channel: whether one of these
    keys must have signed the channel's head as well."""

    expect_model: str | None = None
    lease: bool = False
    trusted: tuple[TrustedKey, ...] = ()
    progress: Progress | None = None
    check_one_in: int | None = None
    trusted_channel: bool = False

    def __getstate__(self) -> tuple[Any, ...]:
        """Without `progress`: whoever unpickles this is not the one that watches."""
        return (self.expect_model, self.lease, self.trusted, None, self.check_one_in, self.trusted_channel)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        for each, value in zip(fields(self), state, strict=True):
            object.__setattr__(self, each.name, value)

    @classmethod
    def of(
        cls,
        *,
        expect_model: str | None = None,
        lease: bool = False,
        trusted_keys: Iterable[str | os.PathLike[str]] | None = None,
        progress: Progress | None = None,
        check_one_in: int | None = None,
        trusted_channel: bool = False,
    ) -> Terms:
        """Return the terms of these words. Raises ConfigError as `read_trusted_keys`, and for another number."""
        if check_one_in is not None and (isinstance(check_one_in, bool) or int(check_one_in) < 1):
            raise ConfigError(f"check_one_in is {check_one_in!r}; it must be a whole number of at least 1, as 1000")
        trusted = () if trusted_keys is None else read_trusted_keys(trusted_keys)
        if trusted_channel and not trusted:
            raise ConfigError(
                "trusted_channel wants trusted_keys, which the channel's head must be signed by; name some"
            )
        return cls(expect_model, lease, trusted, progress, check_one_in, trusted_channel)

"""On what terms a reader opens releases."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypedDict

from ..release import TrustedKey, read_trusted_keys


class Opening(TypedDict, total=False):
    """What `open_release` takes beside the place; see there."""

    expect_model: str | None
    lease: bool
    trusted_keys: Iterable[str | os.PathLike[str]] | None


@dataclass(frozen=True, slots=True)
class Terms:
    """The same, checked. trusted: () opens releases that nobody has signed too."""

    expect_model: str | None = None
    lease: bool = False
    trusted: tuple[TrustedKey, ...] = ()

    @classmethod
    def of(
        cls,
        *,
        expect_model: str | None = None,
        lease: bool = False,
        trusted_keys: Iterable[str | os.PathLike[str]] | None = None,
    ) -> Terms:
        """Return the terms of these words. Raises ConfigError as `read_trusted_keys`."""
        return cls(expect_model, lease, () if trusted_keys is None else read_trusted_keys(trusted_keys))

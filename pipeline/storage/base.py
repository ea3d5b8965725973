"""The store's interface: names to bytes, with one write-once operation everything else rests on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO

from ..errors import NotFound
from .options import StorageOptions


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored name.

    name: relative to the store's root, `/` between its parts. size: bytes. token: `etag:...` or
    `stat:<size>:<mtime_ns>`, which changes when the content does. modified: by the store's clock (UTC).
    """

    name: str
    size: int
    token: str
    modified: datetime


@dataclass(frozen=True, slots=True)
class Body:
    """What one read gave. tokens: all that the answer itself says of what `data` was read from, as in Entry."""

    data: bytes
    tokens: tuple[str, ...]

    def differs(self, token: str) -> bool:
        """Return whether an earlier token names other bytes; False where this read says nothing of its kind."""
        kind = token.partition(":")[0]
        mine = [_strong(known) for known in self.tokens if known.partition(":")[0] == kind]
        return bool(mine) and _strong(token) not in mine


def _strong(token: str) -> str:
    # A server that packs its answers marks one ETag as weak in some of them.
    return token.replace("etag:W/", "etag:", 1)


class Store(ABC):
    """A flat space of names under one root URL; safe to pickle to workers and to use from several threads.

    Every method raises `Unavailable` when a temporary failure outlasts its retries, `Forbidden` when access is
    refused, `NotFound` where a missing name is not an answer.
    """

    url: str
    options: StorageOptions | None = None  # how it is reached, for files beside it that a config names

    @abstractmethod
    def fetch(
        self, name: str, *, start: int | None = None, end: int | None = None, max_bytes: int | None = None
    ) -> Body:
        """Return a name's bytes, or those in [start, end), with the tokens of what they were read from.

        A negative start counts from the end. Raises TooLarge, with nothing read, for more than `max_bytes`.
        """

    def get(self, name: str, *, start: int | None = None, end: int | None = None) -> bytes:
        """Return a name's bytes, or those in [start, end); a negative start counts from the end."""
        return self.fetch(name, start=start, end=end).data

    @abstractmethod
    def put(self, name: str, data: bytes | memoryview) -> None:
        """Write a name whole, replacing what was there (under `runs/` only: all else is written once)."""

    @abstractmethod
    def put_if_absent(self, name: str, data: bytes | memoryview) -> bool:
        """Write a name whole if nothing has it; return whether these bytes are now there by this call.

        False: the name was taken and is unchanged. A reply lost after the write took effect is found by reading
        back, so True and False are always the truth; otherwise `Unavailable` is raised.
        """

    @abstractmethod
    def list(self, prefix: str = "", *, after: str = "") -> Iterator[Entry]:
        """Yield every name that begins with `prefix` (a plain string prefix), in name order, never from a cache.

        after: only names behind this one, which need not be there.
        """

    @abstractmethod
    def stat(self, name: str) -> Entry:
        """Return one name's entry."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a name; a missing one is not an error."""

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """Open a name for reading; the handle seeks and fetches ranges as needed."""

    @abstractmethod
    def arrow_filesystem(self) -> tuple[Any, str]:
        """Return a `pyarrow.fs.FileSystem` and this store's root path in it (no scheme)."""

    def exists(self, name: str) -> bool:
        """Return whether a name is there."""
        try:
            self.stat(name)
        except NotFound:
            return False
        return True

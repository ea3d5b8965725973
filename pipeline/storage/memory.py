"""A store in this process's memory, for tests and dry runs."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, BinaryIO

from ..errors import ConfigError, NotFound
from ..forks import FreshLock
from ..keys import digest_of
from .arrow import filesystem_over
from .base import Body, Entry, Store
from .names import check_name, check_prefix, check_size, clip_range


@dataclass(frozen=True, slots=True)
class Held:
    """The bytes of one name and when they were written."""

    data: bytes
    modified: datetime


# All stores of a name in one process are one store, as all clients of a bucket see one bucket.
SPACES: dict[str, dict[str, Held]] = {}
_LOCK = FreshLock()


class MemoryStore(Store):
    """Names in a dict of this process; a pickled one finds the same dict, or an empty one in another process.

    url: memory://NAME or memory://NAME/PREFIX.
    """

    def __init__(self, url: str) -> None:
        space, _, prefix = url.removeprefix("memory://").strip("/").partition("/")
        if not url.startswith("memory://") or not space:
            raise ConfigError(f"the store {url!r} is not of the form memory://NAME")
        self.url = f"memory://{space}/{prefix}".rstrip("/")
        self._space = space
        self._prefix = check_name(prefix) + "/" if prefix else ""

    @property
    def _held(self) -> dict[str, Held]:
        return SPACES.setdefault(self._space, {})

    def _find(self, name: str) -> Held:
        try:
            return self._held[self._prefix + check_name(name)]
        except KeyError:
            raise NotFound(f"{self.url}/{name} is not there") from None

    def fetch(
        self, name: str, *, start: int | None = None, end: int | None = None, max_bytes: int | None = None
    ) -> Body:
        held = self._find(name)
        first, last = clip_range(start, end, len(held.data))
        check_size(f"{self.url}/{name}", last - first, max_bytes)
        return Body(held.data[first:last], (self._entry(name, held).token,))

    def put(self, name: str, data: bytes | memoryview) -> None:
        with _LOCK:
            self._held[self._prefix + check_name(name)] = Held(bytes(data), datetime.now(UTC))

    def put_if_absent(self, name: str, data: bytes | memoryview) -> bool:
        mine = Held(bytes(data), datetime.now(UTC))
        with _LOCK:
            return self._held.setdefault(self._prefix + check_name(name), mine) is mine

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[Entry]:
        begin, behind = self._prefix + check_prefix(prefix), self._prefix + check_prefix(after)
        for key in sorted(self._held.copy()):
            held = self._held.get(key) if key.startswith(begin) and (not after or key > behind) else None
            if held is not None:
                yield self._entry(key.removeprefix(self._prefix), held)

    def stat(self, name: str) -> Entry:
        return self._entry(name, self._find(name))

    def delete(self, name: str) -> None:
        with _LOCK:
            self._held.pop(self._prefix + check_name(name), None)

    def open(self, name: str) -> BinaryIO:
        return io.BytesIO(self._find(name).data)

    def arrow_filesystem(self) -> tuple[Any, str]:
        root = self.url.removeprefix("memory://")
        return filesystem_over(self, root), root

    def _entry(self, name: str, held: Held) -> Entry:
        return Entry(name, len(held.data), f"etag:{digest_of(held.data)[:32]}", held.modified)

"""A store laid over another: what is asked for may come from below, what is written stays above."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from ..errors import NotFound
from .arrow import filesystem_over
from .base import Body, Entry, Store


class Overlay(Store):
    """Reads above, then below; writes and deletes above alone, so the store below stays as it is.

    apart: a word that sets names of `apart_prefix` apart, () for none: they are kept above under that word and never
    read from below. So what is found by a key under one word is not found under another, and everything else, which is
    named by content, is shared.
    """

    def __init__(self, above: Store, below: Store, *, apart: str = "", apart_prefix: tuple[str, ...] = ()) -> None:
        self.above = above
        self.below = below
        self.apart = apart
        self.apart_prefix = apart_prefix
        self.url = below.url

    def fetch(
        self, name: str, *, start: int | None = None, end: int | None = None, max_bytes: int | None = None
    ) -> Body:
        """Return a name's bytes from above, else from below."""
        try:
            return self.above.fetch(self._above(name), start=start, end=end, max_bytes=max_bytes)
        except NotFound:
            if self._is_apart(name):
                raise
        return self.below.fetch(name, start=start, end=end, max_bytes=max_bytes)

    def put(self, name: str, data: bytes | memoryview) -> None:
        """Write a name above."""
        self.above.put(self._above(name), data)

    def put_if_absent(self, name: str, data: bytes | memoryview) -> bool:
        """Write a name above if neither store has it."""
        if not self._is_apart(name) and self.below.exists(name):
            return False
        return self.above.put_if_absent(self._above(name), data)

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[Entry]:
        """Yield the names of both in name order; names set apart are not listed."""
        below, above = self.below.list(prefix, after=after), self.above.list(prefix, after=after)
        found = {entry.name: entry for entry in below if not self._is_apart(entry.name)}
        found |= {entry.name: entry for entry in above if not entry.name.startswith("apart/")}
        yield from (found[name] for name in sorted(found, key=str.encode))

    def stat(self, name: str) -> Entry:
        """Return a name's entry from above, else from below."""
        try:
            return self.above.stat(self._above(name))
        except NotFound:
            if self._is_apart(name):
                raise
        return self.below.stat(name)

    def delete(self, name: str) -> None:
        """Remove a name above; one that is below stays and is seen again."""
        self.above.delete(self._above(name))

    def open(self, name: str) -> BinaryIO:
        """Open a name above, else below."""
        return self.above.open(self._above(name)) if self.above.exists(self._above(name)) else self.below.open(name)

    def arrow_filesystem(self) -> tuple[Any, str]:
        """Return a filesystem over this store."""
        return filesystem_over(self, "overlay"), "overlay"

    def _is_apart(self, name: str) -> bool:
        return bool(self.apart) and name.startswith(self.apart_prefix)

    def _above(self, name: str) -> str:
        return f"apart/{self.apart}/{name}" if self._is_apart(name) else name

"""What a reader's machine remembers of channels' logs, so that one opened anew sees that a log was cut.

`heads/<first 16 hex of a key of store and channel>/<number>.json` in the reader's cache folder: the entry of this
number, which a trusted key had signed. A file is written once, and the highest number counts: of readers at the same
time the one that saw most is right.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import CodebooksError, ConfigError, IntegrityError, NotFound, Untrusted
from ..keys import DIGEST, digest_of, key_of
from ..storage import LocalStore, Store
from .channel import ChannelEntry, channel_head, entry_name, read_entries, read_head
from .manifest import document_bytes
from .signed_heads import check_head_signed
from .signing_keys import TrustedKey

_LEFT = 8  # lower numbers that stay, for who has listed them and not read yet


class SeenHead(BaseModel):
    """A channel's newest entry at some time; entry_sha256: of its bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str
    channel: str
    number: int = Field(ge=1)
    release_id: str
    entry_sha256: str = Field(pattern=DIGEST)

    @classmethod
    def of(cls, store: Store, channel: str, entry: ChannelEntry) -> SeenHead:
        """Return what is remembered of an entry."""
        digest = digest_of(document_bytes(entry))
        return cls(
            store=store.url, channel=channel, number=entry.number, release_id=entry.release_id, entry_sha256=digest
        )


class SeenHeads:
    """The newest entries that readers with one cache folder have trusted."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """folder: the cache's."""
        self._kept = LocalStore(str(folder))

    def folder(self, store: Store, channel: str) -> Path:
        """Return where what is remembered of a channel lies: whoever deletes it has it forgotten."""
        return Path(self._kept.url) / _folder(store, channel)

    def newest(self, store: Store, channel: str) -> SeenHead | None:
        """Return what is remembered of a channel, None for nothing. Raises IntegrityError where it is damaged."""
        names = [entry.name for entry in self._kept.list(_folder(store, channel))]
        if not names:
            return None
        try:
            seen = SeenHead.model_validate_json(self._kept.get(max(names)))
        except ValidationError as error:
            raise IntegrityError(
                f"{Path(self._kept.url) / max(names)} is not what a reader remembers of channel {channel!r}; delete it "
                f"({error})"
            ) from error
        if (seen.store, seen.channel, _name(store, channel, seen.number)) != (store.url, channel, max(names)):
            raise IntegrityError(
                f"{Path(self._kept.url) / max(names)} tells of number {seen.number} of channel {seen.channel!r} on "
                f"{seen.store}: it was copied there; delete it"
            )
        return seen

    def keep(self, store: Store, channel: str, entry: ChannelEntry) -> None:
        """Remember an entry. Raises Untrusted where another of its number is remembered, ConfigError where nothing can
        be written."""
        mine = SeenHead.of(store, channel, entry)
        theirs = self._written(store, channel, mine)
        if theirs != mine:
            raise Untrusted(_other(store, channel, theirs, self.folder(store, channel)))

    def _written(self, store: Store, channel: str, mine: SeenHead) -> SeenHead:
        """Return what is now remembered of a number."""
        name = _name(store, channel, mine.number)
        try:
            if not self._kept.put_if_absent(name, document_bytes(mine)):
                return SeenHead.model_validate_json(self._kept.get(name))
            names = sorted(found.name for found in self._kept.list(_folder(store, channel)))
            for old in names[: -1 - _LEFT]:
                self._kept.delete(old)
        except (CodebooksError, ValidationError) as error:
            raise ConfigError(
                f"cannot keep what this reader must remember of channel {channel!r} in "
                f"{self.folder(store, channel)} ({error}); pass another cache_dir, or set XDG_CACHE_HOME to a folder "
                "that can be written"
            ) from error
        return mine


def trusted_head(
    store: Store, channel: str, trusted: Sequence[TrustedKey], seen: SeenHeads, *, least: int = 0
) -> ChannelEntry:
    """Return a channel's newest entry, signed by one of the keys, and remember it.

    least: a number that the caller has followed. Raises NotFound for a channel without any, Untrusted where none of the
    keys has signed it, where the log has fewer entries than this machine or the caller has seen, and where the newest
    one that was seen here is another now.
    """
    before = seen.newest(store, channel)  # first: a log only grows, so what is read of it later holds this
    head = channel_head(store, channel) if before is None else read_head(store, channel)
    number = 0 if head is None else head.number
    if head is None or number < max(least, 0 if before is None else before.number):
        raise Untrusted(_cut(store, channel, number, least, before, seen.folder(store, channel)))
    check_head_signed(store, channel, head, trusted)
    if before is not None and SeenHead.of(store, channel, _of_number(store, channel, head, before.number)) != before:
        raise Untrusted(_other(store, channel, before, seen.folder(store, channel)))
    if before is None or before.number < number:
        seen.keep(store, channel, head)
    return head


def _of_number(store: Store, channel: str, head: ChannelEntry, number: int) -> ChannelEntry:
    if head.number == number:
        return head
    try:
        return read_entries(store, channel, [number])[0]
    except NotFound as error:
        raise Untrusted(
            f"{entry_name(channel, number)} is gone from {store.url}, and entries of a log are never deleted: somebody "
            "has; restore it from the store's versions"
        ) from error


def _cut(store: Store, channel: str, number: int, least: int, before: SeenHead | None, folder: Path) -> str:
    words = (
        f"channel {channel!r} on {store.url} goes back from number "
        f"{max(least, 0 if before is None else before.number)} to {number}, and entries of a log are never deleted: "
        "somebody has; restore it from the store's versions"
    )
    return words if before is None else f"{words}. {_on_purpose(before, folder)}"


def _other(store: Store, channel: str, seen: SeenHead, folder: Path) -> str:
    return (
        f"number {seen.number} of channel {channel!r} on {store.url} is another entry than it was, of release "
        f"{seen.release_id!r}, and entries of a log are never changed: restore it from the store's versions. "
        f"{_on_purpose(seen, folder)}"
    )


def _on_purpose(seen: SeenHead, folder: Path) -> str:
    return (
        f"This machine has seen number {seen.number}, of release {seen.release_id!r}; where the store was put back or "
        f"made anew on purpose, have it forget that: delete the folder {folder}"
    )


def _folder(store: Store, channel: str) -> str:
    server = "" if store.options is None else store.options.server  # another one has other buckets
    return f"heads/{key_of({'store': store.url, 'channel': channel, 'server': server})[:16]}/"


def _name(store: Store, channel: str, number: int) -> str:
    return f"{_folder(store, channel)}{number:012d}.json"

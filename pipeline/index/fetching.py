"""A release's files on their way into the cache: several at once, and how far they are."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from ..release import FileEntry, Manifest
from ..storage import Store
from ..storage.cache import FileCache

Progress = Callable[[int, int], None]  # bytes that are here, bytes in all
_AT_OPENING = ("items", "index", "features")  # roles that an open release maps or reads whole
_AT_ONCE = 8  # one connection seldom fills the line


def fetch_ahead(store: Store, cache: FileCache, manifest: Manifest, progress: Progress | None = None) -> None:
    """Bring what opening a release reads into the cache, several files at a time; those that are here stay.

    progress: told after every piece of at most 32 MiB, and once at the start, on the threads that fetch, one at a time.
    Raises as `FileCache.fetch`, once the fetches under way have ended; what `progress` raises ends it too.
    """
    entries = [entry for role in _AT_OPENING for entry in manifest.files.get(role, ())]
    done, whole, alone = 0, sum(entry.bytes for entry in entries), Lock()

    def came(size: int) -> None:
        nonlocal done
        with alone:
            done += size
            if progress is not None:
                progress(done, whole)

    def fetch(entry: FileEntry) -> None:
        cache.fetch(store, entry.name, size=entry.bytes, sha256=entry.sha256, came=came)

    cache.make_room_for((entry.sha256, entry.bytes) for entry in entries)
    came(0)
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch") as pool:
        waiting = [pool.submit(fetch, entry) for entry in entries]
        try:
            for each in waiting:
                each.result()
        finally:
            for each in waiting:
                each.cancel()

"""Why an item is not in a release: quarantined, delisted, or never seen."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import IntegrityError, NotFound, UnknownItem
from ..forks import FreshLock, renewed_in_children
from ..storage import Store
from ..storage.cache import FileCache
from .manifest import FileEntry, Manifest, read_manifest

_ANCESTORS = 32  # releases looked back through for a removal; one a night, about a month
_BATCH = 1 << 16  # rows looked at at a time
_AT_ONCE = 8  # files of changes looked into at once
_SHORT = 4 << 20  # bytes of a file that is fetched whole
_SHOWN = 3  # refused photos that a message tells of
_REFUSAL = ("uri", "stage", "reason", "detail")


@dataclass(frozen=True, slots=True)
class Refusal:
    """One photo in one release's quarantine. first_seen: the run that refused it first."""

    release: str
    uri: str
    stage: str
    reason: str
    detail: str
    first_seen: str


class Absences:
    """What a release and those before it say of items it does not hold.

    Their tables are searched by the files' own statistics, some rows at a time: memory does not grow with the catalogue
    or its history. Short files are fetched into the cache at the first question; of long ones only the row groups that
    may hold the item are read, where they lie. Nights that removed nothing are not looked at.
    """

    def __init__(self, store: Store, cache: FileCache, manifest: Manifest) -> None:
        """manifest: of the release that is asked."""
        self._store, self._cache, self._manifest = store, cache, manifest
        self._lock = FreshLock()
        self.renew_after_fork()
        renewed_in_children(self)

    def renew_after_fork(self) -> None:
        """Forget what a thread of the parent may have been about to note."""
        self._changes: list[tuple[str, FileEntry]] | None = None

    def error(self, item_id: str) -> UnknownItem:
        """Return the error to raise for an item that the release does not hold."""
        release = self._manifest.release_id
        try:
            item_id.encode()
        except UnicodeEncodeError:
            return UnknownItem(f"item {item_id!r} was never seen: no table holds text that is not valid Unicode")
        photos = [
            f"{row['uri']}: {row['stage']}, {row['reason']} ({row['detail']})"
            for entry in self._manifest.files_of("quarantine")
            for rows in self._rows(entry, item_id, _REFUSAL)
            for row in rows.to_pylist()
        ]
        if photos:
            shown = "; ".join(photos[:_SHOWN])
            shown += f"; and {len(photos) - _SHOWN} more" if len(photos) > _SHOWN else ""
            return UnknownItem(
                f"item {item_id!r} is quarantined in release {release}: none of its photos could be used. {shown}. "
                "Mend the photo in the catalogue; the next refresh takes it up again"
            )
        by = self._removed_by(item_id)
        if by is not None:
            return UnknownItem(
                f"item {item_id!r} is delisted: release {by} removed it, so release {release} does not hold it"
            )
        return UnknownItem(
            f"item {item_id!r} was never seen by release {release} or the {_ANCESTORS} before it: check the spelling, "
            "or refresh if the item is new"
        )

    def refusals(self, item_id: str) -> list[Refusal]:
        """Return the photos of an item that are in the quarantine of this release or one of those before it.

        Newest release first, an item that the release holds through its other photos too. A release that has expired
        ends the search.
        """
        return [
            Refusal(release, *(row[name] for name in (*_REFUSAL, "first_seen")))
            for release, entry in self._quarantines()
            for rows in self._rows(entry, item_id, (*_REFUSAL, "first_seen"))
            for row in rows.to_pylist()
        ]

    def _removed_by(self, item_id: str) -> str | None:
        """Return the newest release that removed an item; several are asked at once, since most wait for the store."""
        history = self._history()
        for start in range(0, len(history), _AT_ONCE):
            asked = history[start : start + _AT_ONCE]
            with ThreadPoolExecutor(len(asked)) as pool:
                found = pool.map(lambda night: self._removed(night[0], night[1], item_id), asked)
                by = next((night[0] for night, removed in zip(asked, found, strict=True) if removed), None)
            if by is not None:
                return by
        return None

    def _removed(self, release: str, entry: FileEntry, item_id: str) -> bool:
        try:
            return any("removed" in rows["change"].to_pylist() for rows in self._rows(entry, item_id, ("change",)))
        except IntegrityError as error:
            if release != self._manifest.release_id and isinstance(error.__cause__, NotFound):
                return False  # an ancestor that is being expired: what it removed is no longer known
            raise

    def _history(self) -> list[tuple[str, FileEntry]]:
        """Return (release, a file of its table of changes) of this release and its ancestors, newest first."""
        with self._lock:
            if self._changes is None:
                self._changes = list(self._ancestors())
            return self._changes

    def _quarantines(self) -> Iterator[tuple[str, FileEntry]]:
        for manifest in self._line():
            entries = [entry for entry in manifest.files.get("quarantine", ()) if entry.rows != 0]
            yield from ((manifest.release_id, entry) for entry in entries)

    def _ancestors(self) -> Iterator[tuple[str, FileEntry]]:
        for manifest in self._line():
            if manifest.counts.get("removed") != 0:
                yield from ((manifest.release_id, entry) for entry in manifest.files_of("changes"))

    def _line(self) -> Iterator[Manifest]:
        """Yield the manifests of this release and its ancestors, newest first."""
        manifest = self._manifest
        for _ in range(_ANCESTORS + 1):
            yield manifest
            if manifest.parent is None:
                return
            try:
                manifest = read_manifest(self._store, manifest.parent)
            except NotFound:  # expired: what it removed is no longer known
                return

    def _rows(self, entry: FileEntry, item_id: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the rows of an item in a release's table, by batches; only row groups that may hold it are read."""
        with self._opened(entry) as file:
            groups = [group for group in range(file.num_row_groups) if _may_hold(file.metadata, group, item_id)]
            # Read in this thread: decoding ahead in others would hold several row groups at once.
            for batch in file.iter_batches(_BATCH, groups, ["item_id", *columns], use_threads=False):
                found = batch.filter(pc.equal(batch["item_id"], item_id))
                if found.num_rows:
                    yield pa.table(found)

    @contextmanager
    def _opened(self, entry: FileEntry) -> Iterator[pq.ParquetFile]:
        """Open a release's table: a short file from the cache, checked by its digest, a long one where it lies."""
        if entry.bytes <= _SHORT:
            path = self._cache.fetch(self._store, entry.name, size=entry.bytes, sha256=entry.sha256)
            with pq.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
                yield file
            return
        try:
            handle = self._store.open(entry.name)
        except NotFound as error:
            raise IntegrityError(f"{entry.name} is not on {self._store.url}; roll the channel back") from error
        with handle, pq.ParquetFile(handle, pre_buffer=False) as file:
            if handle.seek(0, io.SEEK_END) != entry.bytes or file.metadata.num_rows != entry.rows:
                raise IntegrityError(
                    f"{entry.name} has {file.metadata.num_rows:,} rows in {handle.tell():,} bytes, its manifest says "
                    f"{entry.rows} and {entry.bytes:,}: it was changed after it was published; roll the channel back"
                )
            yield file


def _may_hold(meta: pq.FileMetaData, group: int, item_id: str) -> bool:
    """Return whether the smallest and largest item_id of a row group leave room for this one."""
    if meta.row_group(group).num_rows == 0:
        return False
    column = meta.row_group(group).column(meta.schema.names.index("item_id"))
    known = column.statistics
    if known is None or not known.has_min_max or not isinstance(known.min, str):
        return True
    return bool(known.min <= item_id <= known.max)  # Python and Parquet both order text by code point

"""Why an item is not in a release: quarantined, delisted, or never seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
_SHOWN = 3  # refused photos that a message tells of
_REFUSAL = ("uri", "stage", "reason", "detail")


class Absences:
    """What a release and those before it say of items it does not hold.

    Their tables are fetched into the cache at the first question and searched there by the file's own statistics,
    some rows at a time: memory does not grow with the catalogue or its history.
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
            for rows in self._rows(_file(self._manifest, "quarantine"), item_id, _REFUSAL)
            for row in rows.to_pylist()
        ]
        if photos:
            shown = "; ".join(photos[:_SHOWN])
            shown += f"; and {len(photos) - _SHOWN} more" if len(photos) > _SHOWN else ""
            return UnknownItem(
                f"item {item_id!r} is quarantined in release {release}: none of its photos could be used. {shown}. "
                "Mend the photo in the catalogue; the next refresh takes it up again"
            )
        for by, entry in self._history():
            if self._removed(by, entry, item_id):
                return UnknownItem(
                    f"item {item_id!r} is delisted: release {by} removed it, so release {release} does not hold it"
                )
        return UnknownItem(
            f"item {item_id!r} was never seen by release {release} or the {_ANCESTORS} before it: check the spelling, "
            "or refresh if the item is new"
        )

    def _removed(self, release: str, entry: FileEntry, item_id: str) -> bool:
        try:
            return any("removed" in rows["change"].to_pylist() for rows in self._rows(entry, item_id, ("change",)))
        except IntegrityError as error:
            if release != self._manifest.release_id and isinstance(error.__cause__, NotFound):
                return False  # an ancestor that is being expired: what it removed is no longer known
            raise

    def _history(self) -> list[tuple[str, FileEntry]]:
        """Return (release, its table of changes) of this release and its ancestors, newest first."""
        with self._lock:
            if self._changes is None:
                self._changes = list(self._ancestors())
            return self._changes

    def _ancestors(self) -> Iterator[tuple[str, FileEntry]]:
        manifest = self._manifest
        for _ in range(_ANCESTORS + 1):
            yield manifest.release_id, _file(manifest, "changes")
            if manifest.parent is None:
                return
            try:
                manifest = read_manifest(self._store, manifest.parent)
            except NotFound:  # expired: what it removed is no longer known
                return

    def _rows(self, entry: FileEntry, item_id: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the rows of an item in a release's table, by batches; only row groups that may hold it are read."""
        path = self._cache.fetch(self._store, entry.name, size=entry.bytes, sha256=entry.sha256)
        with pq.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
            groups = [group for group in range(file.num_row_groups) if _may_hold(file.metadata, group, item_id)]
            # Read in this thread: decoding ahead in others would hold several row groups at once.
            for batch in file.iter_batches(_BATCH, groups, ["item_id", *columns], use_threads=False):
                found = batch.filter(pc.equal(batch["item_id"], item_id))
                if found.num_rows:
                    yield pa.table(found)


def _file(manifest: Manifest, role: str) -> FileEntry:
    entry = manifest.files.get(role)
    if entry is None:
        raise IntegrityError(f"release {manifest.release_id} has no file of the role {role!r}")
    return entry


def _may_hold(meta: pq.FileMetaData, group: int, item_id: str) -> bool:
    """Return whether the smallest and largest item_id of a row group leave room for this one."""
    if meta.row_group(group).num_rows == 0:
        return False
    column = meta.row_group(group).column(meta.schema.names.index("item_id"))
    known = column.statistics
    if known is None or not known.has_min_max or not isinstance(known.min, str):
        return True
    return bool(known.min <= item_id <= known.max)  # Python and Parquet both order text by code point

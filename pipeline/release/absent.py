"""Why an item is not in a release: quarantined, delisted, or never seen."""

from __future__ import annotations

from threading import Lock

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import NotFound, UnknownItem
from ..storage import Store
from .manifest import Manifest, read_manifest
from .tables import read_table

_ANCESTORS = 32  # releases looked back through for a removal; one a night, about a month


class Absences:
    """What a release and those before it say of items it does not hold; read at the first question, then kept."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        """manifest: of the release that is asked."""
        self._store, self._manifest = store, manifest
        self._lock = Lock()
        self._quarantine: pa.Table | None = None
        self._removed: list[tuple[str, pa.Array]] | None = None

    def error(self, item_id: str) -> UnknownItem:
        """Return the error to raise for an item that the release does not hold."""
        release = self._manifest.release_id
        refused = self._refused(item_id)
        if refused.num_rows:
            photos = [f"{row['uri']}: {row['stage']}, {row['reason']} ({row['detail']})" for row in refused.to_pylist()]
            shown = "; ".join(photos[:3]) + (f"; and {len(photos) - 3} more" if len(photos) > 3 else "")
            return UnknownItem(
                f"item {item_id!r} is quarantined in release {release}: none of its photos could be used. {shown}. "
                "Mend the photo in the catalogue; the next refresh takes it up again"
            )
        for by, removed in self._removals():
            if pc.is_in(pa.scalar(item_id), value_set=removed).as_py():
                return UnknownItem(
                    f"item {item_id!r} is delisted: release {by} removed it, so release {release} does not hold it"
                )
        return UnknownItem(
            f"item {item_id!r} was never seen by release {release} or the {_ANCESTORS} before it: check the spelling, "
            "or refresh if the item is new"
        )

    def _refused(self, item_id: str) -> pa.Table:
        with self._lock:
            if self._quarantine is None:
                self._quarantine = read_table(self._store, self._manifest, "quarantine")
            table = self._quarantine
        return table.filter(pc.equal(table["item_id"], item_id))

    def _removals(self) -> list[tuple[str, pa.Array]]:
        """Return (release, item_ids it removed) of this release and its ancestors, newest first."""
        with self._lock:
            if self._removed is None:
                self._removed = list(self._read_removals())
            return self._removed

    def _read_removals(self) -> list[tuple[str, pa.Array]]:
        found: list[tuple[str, pa.Array]] = []
        manifest = self._manifest
        for _ in range(_ANCESTORS + 1):
            try:
                changes = read_table(self._store, manifest, "changes")
                removed = changes.filter(pc.equal(changes["change"], "removed"))["item_id"]
                found.append((manifest.release_id, pc.unique(removed)))
                if manifest.parent is None:
                    break
                manifest = read_manifest(self._store, manifest.parent)
            except NotFound:  # expired: what it removed is no longer known
                break
        return found

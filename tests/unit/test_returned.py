"""Which of a night's new items the table `changes` calls returned."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from pipeline.keys import digest_of
from pipeline.release import Manifest
from pipeline.release.manifest import FileEntry, document_bytes, manifest_name
from pipeline.release.tables import write_table
from pipeline.schema import changes_schema
from pipeline.storage import MemoryStore
from pipeline.tables import Night, TablesConfig
from pipeline.tables.returned import with_returned

Change = tuple[str, str, str]


def changes(*rows: Change) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else ([], [], [])
    return pa.table([pa.array(column, pa.string()) for column in columns], schema=changes_schema())


def released(store: MemoryStore, name: str, parent: str | None, refused: list[str], *rows: Change) -> Manifest:
    files = {}
    for role, table in (
        ("changes", changes(*rows)),
        ("quarantine", pa.table({"item_id": pa.array(refused, pa.string())})),
    ):
        entries = []
        for start in range(max(1, len(table))):  # a file a row: each is looked through
            data = write_table(table.slice(start, 1))
            path = f"releases/{name}/{role}-{start}.parquet"
            store.put_if_absent(path, data)
            held = min(1, len(table))
            entries.append(FileEntry(name=path, bytes=len(data), sha256=digest_of(data), rows=held))
        files[role] = tuple(entries)
    fields: dict[str, Any] = {
        "format": 2, "release_id": name, "release_key": "k",
        "run": name, "attempt": 1, "created": "2026-11-30T00:00:00Z",
        "parent": parent, "model_id": "m", "model_kind": "vae", "latent_dim": 2, "transform_id": "t", "metric": "l2",
        "index_kind": "flat", "files": files, "parts": (), "code_version": "test",
    }  # fmt: skip
    manifest = Manifest(**fields)
    store.put_if_absent(manifest_name(name), document_bytes(manifest))
    return manifest


def test_what_an_earlier_release_lost_or_refused_and_only_that_is_returned() -> None:
    store = MemoryStore("memory://returned")
    released(store, "one", "expired", [], ("long-ago", "a", "removed"), ("part", "b", "removed"))
    parent = released(store, "two", "one", ["refused"], ("lately", "a", "removed"), ("lately", "b", "removed"))
    tonight = [
        ("lately", "a", "added"), ("lately", "c", "added"), ("long-ago", "a", "added"), ("never", "a", "added"),
        ("part", "b", "added"), ("refused", "a", "added"), ("relabelled", "a", "relabelled"),
    ]  # fmt: skip
    items = pa.table({"item_id": [row[0] for row in tonight] + ["part"]})  # another photo of `part` has been here
    night = Night("three", "m", "l2", items, None, None, changes(*tonight), parent)  # type: ignore[arg-type]
    rows = [tuple(row.values()) for row in with_returned(store, night).to_pylist()]
    back = [("lately", "a"), ("lately", "c"), ("long-ago", "a"), ("refused", "a")]
    assert rows == sorted([*tonight, *((*key, "returned") for key in back)])
    none = changes(("never", "a", "added"), ("never", "b", "added"))
    assert with_returned(store, Night("x", "m", "l2", items, None, None, none, parent)) == none  # type: ignore[arg-type]
    assert with_returned(store, Night("x", "m", "l2", items, None, None, changes(*tonight), None)) == changes(*tonight)  # type: ignore[arg-type]


def test_a_config_that_does_not_ask_keeps_its_digest() -> None:
    assert TablesConfig(neighbours=3).model_dump(mode="json") == {"vectors": False, "neighbours": 3}
    assert TablesConfig(returned=True).asked

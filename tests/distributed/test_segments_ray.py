"""Segments, tables and recommendations as Ray tasks: the files of one process, and errors in this project's terms."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from pipeline import mapping
from pipeline.errors import IntegrityError
from pipeline.index import IndexConfig, gather_latents, nightly_index
from pipeline.index import nightly as nightly_module
from pipeline.index.segmented import SegmentedIndex
from pipeline.keys import digest_of
from pipeline.mapping import Scratch, mapped, mapped_in_turn
from pipeline.recommending import dealing, lists
from pipeline.release import FileEntry, Manifest, ReleaseFile
from pipeline.release import tables as release_tables
from pipeline.storage import MemoryStore, StorageOptions, Store, open_store
from pipeline.storage.cache import FileCache
from pipeline.tables import (
    Makers,
    Night,
    SemanticIdsConfig,
    TablesConfig,
    changes,
    further_tables,
    neighbours,
    night_changes,
    vectors,
)

pytestmark = pytest.mark.ray
MODEL = "ab" * 32


def test_segments_built_side_by_side_are_those_of_one_process(
    ray_session: None, maker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = sorted(maker.some_photos(60), key=lambda photo: (photo.item_id, photo.view))
    config = IndexConfig(segment_rows=50, kind="flat_codes", metric="l2", target_recall=0.9, threads=1)

    def built(name: str) -> Any:
        store = open_store(str(tmp_path / name))
        items = maker.items_table(photos, [part.name for part in maker.write_parts(store, photos, MODEL, "n1")])
        latents = gather_latents(store, items)
        cache = FileCache(tmp_path / "cache")
        return nightly_index(store, items, latents, config, model_id=MODEL, parent=None, cache=cache).built.segments

    beside = built("ray")

    def one_process(function: Any, tasks: Any, **_: Any) -> Any:
        return [function(task) for task in tasks]

    monkeypatch.setattr(nightly_module, "mapped", one_process)
    assert built("here") == beside
    assert len(beside) > 2


def test_tasks_run_in_other_processes_at_once_and_keep_their_order(ray_session: None) -> None:
    def where(number: int) -> tuple[int, int, float, float]:
        began = time.time()
        time.sleep(0.5)
        return number, os.getpid(), began, time.time()

    asked: dict[str, Any] = {"task_bytes": 1 << 20, "while_doing": "counting", "stays": "nothing is kept"}
    mapped(where, [0, 1, 2], **asked)  # starting processes takes a while
    found = mapped(where, [3, 1, 2], **asked)
    assert [number for number, *_ in found] == [3, 1, 2]
    assert os.getpid() not in {pid for _, pid, *_ in found}
    assert max(began for *_, began, _ in found) < min(ended for *_, ended in found), "side by side"

    def lost(number: int) -> None:
        raise IntegrityError(f"part {number} is damaged")

    with pytest.raises(IntegrityError, match="part 7 is damaged"):
        mapped(lost, [7], **asked)
    # More memory than any machine has is asked of the largest, not for ever.
    assert mapped(where, [5], **{**asked, "task_bytes": 1 << 60})[0][0] == 5


def parent_of(store: Store, items: pa.Table) -> Manifest:
    """Write items as a release does, and return what the next night knows of it."""
    entries = []
    for number, file in enumerate(release_tables.table_files(items)):
        name = f"releases/parent/items-{number}.parquet"
        store.put_if_absent(name, file.data)
        entries.append(FileEntry(name=name, bytes=len(file.data), sha256=digest_of(file.data), rows=file.rows))
    return Manifest.model_construct(files={"items": tuple(entries)})


def in_folder(request: pytest.FixtureRequest) -> Store:
    return open_store(str(request.getfixturevalue("tmp_path") / "store"))


def on_s3(request: pytest.FixtureRequest) -> Store:
    """Return a store of a real server, which Ray's processes know of from its options alone."""
    server = request.getfixturevalue("s3_server")
    options = StorageOptions(endpoint=server.endpoint, region="us-east-1", anonymous=True)
    return open_store(server.make_bucket("table-tasks", public=True), options)


@pytest.mark.parametrize(
    ("config", "where"),
    [
        (IndexConfig(metric="l2"), in_folder),
        (IndexConfig(metric="l2", segment_rows=50), in_folder),
        pytest.param(IndexConfig(metric="l2"), on_s3, marks=pytest.mark.s3),
    ],
    ids=["flat", "segments", "flat on S3"],
)
def test_tables_made_by_tasks_are_those_of_one_process(
    ray_session: None,
    maker: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    config: IndexConfig,
    where: Callable[[pytest.FixtureRequest], Store],
) -> None:
    store = where(request)
    photos = sorted(maker.some_photos(60), key=lambda photo: (photo.item_id, photo.view))
    items = maker.items_table(photos, [part.name for part in maker.write_parts(store, photos, MODEL, "n1")])
    latents, cache = gather_latents(store, items), FileCache(tmp_path / "cache")
    index = nightly_index(store, items, latents, config, model_id=MODEL, parent=None, cache=cache).built.index
    night = Night("n1", MODEL, "l2", items, latents, index, maker.changes_table([]), None)
    for module in (release_tables, vectors, changes, neighbours):
        monkeypatch.setattr(module, "FILE_ROWS", 50)
    monkeypatch.setattr(mapping, "_PACKED", 600)  # so that much of what tasks share lies in files
    parent, none = parent_of(store, items.slice(7, 120)), maker.quarantine_table([], "n1")

    def made() -> dict[str, list[ReleaseFile]]:
        sids = SemanticIdsConfig(levels=(4, 3))
        asked = TablesConfig(vectors=True, neighbours=5)
        files = further_tables(store, night, asked, sids, Makers(lambda *_: pytest.fail("trains"), lambda: ())).files
        found = {role: list(held) for role, held in files.items() if not isinstance(held, tuple)}
        changed = night_changes(store, "n1", items, none, parent, none)
        return {**found, "changes": list(release_tables.table_files(changed, looked_up=True))}

    assert isinstance(index, SegmentedIndex) == (config.segment_rows == 50)
    beside = made()
    assert len(beside["vectors"]) == 2
    assert len(beside["neighbours"]) == 6
    assert sum(file.rows or 0 for file in beside["changes"]) == items.num_rows - 120
    assert list(store.list("runs/")) == []
    monkeypatch.setattr(Scratch, "of_run", lambda *_: None)
    assert made() == beside


def test_tasks_in_turn_share_a_map_and_outlive_a_lost_process(ray_session: None, tmp_path: Path) -> None:
    store, seen = open_store(str(tmp_path / "store")), tmp_path / "seen"
    numbers = np.arange(100_000)

    def where(shared: np.ndarray, number: int) -> tuple[int, int, bool]:
        if number == 3 and not seen.exists():
            seen.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return int(shared[number]), os.getpid(), bool(shared.flags.owndata)

    def damaged(shared: np.ndarray, number: int) -> None:
        error = IntegrityError(f"part {number} is damaged")
        error.add_note("found by a task")
        raise error

    scratch = Scratch.of_run(store, "n1", 9)
    assert scratch is not None
    asked: dict[str, Any] = {"scratch": scratch, "task_bytes": 1 << 20, "while_doing": "counting"}
    found = list(mapped_in_turn(where, numbers, range(9), **asked))
    assert [(number, owned) for number, _, owned in found] == [(number, False) for number in range(9)]
    assert seen.exists()
    assert os.getpid() not in {pid for _, pid, _ in found}
    with pytest.raises(IntegrityError, match="part 0 is damaged") as caught:
        list(mapped_in_turn(damaged, numbers, range(9), **asked))
    assert caught.value.__notes__ == ["found by a task"]
    first = mapped_in_turn(where, numbers, range(100), **asked)
    assert next(first)[0] == 0
    first.close()  # whoever stops asking
    assert list(store.list("runs/")) == []
    assert Scratch.of_run(store, "n1", 1) is None
    assert Scratch.of_run(MemoryStore("memory://ranges"), "n1", 9) is None


def test_recommendations_on_ray_are_those_of_one_process(
    ray_session: None, maker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = open_store(str(tmp_path / "store"))
    maker.make_release(store, maker.some_photos(40, most=2))
    drawn = np.random.default_rng(0).integers([30, 40], size=(150, 2))
    columns = {"customer": [f"c{who:02d}" for who, _ in drawn], "item": [f"sku-{item:03d}" for _, item in drawn]}
    pq.write_table(pa.table(columns), tmp_path / "events.parquet")
    monkeypatch.setattr(lists, "_RANGE", lists._BLOCK // 16)
    monkeypatch.setattr(dealing.deal, "__kwdefaults__", {"bucket_rows": 60})
    files = []
    for on in ("process", "ray"):
        words = ["--events", str(tmp_path / "events.parquet"), "--out", str(tmp_path / on), "--on", on, "--json"]
        assert main(["recommend", f"store={store.url}", *words]) == 0
        files.append(json.loads(capsys.readouterr().out)["files"])
    assert files[0] == files[1]
    assert list(store.list("runs/")) == []

"""Segments as Ray tasks: the same files as in one process, in other processes, and errors in this project's terms."""

from __future__ import annotations

import os
import time
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import IntegrityError
from pipeline.index import IndexConfig, gather_latents, nightly_index
from pipeline.index import nightly as nightly_module
from pipeline.mapping import mapped, mapped_in_turn
from pipeline.storage import open_store
from pipeline.storage.cache import FileCache
from pipeline.tables import neighbours
from pipeline.tables.neighbours import neighbour_files

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


def test_tasks_in_turn_share_an_index_and_give_what_one_process_does(
    ray_session: None, maker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path / "store"))
    photos = sorted(maker.some_photos(60), key=lambda photo: (photo.item_id, photo.view))
    items = maker.items_table(photos, [part.name for part in maker.write_parts(store, photos, MODEL, "n1")])
    latents, cache = gather_latents(store, items), FileCache(tmp_path / "cache")
    monkeypatch.setattr(neighbours, "FILE_ROWS", 50)  # of ten items each
    for config in (IndexConfig(metric="l2", threads=1), IndexConfig(metric="l2", threads=1, segment_rows=50)):
        index = nightly_index(store, items, latents, config, model_id=MODEL, parent=None, cache=cache).built.index
        beside = list(neighbour_files(items, index, 5))
        with monkeypatch.context() as here:
            here.setattr(
                neighbours, "mapped_in_turn", lambda function, shared, tasks, **_: map(function, repeat(shared), tasks)
            )
            assert list(neighbour_files(items, index, 5)) == beside
        assert len(beside) == 6

    def where(shared: str, number: int) -> tuple[str, int, int]:
        return shared, number, os.getpid()

    asked: dict[str, Any] = {"task_bytes": 1 << 20, "while_doing": "counting", "stays": "nothing is kept"}
    found = list(mapped_in_turn(where, "all", range(9), **asked))
    assert [(shared, number) for shared, number, _ in found] == [("all", number) for number in range(9)]
    assert os.getpid() not in {pid for *_, pid in found}
    assert list(mapped_in_turn(where, "all", [1], **asked)) == [("all", 1, os.getpid())]
    first = mapped_in_turn(where, "all", range(100), **asked)
    assert next(first)[1] == 0
    first.close()  # whoever stops asking

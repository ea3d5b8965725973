"""Damaged Parquet files: every reader of our own says which file it is, whatever Arrow stumbles over."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.damaged import damaged_as
from pipeline.errors import CodebooksError, InputError, IntegrityError
from pipeline.parts import find_part, load_part, part_columns, read_part, read_part_rows, write_part
from pipeline.planning.plan import Plan
from pipeline.recommending.config import RecommendConfig
from pipeline.recommending.events import EventTable
from pipeline.storage import Files, open_store
from pipeline.training.part_cache import PartCache, PartReader

SIZE = 8


def changed(whole: bytes, times: int) -> list[bytes]:
    """Return copies of a file with one byte changed, most often near its end, where the footer is, and cut ones."""
    drawn = np.random.default_rng(0)
    places = [*drawn.integers(0, len(whole), times // 2), *drawn.integers(len(whole) // 2, len(whole), times // 2)]
    found = [whole[:at] + bytes([int(drawn.integers(256))]) + whole[at + 1 :] for at in places]
    return found + [whole[:at] for at in places[:20]]


def damages(whole: bytes, reads: Callable[[bytes], Any], error: type[CodebooksError], name: str) -> int:
    """Return how many of the changed files were refused, by their name; whatever else is raised fails the test."""
    texts = []
    for data in changed(whole, 300):
        try:
            reads(data)
        except error as refused:
            texts.append(str(refused))
    assert all(name in text for text in texts)
    return len(texts)


def test_arrow_has_no_one_error_for_damage() -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": ["x", "y"], "b": [1.0, 2.0]}), sink, compression="zstd")
    raised = set()
    for data in changed(sink.getvalue(), 300):
        try:
            pq.read_table(pa.BufferReader(data))
        except Exception as error:  # noqa: BLE001 - which ones is the question
            raised.add(type(error))
    assert {pa.ArrowInvalid, OSError} <= raised, "known wrong: readers that know ArrowInvalid alone"


def test_the_disks_own_errors_and_lack_of_memory_stay_what_they_are() -> None:
    for error in (OSError(5, "Input/output error"), MemoryError(), pa.ArrowMemoryError("x"), KeyError("x")):
        with pytest.raises(type(error)) as caught, damaged_as(IntegrityError):
            raise error
        assert caught.value is error


def test_parts_say_which_file_is_damaged(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    store = open_store(f"memory://{request.node.name}")
    name = "pixels/t/a.parquet"
    pixels = np.random.default_rng(1).integers(0, 256, (3, SIZE * SIZE * 3), np.uint8)
    column = pa.array([row.tobytes() for row in pixels], pa.binary(SIZE * SIZE * 3))
    write_part(store, name, pa.table({"item_id": ["a", "b", "c"], "pixels": column}), "key")
    whole = store.get(name)
    rows = np.arange(3)

    def trained(_: bytes) -> None:
        reader = PartReader(PartCache(store, tmp_path / str(len(list(tmp_path.iterdir())))), SIZE)
        reader.read_into(name, rows.astype(np.int32), np.zeros((3, 3, SIZE, SIZE), np.uint8), rows)

    reads: list[Callable[[bytes], Any]] = [
        lambda _: find_part(store, name, "key"),
        lambda _: load_part(store, name, "key"),
        lambda _: part_columns(store, name),
        lambda _: read_part(store, name),
        lambda _: read_part_rows(store, name, rows, ["pixels"]),
        trained,
    ]
    for read in reads:

        def put_and_read(data: bytes, read: Callable[[bytes], Any] = read) -> None:
            store.put(name, data)
            read(data)

        assert damages(whole, put_and_read, IntegrityError, name) > 50


def test_events_and_plans_say_which_file_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "e.parquet"
    pq.write_table(pa.table({"customer": ["a", "b"], "item": ["x", "y"], "weight": [1.0, 2.0]}), path)

    def events(data: bytes) -> None:
        path.write_bytes(data)
        table = EventTable(Files(), str(path), RecommendConfig())
        list(table.customers()), list(table.batches())

    assert damages(path.read_bytes(), events, CodebooksError, "e.parquet") > 50
    with pytest.raises(InputError, match=r"e\.parquet cannot be read as Parquet to its end"):
        events(b"PAR1")
    for cut in (b"", b"PAR1", path.read_bytes()):
        with pytest.raises(IntegrityError, match=r"plan\.parquet"):
            Plan.from_bytes(cut)

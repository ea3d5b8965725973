"""What is said while shards run: which one does not move, and what actors wait for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from pipeline import boards
from pipeline.boards import BeginCounter
from pipeline.encoding import Shard, watchdog
from pipeline.encoding.seats import Seats
from pipeline.encoding.watchdog import Watchdog
from pipeline.workers import Room

SHARDS = {
    number: Shard(number, pa.table({"item_id": [f"i{number}0", f"i{number}1"]}), "", "", None, None, None)
    for number in range(3)
}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set `.now`; the board and the watchdog look at it."""
    found = SimpleNamespace(now=0.0)
    for module in (boards, watchdog):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: found.now))
    return found


def dog(monkeypatch: pytest.MonkeyPatch, board: BeginCounter, done: set[int]) -> Watchdog:
    monkeypatch.setattr(watchdog.ray, "get", lambda value, timeout: value)
    monkeypatch.setattr(watchdog, "find_room", lambda: Room(3, 24.0, grows=True))
    begins = SimpleNamespace(standing=SimpleNamespace(remote=board.standing))
    return Watchdog(begins, SHARDS, done, Seats(4, 4, 1.0, 1.0))


def test_the_shard_that_does_not_move_is_named_and_no_other(
    clock: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    board, done = BeginCounter(), set[int]()
    looks = dog(monkeypatch, board, done)
    for number, host in enumerate(("fast", "fast", "slow")):
        board.begin(number, host)
    clock.now = 12.0
    board.end(0)
    clock.now = 290.0
    looks.look()
    assert not caplog.records
    done.add(1)  # its result has come, though the board was not told
    clock.now = 320.0
    looks.look()
    (said,) = [record.getMessage() for record in caplog.records]
    expected = "shard 2 of 2 photos, items 'i20' to 'i21', has been worked on for 320 s on slow"
    assert said == f"encode: {expected}; one usually takes 12 s"
    assert looks.slowest() == expected
    clock.now = 400.0
    looks.look()
    assert len(caplog.records) == 1, "said again only when it has taken twice as long"
    clock.now = 700.0
    looks.look()
    assert len(caplog.records) == 2


def test_shards_that_all_take_long_are_not_slow(
    clock: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    board = BeginCounter()
    looks = dog(monkeypatch, board, set())
    board.begin(0)
    board.begin(1)
    clock.now = 200.0
    board.end(0)
    clock.now = 1_900.0
    looks.look()
    assert not caplog.records
    clock.now = 2_100.0
    looks.look()
    assert "shard 1" in caplog.text


def test_actors_without_a_machine_are_told_of(
    clock: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    board = BeginCounter()
    looks = dog(monkeypatch, board, set())
    for second in (15.0, 30.0, 50.0, 60.0, 100.0):
        clock.now = second
        looks.look()
    said = [
        record.getMessage().partition(" s none of 4 actors of 1 CPU and 1 GPU runs yet")[0] for record in caplog.records
    ]
    assert said == ["encode: after 50", "encode: after 100"]
    assert "the 3 machines that are up have 24 CPU and 0 GPU, an autoscaler may start more" in caplog.text
    assert looks.slowest() == "no shard was begun"
    board.begin(0)
    clock.now = 200.0
    looks.look()
    assert len(caplog.records) == 2


def test_a_begin_counts_the_tries_of_its_shard_alone() -> None:
    board = BeginCounter()
    assert [board.begin(number) for number in (1, 2, 1)] == [1, 1, 2]
    board.end(7)  # of another run
    assert [number for number, _, _ in board.standing().open] == [1, 2]

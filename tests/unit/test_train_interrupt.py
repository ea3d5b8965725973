"""A driver that a signal interrupts waits until its training has really ended."""

from __future__ import annotations

import pickle
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError

from pipeline.errors import Conflict
from pipeline.runs import Lookout, open_run
from pipeline.storage import open_store
from pipeline.training.driver import _Fit, _watch
from pipeline.training.worker import BoardLine


class SlowToStop(_Fit):
    """A training that goes on for a while after it was asked to stop, as workers do that write a checkpoint."""

    def __init__(self, asked: threading.Event) -> None:
        threading.Thread.__init__(self, daemon=True)
        self.error = None
        self.ended = threading.Event()
        self._trainer: Any = SimpleNamespace(fit=self._fit)
        self._asked = asked
        self.done_at = 0.0

    def _fit(self) -> None:
        self._asked.wait(200)
        time.sleep(0.5)
        self.done_at = time.monotonic()


@pytest.fixture
def alarm() -> Iterator[None]:
    """Raise KeyboardInterrupt in this thread after 0.2 s, from a signal handler."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def remote(call: Any) -> Any:
    return SimpleNamespace(remote=call)


@pytest.mark.usefixtures("alarm")
@pytest.mark.slow
def test_an_interrupt_while_waiting_waits_for_the_training_s_end(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()
    fit = SlowToStop(asked)
    monkeypatch.setattr(ray, "get", lambda value, timeout: value)
    board = SimpleNamespace(read=remote(lambda: (None, None)), stop=remote(asked.set))
    with pytest.raises(KeyboardInterrupt):
        _watch(fit, board, None, SimpleNamespace(check=lambda: None))
    assert fit.ended.is_set()
    assert 0 < fit.done_at <= time.monotonic()


@pytest.mark.slow
def test_a_superseded_attempt_stops_its_workers_at_the_next_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()
    fit = SlowToStop(asked)
    monkeypatch.setattr(ray, "get", lambda value, timeout: value)
    store = open_store(f"memory://{uuid.uuid4().hex}")
    run = open_run(store, "night")
    run.begin("a: 1")
    store.put(run.attempt_name(2), store.get(run.attempt_name(1)).replace(b'"attempt":1', b'"attempt":2'))
    board = SimpleNamespace(read=remote(lambda: (None, None)), stop=remote(asked.set))
    began = time.monotonic()
    with pytest.raises(Conflict, match="attempt 2"):
        _watch(fit, board, None, Lookout(store, "runs/night", 1))
    assert fit.ended.is_set()
    assert time.monotonic() - began < 150


def test_a_lost_board_costs_the_progress_only(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = SlowToStop(threading.Event())
    fit._asked.set()

    def gone(_value: Any, timeout: float) -> Any:
        raise ActorDiedError

    monkeypatch.setattr(ray, "get", gone)
    board = SimpleNamespace(read=remote(lambda: None), stop=remote(lambda: None))
    _watch(fit, board, None, SimpleNamespace(check=lambda: None))
    assert fit.done_at > 0


class Answers:
    """Stands for a Lookout that a newer attempt has superseded."""

    def check(self) -> None:
        raise Conflict("attempt 2 has taken over")


def test_a_worker_without_a_board_goes_on_and_a_superseded_one_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    board = SimpleNamespace(is_over=remote(lambda: False), fail=remote(told.append), tell=remote(told.append))

    def gone(_value: Any, timeout: float) -> Any:
        raise ActorDiedError

    monkeypatch.setattr(ray, "get", gone)
    line = BoardLine(board, SimpleNamespace(check=lambda: None))
    line._asked_at -= 10
    assert not line.should_stop()
    assert not line.is_over()
    line.fail(Conflict("x"))  # nobody to tell it to
    monkeypatch.setattr(ray, "get", lambda value, timeout: value)
    told.clear()
    line = BoardLine(board, Answers())
    assert not line.should_stop()  # asked a moment ago
    line._asked_at -= 10
    assert line.should_stop()
    assert [type(pickle.loads(error)) for error in told] == [Conflict]


def test_a_failed_training_has_ended_too() -> None:
    fit = SlowToStop(threading.Event())
    fit._trainer = SimpleNamespace(fit=lambda: 1 // 0)
    fit.start()
    assert fit.ended.wait(200)
    assert isinstance(fit.error, ZeroDivisionError)

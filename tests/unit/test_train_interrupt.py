"""A driver that a signal interrupts waits until its training has really ended."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
import ray

from pipeline.training.driver import _Fit, _watch


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
        self._asked.wait(30)
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
def test_an_interrupt_while_waiting_waits_for_the_training_s_end(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()
    fit = SlowToStop(asked)
    monkeypatch.setattr(ray, "get", lambda value, timeout: value)
    board = SimpleNamespace(read=remote(lambda: (None, None)), stop=remote(asked.set))
    with pytest.raises(KeyboardInterrupt):
        _watch(fit, board, None)
    assert fit.ended.is_set()
    assert 0 < fit.done_at <= time.monotonic()


def test_a_failed_training_has_ended_too() -> None:
    fit = SlowToStop(threading.Event())
    fit._trainer = SimpleNamespace(fit=lambda: 1 // 0)
    fit.start()
    assert fit.ended.wait(30)
    assert isinstance(fit.error, ZeroDivisionError)

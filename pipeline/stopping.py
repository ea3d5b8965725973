"""Stopping on SIGTERM or Ctrl-C: unwind at once, let go of the run, and be gone within 30 seconds."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from .errors import Unavailable

LIMIT_S = 25.0  # of the 30 s that a scheduler gives before it kills
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopping:
    """Whether this process was told to stop, and by what."""

    def __init__(self) -> None:
        self._told = threading.Event()
        self._by = ""

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._told.is_set()

    @property
    def text(self) -> str:
        """What happened, for people."""
        by = self._by or "a signal"
        return f"stopped by {by}; what is finished stays, and the same command with the same --run goes on from there"

    def check(self) -> None:
        """Raise Unavailable when a signal has come; for loops that start new work."""
        if self.requested:
            raise Unavailable(self.text)

    def reset(self) -> None:
        """Forget earlier signals: a new command begins."""
        self._told.clear()
        self._by = ""

    def request(self, by: str) -> None:
        """Note that the process shall stop."""
        self._by = by
        self._told.set()


STOPPING = Stopping()


@contextmanager
def stopping_on_signals(last_words: Callable[[], None]) -> Iterator[Stopping]:
    """Turn the first SIGTERM or Ctrl-C into a KeyboardInterrupt, the second one into an exit on the spot.

    KeyboardInterrupt rather than an error of ours: no `except Exception` around a retry or a worker can swallow it, and
    Ray and its training loop stop on it. last_words: called before an exit that does not unwind, also when unwinding
    takes longer than LIMIT_S; such an exit is as safe as kill -9, which every stage survives.
    """
    if threading.current_thread() is not threading.main_thread():
        yield STOPPING  # signals only ever reach the main thread; whoever embeds us there handles them
        return
    STOPPING.reset()

    def leave() -> NoReturn:
        last_words()
        os._exit(Unavailable.exit_code)

    def stop(number: int, _frame: FrameType | None) -> None:
        if STOPPING.requested:
            leave()
        STOPPING.request(signal.Signals(number).name)
        timer = threading.Timer(LIMIT_S, leave)
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt(STOPPING.text)

    global _handler  # noqa: PLW0603  Ray replaces the handler while it starts, see `restore_handlers`
    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    _handler = stop
    try:
        yield STOPPING
    finally:
        _handler = None
        for number, handler in before.items():
            signal.signal(number, handler)


_handler: Callable[[int, FrameType | None], None] | None = None


def restore_handlers() -> None:
    """Put our handlers back after a library (ray.init) has set its own, which exits with 1 and unwinds nothing."""
    if _handler is not None:
        for number in _SIGNALS:
            signal.signal(number, _handler)

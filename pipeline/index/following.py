"""Following a channel: a thread that has a reader look for a newer release again and again."""

from __future__ import annotations

import logging
import random
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ..errors import CodebooksError, ConfigError
from ..forks import renewed_in_children

log = logging.getLogger("codebooks.reader")

_SPREAD = 0.1  # of the interval: readers that began together must not look together for ever
_LEAST_S = 0.01


class Refreshing(Protocol):
    """What can be followed: a reader, whose `refresh` opens, checks, warms and swaps."""

    @property
    def release_id(self) -> str: ...

    def refresh(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Looks:
    """What a follower did: looks at the channel, those that failed, swaps; problem: of the last look, "" for none."""

    looks: int = 0
    failures: int = 0
    swaps: int = 0
    problem: str = ""


class Following:
    """One thread that calls `refresh` about every so many seconds, until `stop` or until nobody holds the reader.

    A look that fails is logged, counted and told, and the release that is open goes on answering. Goes on in a forked
    child, with a thread of the child's own. Use it in `with`, or keep it and call `stop`.
    """

    def __init__(
        self,
        reader: Refreshing,
        every_s: float,
        *,
        on_swap: Callable[[Any], None] | None = None,
        on_error: Callable[[Exception], None] | None = None,
    ) -> None:
        """on_swap: told the reader after it has moved, on this thread; on_error: told why a look failed."""
        if isinstance(every_s, bool) or not _LEAST_S <= every_s < 1e7:
            raise ConfigError(f"every_s is {every_s!r}; give the seconds between two looks, {_LEAST_S:g} at least")
        self._reader = weakref.ref(reader)  # a reader that nobody holds any more is not kept for this
        self._every_s, self._on_swap, self._on_error = float(every_s), on_swap, on_error
        self.seen = Looks()
        self._ended = False
        self.renew_after_fork()
        renewed_in_children(self)

    def renew_after_fork(self) -> None:
        """Look from a thread of this process."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, args=(self._stopping,), name="follow", daemon=True)
        if not self._ended:
            self._thread.start()

    def stop(self, timeout_s: float | None = 60.0) -> None:
        """Look no more, and wait for a look that is under way, so long at most."""
        self._ended = True
        self._stopping.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def __enter__(self) -> Following:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _keep(self, stopping: threading.Event) -> None:
        draw = random.Random()
        while not stopping.wait(self._every_s * draw.uniform(1 - _SPREAD, 1 + _SPREAD)):
            reader = self._reader()
            if reader is None:
                return
            self._look(reader)
            del reader

    def _look(self, reader: Refreshing) -> None:
        try:
            moved, problem = reader.refresh(), None
            if moved and self._on_swap is not None:
                self._on_swap(reader)
        except Exception as error:  # noqa: BLE001  whatever a new release is like, the one that is open goes on
            moved, problem = False, error
        self.seen = replace(
            self.seen,
            looks=self.seen.looks + 1,
            failures=self.seen.failures + (problem is not None),
            swaps=self.seen.swaps + moved,
            problem="" if problem is None else str(problem) or type(problem).__name__,
        )
        if problem is None:
            return
        expected = isinstance(problem, CodebooksError)
        log.warning("no newer release was taken: %s", self.seen.problem, exc_info=None if expected else problem)
        if self._on_error is not None:
            self._on_error(problem)

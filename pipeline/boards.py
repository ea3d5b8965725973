"""What a run's processes note for each other, each in a Ray actor beside the driver; nothing heavy is imported for it.

An actor imports the module of its class: one that stood beside the loop would take seconds to import torch.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter, deque
from typing import NamedTuple

_REMEMBERED = 100  # ends of shards: what one usually takes, by the last so many


class Standing(NamedTuple):
    """What becomes of the shards. begun: how many ever were; usual_s: what one takes, 0 where none has ended.

    open: (number, seconds since it was begun, where) of those that have not ended.
    """

    begun: int
    usual_s: float
    open: list[tuple[int, float, str]]


class BeginCounter:
    """Counts how often each shard was begun, and knows since when; it outlives the actors that die."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[int, str]] = Counter()
        self._open: dict[int, tuple[float, str]] = {}
        self._took: deque[float] = deque(maxlen=_REMEMBERED)

    def begin(self, number: int, where: str = "", stage: str = "") -> int:
        """Return how often a stage of a shard was begun, this time included; where: the machine that does."""
        self.counts[number, stage] += 1
        self._open[number] = time.monotonic(), where
        return self.counts[number, stage]

    def end(self, number: int) -> None:
        """Note that a shard has ended."""
        began, _ = self._open.pop(number, (None, ""))
        if began is not None:
            self._took.append(time.monotonic() - began)

    def standing(self) -> Standing:
        """Return what becomes of the shards."""
        now = time.monotonic()
        rows = [(number, now - began, where) for number, (began, where) in self._open.items()]
        return Standing(len(self.counts), statistics.median(self._took) if self._took else 0.0, rows)


class ProgressBoard:
    """On it rank 0 writes how far it is, and the driver that it shall stop.

    Progress and errors are pickled by who writes them: this process does not know their classes.
    """

    def __init__(self) -> None:
        self._latest: bytes | None = None
        self._error: bytes | None = None
        self._stop = False
        self._begun = 0

    def begin(self, workers: int) -> None:
        """Note that so many workers have begun."""
        self._begun = workers

    def begun(self) -> int:
        """Return how many workers have begun, 0 while they are waited for."""
        return self._begun

    def tell(self, progress: bytes) -> None:
        """Keep the latest progress."""
        self._latest = progress

    def fail(self, error: bytes) -> None:
        """Keep an error that a restart of the workers would only meet again."""
        self._error = self._error or error

    def stop(self) -> None:
        """Ask the training to stop."""
        self._stop = True

    def read(self) -> tuple[bytes | None, bytes | None]:
        """Return the latest progress and the error that ended the training."""
        return self._latest, self._error

    def is_over(self) -> bool:
        """Return whether the workers have nothing left to do, or shall do nothing more."""
        return self._stop or self._error is not None

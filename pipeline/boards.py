"""What a run's processes note for each other, each in a Ray actor beside the driver; nothing heavy is imported for it.

An actor imports the module of its class: one that stood beside the loop would take seconds to import torch.
"""

from __future__ import annotations

from collections import Counter


class BeginCounter:
    """Counts how often each shard was begun; it outlives the actors that die."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        """Return how often a shard was begun, this time included."""
        self.counts[number] += 1
        return self.counts[number]


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

"""Seconds and rates of each stage, and the memory of this process and all its children."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from .events import StageBegan, StageEnded, tell

_SAMPLE_S = 1.0


class Watch:
    """Times stages and samples the memory of the process tree; use it as a context manager.

    Memory is the sum of the processes' proportional set sizes where the kernel tells them (shared pages counted once),
    else of their resident set sizes; sampled every second, so a shorter peak can be missed.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.photos: dict[str, int] = {}
        self.peak_memory_bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory-watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @contextmanager
    def stage(self, name: str, photos: int = 0) -> Iterator[None]:
        """Time one stage; photos: how many it works on, for the rate."""
        began, whole = time.monotonic(), False
        tell(StageBegan(name, photos))
        try:
            yield
            whole = True
        finally:
            took = time.monotonic() - began
            tell(StageEnded(name, took, photos if whole else 0))
            self.seconds[name] = self.seconds.get(name, 0.0) + took
            if photos:
                self.photos[name] = self.photos.get(name, 0) + photos

    def summary(self) -> dict[str, Any]:
        """Return seconds and photos/s by stage and the peak memory in MiB, ready for JSON."""
        rates = {name: round(count / self.seconds[name], 1) for name, count in self.photos.items()}
        return {
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "photos_per_s": rates,
            "peak_memory_mb": round(self.peak_memory_bytes / 2**20),
        }

    def _sample(self) -> None:
        own, over = psutil.Process(), False
        while not over:  # the first time at once: a night may take less than a second
            total = 0
            for process in [own, *own.children(recursive=True)]:
                try:
                    memory = process.memory_full_info()
                    total += getattr(memory, "pss", 0) or memory.rss
                except psutil.Error:  # it has ended since it was listed
                    continue
            self.peak_memory_bytes = max(self.peak_memory_bytes, total)
            over = self._over.wait(_SAMPLE_S)

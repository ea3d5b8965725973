"""A service's counts in Prometheus' text: each process writes its own numbers, and any of them answers for all."""

from __future__ import annotations

import json
import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STATUSES = (200, 304, 400, 401, 404, 405, 408, 409, 411, 413, 415, 422, 429, 499, 500, 501, 503)
SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_PREFIX = "codebooks_serve_"
# name: (type, help). Counters of dead processes still count, gauges are of those that live.
_NUMBERS = {
    "polls": ("counter", "Looks at the channel."),
    "poll_failures": ("counter", "Looks at the channel that failed; the service went on with the release it had."),
    "swaps": ("counter", "Times that a process moved to another release."),
    "recall_checked": ("counter", "Questions that were answered once more, exactly, and compared (--check-one-in)."),
    "recall_neighbours": ("counter", "Neighbours that the exact answers to these had."),
    "recall_found": ("counter", "Of these neighbours, those that the answers had: found / neighbours is the recall."),
    "recall_skipped": ("counter", "Questions that were drawn for it and skipped: another was under way, or it failed."),
    "refused_busy": ("counter", "Requests that were refused because the queue was full (429)."),
    "timeouts": ("counter", "Requests that took longer than they may (503)."),
    "requests_in_flight": ("gauge", "Requests that are waited for or worked on."),
    "last_poll_timestamp_seconds": ("oldest", "When the channel was last looked at with success, by the slowest."),
    "release_created_timestamp_seconds": ("oldest", "When the release was made that is answered from, the oldest one."),
}
_NAMES = tuple(_NUMBERS)


class Counts:
    """Numbers of one process in a file that all of a service's processes can read.

    Written by the event loop's thread alone, so nothing is locked; a reader may see a request in one series and not
    yet in another, as Prometheus allows.
    """

    def __init__(self, routes: Sequence[str], folder: Path | None = None) -> None:
        """routes: every label there is. folder: shared by the service's processes; None: this one is alone."""
        self._routes = tuple(routes)
        self._folder = folder
        self._release: tuple[str, str] | None = None
        self._shape = (len(self._routes), len(STATUSES) + len(SECONDS) + 2)  # statuses, buckets, above all, seconds
        self._mine: NDArray[np.float64] = np.zeros(self._length)
        if folder is not None:
            self._mine = np.memmap(folder / f"{os.getpid()}.counts", np.float64, "w+", shape=(self._length,))
        self._by_route, self._numbers = self._parts(self._mine)

    @property
    def _length(self) -> int:
        return self._shape[0] * self._shape[1] + len(_NAMES)

    def _parts(self, flat: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        cells = self._shape[0] * self._shape[1]
        return flat[:cells].reshape(self._shape), flat[cells:]

    def add(self, name: str, value: float = 1) -> None:
        """Add to a number of the table."""
        self._numbers[_NAMES.index(name)] += value

    def set(self, name: str, value: float) -> None:
        """Set a number of the table."""
        self._numbers[_NAMES.index(name)] = value

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an answer; status: one that is not among STATUSES counts as the first of its hundred."""
        row = self._by_route[self._routes.index(route)]
        known = status if status in STATUSES else next((s for s in STATUSES if s // 100 == status // 100), 500)
        row[STATUSES.index(known)] += 1
        row[len(STATUSES) + bisect_left(SECONDS, seconds)] += 1
        row[-1] += seconds

    def name_release(self, release_id: str, model_id: str) -> None:
        """Say which release this process answers from."""
        self._release = (release_id, model_id)
        if self._folder is None:
            return
        place = self._folder / f"{os.getpid()}.release"
        aside = place.with_suffix(".new")
        aside.write_text(json.dumps([release_id, model_id]))
        aside.replace(place)

    def text(self) -> str:
        """Return the counts of all processes in Prometheus' text format."""
        whole = {os.getpid(): self._mine}
        if self._folder is not None:
            files = {int(path.stem): np.fromfile(path, np.float64) for path in self._folder.glob("*.counts")}
            whole = {pid: numbers for pid, numbers in files.items() if len(numbers) == self._length}
        living = [pid for pid in whole if _lives(pid)]
        by_route = np.sum([self._parts(numbers)[0] for numbers in whole.values()], axis=0)
        lines = [*self._requests(by_route), *self._series(whole, living), *self._releases(living)]
        return "\n".join(lines) + "\n"

    def _requests(self, by_route: NDArray[np.float64]) -> Iterator[str]:
        yield from _head("requests_total", "counter", "Requests by route and HTTP status; 499: the client had gone.")
        for route, row in zip(self._routes, by_route, strict=True):
            for status, value in zip(STATUSES, row, strict=False):
                if value:
                    yield f'{_PREFIX}requests_total{{route="{route}",status="{status}"}} {value:.0f}'
        yield from _head("request_seconds", "histogram", "Seconds from a request's head to its answer, by route.")
        for route, row in zip(self._routes, by_route, strict=True):
            counted = np.cumsum(row[len(STATUSES) : -1])
            if not counted[-1]:
                continue
            name = f"{_PREFIX}request_seconds"
            for most, value in zip((*SECONDS, "+Inf"), counted, strict=True):
                yield f'{name}_bucket{{route="{route}",le="{most}"}} {value:.0f}'
            yield f'{name}_sum{{route="{route}"}} {row[-1]:.6f}'
            yield f'{name}_count{{route="{route}"}} {counted[-1]:.0f}'

    def _series(self, whole: dict[int, NDArray[np.float64]], living: Sequence[int]) -> Iterator[str]:
        for number, (name, (kind, means)) in enumerate(_NUMBERS.items()):
            pids = list(whole) if kind == "counter" else living
            values = [self._parts(whole[pid])[1][number] for pid in pids]
            if kind == "counter":
                yield from _head(f"{name}_total", kind, means)
                yield f"{_PREFIX}{name}_total {sum(values):.0f}"
            else:
                yield from _head(name, "gauge", means)
                yield f"{_PREFIX}{name} {min(values, default=0) if kind == 'oldest' else sum(values):.3f}"

    def _releases(self, living: Sequence[int]) -> Iterator[str]:
        named = Counter([self._release] if self._release else [])
        if self._folder is not None:
            places = [self._folder / f"{pid}.release" for pid in living]
            named = Counter(tuple(json.loads(place.read_text())) for place in places if place.exists())
        yield from _head("workers", "gauge", "Processes by the release that they answer from; two during a swap.")
        for (release_id, model_id), number in sorted(named.items()):
            yield f'{_PREFIX}workers{{release_id="{release_id}",model_id="{model_id}"}} {number}'


def _head(name: str, kind: str, means: str) -> list[str]:
    return [f"# HELP {_PREFIX}{name} {means}", f"# TYPE {_PREFIX}{name} {kind}"]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True

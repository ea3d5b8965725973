"""What a run tells of itself, to whoever listens in this process: metrics, logs, the message at its end."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol


class Verdict(Protocol):
    """One gate's verdict, as `evaluation.GateVerdict`."""

    @property
    def name(self) -> str: ...
    @property
    def value(self) -> float: ...
    @property
    def limit(self) -> float | None: ...
    @property
    def passed(self) -> bool: ...
    @property
    def allowed(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class StageBegan:
    """A stage begins; one may begin several times. photos: how many it works on, 0 where that says nothing."""

    name: str
    photos: int = 0


@dataclass(frozen=True, slots=True)
class StageEnded:
    """A stage ended, also by an error. seconds: of this time alone."""

    name: str
    seconds: float
    photos: int = 0


@dataclass(frozen=True, slots=True)
class ShardEnded:
    """A shard is done. refused: of its photos; reused: its parts were there already.

    node: the machine that it was done on, after so many seconds; said: what its process has logged meanwhile.
    """

    stage: str
    number: int
    photos: int
    refused: int
    reused: bool
    node: str = ""
    seconds: float = 0.0
    said: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Trained:
    """How far a training is, as `training.TrainProgress`."""

    step: int
    total_steps: int
    loss: float
    images_per_s: float


@dataclass(frozen=True, slots=True)
class Planned:
    """What a night has to do. counts: photos and shards by name."""

    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Examined:
    """What a release is found to be. refused: photos by (stage, reason); measures: by name."""

    verdicts: tuple[Verdict, ...]
    refused: Mapping[tuple[str, str], int]
    measures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finished:
    """A run has its result. details: what result.json says beside it."""

    release: str | None
    published: bool
    reason: str
    details: Mapping[str, Any] = field(default_factory=dict)


Event = StageBegan | StageEnded | ShardEnded | Trained | Planned | Examined | Finished
Listener = Callable[[Event], None]

_listeners: list[Listener] = []
_changing = threading.Lock()


def tell(event: Event) -> None:
    """Give an event to every listener; whatever a listener raises is its own affair and stops no run."""
    for listener in tuple(_listeners):
        with contextlib.suppress(Exception):
            listener(event)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Give a listener every event of this process until the end of the `with`."""
    with _changing:
        _listeners.append(listener)
    try:
        yield
    finally:
        with _changing:
            _listeners.remove(listener)

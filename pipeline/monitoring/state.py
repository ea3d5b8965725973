"""How a run stands: what its events have told so far."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ..events import Event, Examined, Finished, Planned, ShardEnded, StageBegan, StageEnded, Trained, Verdict

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Named:
    """What a run is called. labels: those of the config, which every metric has."""

    run: str
    command: str
    channel: str
    version: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended. at: seconds since 1970; error: its text where it failed."""

    at: float
    exit_code: int
    reason: str
    published: bool
    release: str | None
    error: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Standing:
    """A run at one moment. seconds, photos, planned: by stage; refused: photos by (stage, reason).

    node_photos, node_seconds: of finished shards, by (stage, node).
    """

    named: Named
    began: float
    updated: float
    stage: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    photos: Mapping[str, int] = field(default_factory=dict)
    planned: Mapping[str, int] = field(default_factory=dict)
    shards: Mapping[str, int] = field(default_factory=dict)
    node_photos: Mapping[tuple[str, str], int] = field(default_factory=dict)
    node_seconds: Mapping[tuple[str, str], float] = field(default_factory=dict)
    changes: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[tuple[str, str], int] = field(default_factory=dict)
    measures: Mapping[str, float] = field(default_factory=dict)
    verdicts: tuple[Verdict, ...] = ()
    training: Trained | None = None
    finished: Finished | None = None
    failures: Mapping[str, int] = field(default_factory=dict)
    ended: Ended | None = None


class RunState:
    """Collects the events of one run; `standing` may be asked for from any thread."""

    def __init__(self, named: Named, sinks: Iterable[str] = ()) -> None:
        now = time.time()
        self._now = Standing(named, began=now, updated=now, failures=dict.fromkeys(sinks, 0))
        self._begun: dict[str, float] = {}
        self._lock = threading.Lock()

    def note(self, event: Event) -> None:
        """Take an event in."""
        with self._lock:
            self._now = self._taken(event)

    def failed(self, sink: str) -> None:
        """Count one time that a sink could not be told."""
        with self._lock:
            self._now = replace(self._now, failures=_plus(self._now.failures, sink, 1))

    def end(self, ended: Ended) -> None:
        """Note how the run ended."""
        with self._lock:
            self._now = replace(self._now, ended=ended, stage=None, updated=ended.at)

    def standing(self) -> Standing:
        """Return how the run stands now; a stage at work counts with the seconds that it has had so far.

        updated: this moment, until the run has ended. That somebody asks is the sign of life that a killed process
        does not give.
        """
        with self._lock:
            seconds = dict(self._now.seconds)
            for stage, began in self._begun.items():
                seconds[stage] = seconds.get(stage, 0.0) + time.monotonic() - began
            updated = self._now.updated if self._now.ended else time.time()
            return replace(self._now, seconds=seconds, updated=updated)

    def _taken(self, event: Event) -> Standing:
        now = self._now
        match event:
            case StageBegan(name, photos):
                self._begun[name] = time.monotonic()
                return replace(now, stage=name, planned=_plus(now.planned, name, photos) if photos else now.planned)
            case StageEnded(name, seconds, photos):
                self._begun.pop(name, None)
                stage = next(reversed(self._begun), None)
                # What a stage of photos counts itself, shard by shard, is known already.
                counted = name in now.shards or not photos
                done = now.photos if counted else {**now.photos, name: now.planned.get(name, photos)}
                return replace(now, stage=stage, seconds=_plus(now.seconds, name, seconds), photos=done)
            case ShardEnded(stage=stage, photos=photos, node=node, seconds=seconds):
                return replace(
                    now,
                    photos=_plus(now.photos, stage, photos),
                    shards=_plus(now.shards, stage, 1),
                    node_photos=_plus(now.node_photos, (stage, node), photos),
                    node_seconds=_plus(now.node_seconds, (stage, node), seconds),
                )
            case Trained():
                return replace(now, training=event)
            case Planned(counts):
                return replace(now, changes=dict(counts))
            case Examined(verdicts, refused, measures):
                return replace(now, verdicts=verdicts, refused=dict(refused), measures=dict(measures))
            case Finished():
                return replace(now, finished=event)


def _plus(counts: Mapping[K, Any], name: K, more: float) -> dict[K, Any]:
    return {**counts, name: counts.get(name, 0) + more}

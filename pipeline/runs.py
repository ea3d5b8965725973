"""Runs: who works on a named run now (attempts, heartbeats), and what its first attempt froze for all later ones.

    <run>/attempts/<n>.json     who began attempt n; the highest is the live one
    <run>/heartbeats/<n>        attempt n lives: the object's own time counts
    <run>/heartbeats/<n>.ended  attempt n has let go; written once, so that no late heartbeat can hide it

Each attempt writes names of its own: what is still on its way to the store when another one takes over lands where it
changes nothing. Runs of older versions have one `<run>/heartbeat` for all attempts, which is still read.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import CodebooksError, ConfigError, Conflict, IntegrityError, NotFound, Unavailable
from .holders import AttemptRecord, this_process
from .release import claim_store
from .release.manifest import read_document
from .storage import Store, store_clock

_log = logging.getLogger(__name__)

RUNS = "runs/"
# What schedulers pass as a logical date fits: 2026-11-21, scheduled__2026-11-21T02:00:00+00:00.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+=@-]{0,127}")
_ATTEMPT = re.compile(r"(\d+)\.json")
_SHOWN_DIFFERENCES = 20


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds: between heartbeats, until one is stale, a newcomer's longest wait, and between its looks."""

    renew_s: float = 15.0
    stale_s: float = 60.0
    wait_s: float = 90.0
    poll_s: float = 3.0


class Heartbeat(BaseModel):
    """The life sign of an attempt; its time is the stored object's own. ended: the attempt has let go."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempt: int
    ended: bool = False


def default_run_name() -> str:
    """Return the name of a run that was given none: the UTC time to the microsecond."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")


def check_run_name(name: str) -> str:
    """Return a run's name. Raises ConfigError when it cannot be part of a name on the store."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no run name; use up to 128 letters, digits and '.', '_', '-', ':', '+', '=', '@', beginning "
            "with a letter or digit, for example --run 2026-11-21"
        )
    return name


def open_run(store: Store, name: str, *, timing: Timing | None = None) -> Run:
    """Return the run of this name, new or old; nothing is written yet. Raises ConfigError on a bad name."""
    return Run(store, check_run_name(name), timing or Timing())


class Run:
    """One named execution of a job, continued by every retry of the same name; its files lie under `folder`."""

    def __init__(self, store: Store, name: str, timing: Timing) -> None:
        self.store = store
        self.name = name
        self.folder = f"{RUNS}{name}/"
        self.timing = timing

    @classmethod
    def at(cls, store: Store, run_dir: str) -> Run:
        """Return the run whose files lie under `run_dir`, as `runs/<run>`."""
        return open_run(store, run_dir.strip("/").removeprefix(RUNS))

    def begin(self, config_yaml: str) -> Attempt:
        """Freeze the config and become the live attempt; use the result as a context manager.

        Raises ConfigError when an earlier attempt froze another config, Unavailable when a living attempt does not let
        go within `timing.wait_s`, InputError when a newer version of this library has the store.
        """
        claim_store(self.store)
        self._freeze_config(config_yaml)
        number = self._take_over()
        attempt = Attempt(self, number)
        attempt.renew()
        return attempt

    def read_frozen(self, name: str) -> bytes | None:
        """Return a document that an attempt has frozen (`plan.parquet`, `config.yaml`), or None."""
        try:
            return self.store.get(self.folder + name)
        except NotFound:
            return None

    def freeze(self, name: str, data: bytes) -> bytes:
        """Write a document once and return what lies there: these bytes, or those of the attempt that was first."""
        if self.store.put_if_absent(self.folder + name, data):
            return data
        return self.store.get(self.folder + name)

    def read_result(self) -> dict[str, Any] | None:
        """Return `result.json`, or None when no attempt has finished."""
        data = self.read_frozen("result.json")
        if data is None:
            return None
        return read_document(data, f"{self.folder}result.json")

    def write_result(self, result: dict[str, Any]) -> dict[str, Any]:
        """Write `result.json` and return what stands there.

        A result that says `published` stays: an attempt that woke up too late must not hide that another one published.
        """
        standing = self.read_result()
        if standing is not None and standing.get("published") and not result.get("published"):
            return standing
        text = json.dumps(result, indent=2, sort_keys=True, ensure_ascii=False, default=str)
        self.store.put(f"{self.folder}result.json", text.encode())
        return result

    def highest_attempt(self) -> int:
        """Return the number of the live attempt, 0 when there was none."""
        folder = f"{self.folder}attempts/"
        matches = (_ATTEMPT.fullmatch(entry.name.removeprefix(folder)) for entry in self.store.list(folder))
        return max((int(match.group(1)) for match in matches if match), default=0)

    def read_attempt(self, number: int) -> AttemptRecord:
        """Return who began an attempt. Raises NotFound, IntegrityError."""
        name = self.attempt_name(number)
        try:
            return AttemptRecord.model_validate_json(self.store.get(name))
        except ValidationError as error:
            raise IntegrityError(f"{name} is no attempt record: {error}") from error

    def attempt_name(self, number: int) -> str:
        """Return the name of an attempt's record on the store."""
        return f"{self.folder}attempts/{number}.json"

    def heartbeat_name(self, number: int) -> str:
        """Return the name of an attempt's life sign on the store."""
        return f"{self.folder}heartbeats/{number}"

    def ended_name(self, number: int) -> str:
        """Return the name of what an attempt writes when it lets go."""
        return f"{self.folder}heartbeats/{number}.ended"

    def check_live(self, number: int) -> None:
        """Raise Conflict when attempt `number` is no longer the live one."""
        highest = self.highest_attempt()
        if highest == number:
            return
        if highest < number:
            raise Conflict(
                f"attempt {number} of run {self.name!r} is no longer on {self.store.url}: its folder was deleted while "
                "it was at work; run again under a new name"
            )
        record = self.read_attempt(highest)
        raise Conflict(
            f"attempt {highest} of run {self.name!r} on host {record.host!r} (pid {record.pid}) has taken over from "
            f"attempt {number}, whose heartbeat had stopped; this one ends without publishing"
        )

    def _freeze_config(self, config_yaml: str) -> None:
        standing = self.freeze("config.yaml", config_yaml.encode()).decode()
        differences = _differences(yaml.safe_load(standing), yaml.safe_load(config_yaml))
        if differences:
            shown = differences[:_SHOWN_DIFFERENCES]
            if len(differences) > len(shown):
                shown.append(f"  and {len(differences) - len(shown)} more")
            raise ConfigError(
                f"run {self.name!r} began with another config; go on with that one, or choose another --run name:\n"
                + "\n".join(shown)
            )

    def _take_over(self) -> int:
        """Return the number of the attempt that this process now holds; waits for a living holder to let go."""
        deadline = time.monotonic() + self.timing.wait_s
        while True:
            holder = self.highest_attempt()
            if holder and not self._may_take_over(holder):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise self._held(holder)
                time.sleep(min(self.timing.poll_s, left))
                continue
            record = this_process(holder + 1)
            if self.store.put_if_absent(self.attempt_name(record.attempt), record.model_dump_json().encode()):
                return record.attempt
            # Another newcomer was quicker: it is the holder now.

    def _may_take_over(self, holder: int) -> bool:
        record = self.read_attempt(holder)
        shared = self._shared_heartbeat(holder)
        if self.store.exists(self.ended_name(holder)) or (shared is not None and shared[0].ended) or record.is_dead():
            return True
        # The record itself is the first sign of life.
        signs = [self.store.stat(self.attempt_name(holder)).modified]
        if shared is not None:
            signs.append(shared[1])
        with contextlib.suppress(NotFound):
            signs.append(self.store.stat(self.heartbeat_name(holder)).modified)
        return (store_clock(self.store, f"{self.folder}clock") - max(signs)).total_seconds() > self.timing.stale_s

    def _shared_heartbeat(self, holder: int) -> tuple[Heartbeat, datetime] | None:
        """Return the one heartbeat that older versions wrote for all attempts, if it is the holder's."""
        name = f"{self.folder}heartbeat"
        try:
            beat = Heartbeat.model_validate_json(self.store.get(name))
            return (beat, self.store.stat(name).modified) if beat.attempt == holder else None
        except NotFound:
            return None
        except ValidationError as error:
            raise IntegrityError(f"{name} is no heartbeat ({error}); delete it and run again") from error

    def _held(self, holder: int) -> Unavailable:
        record = self.read_attempt(holder)
        return Unavailable(
            f"run {self.name!r} is being worked on by attempt {holder} on host {record.host!r} (pid {record.pid}, "
            f"since {record.created:%Y-%m-%d %H:%M:%S} UTC), which is alive: waited {self.timing.wait_s:g} s. "
            "Try again later, or stop that process"
        )


class Attempt:
    """One process at work on a run: renews the heartbeat while it is entered, and knows when it was superseded."""

    def __init__(self, run: Run, number: int) -> None:
        self.run = run
        self.number = number
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat-{run.name}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=self.run.timing.renew_s)
        # Safe to fail: a heartbeat that nobody renews goes stale, only later. The body's own error matters more.
        with contextlib.suppress(CodebooksError):
            self.run.store.put_if_absent(self.run.ended_name(self.number), self._beat_bytes(ended=True))

    def check(self) -> None:
        """Raise Conflict when this attempt is no longer the live one; to be called before each stage and publishing."""
        self.run.check_live(self.number)

    def freeze(self, name: str, data: bytes) -> bytes:
        """Write a document of the run once and return what lies there; see `Run.freeze`."""
        return self.run.freeze(name, data)

    def renew(self) -> None:
        """Write the heartbeat. Raises Conflict, and writes nothing, when another attempt is the live one."""
        self.check()
        self.run.store.put(self.run.heartbeat_name(self.number), self._beat_bytes(ended=False))

    def _beat_bytes(self, *, ended: bool) -> bytes:
        return Heartbeat(attempt=self.number, ended=ended).model_dump_json().encode()

    def _beat(self) -> None:
        while not self._stop.wait(self.run.timing.renew_s):
            try:
                self.renew()
            except Conflict:
                return  # the main thread learns of it at its next check()
            except CodebooksError:
                continue  # a store that is away for a while; whether someone took over meanwhile, check() tells


class Lookout:
    """Tells work in progress, in any process, that a newer attempt of its run has begun.

    run_dir: `runs/<run>`. It looks at the store at most every `every_s` seconds, so it may be asked at every step. A
    store that does not answer says nothing: what becomes of the work is then decided by its next read or write.
    """

    def __init__(self, store: Store, run_dir: str, attempt: int, *, every_s: float = 2.0) -> None:
        self._run = Run.at(store, run_dir)
        self._attempt = attempt
        self._every_s = every_s
        self._looked_at = -math.inf

    def check(self) -> None:
        """Raise Conflict when the attempt was superseded; does nothing when it looked a moment ago."""
        if time.monotonic() - self._looked_at >= self._every_s:
            self.look()

    def look(self) -> None:
        """Raise Conflict when the attempt was superseded by now."""
        self._looked_at = time.monotonic()
        try:
            if self._run.highest_attempt() > self._attempt:
                self._run.check_live(self._attempt)
        except Conflict:
            raise
        except CodebooksError as error:
            _log.info("cannot tell now whether attempt %d is the live one: %s", self._attempt, error)


_NOTHING = object()
# Where a run computes is no part of what it makes: a retry may wait longer, or go to another cluster.
_MAY_DIFFER = "cluster"


def _differences(standing: Any, new: Any) -> list[str]:
    both = [dict(_flat(said)) for said in (standing, new)]
    before, now = ({name: value for name, value in said.items() if name.split(".")[0] != _MAY_DIFFER} for said in both)
    names = sorted(name for name in {*before, *now} if before.get(name, _NOTHING) != now.get(name, _NOTHING))
    return [f"  {name}: the run has {_shown(before, name)}, now {_shown(now, name)}" for name in names]


def _shown(values: dict[str, Any], name: str) -> str:
    return repr(values[name]) if name in values else "nothing"


def _flat(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [
            pair for name, member in value.items() for pair in _flat(member, f"{path}.{name}" if path else str(name))
        ]
    return [(path, value)]

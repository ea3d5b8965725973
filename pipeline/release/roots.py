"""What of a store must stay: releases that someone reads or may go back to, and what runs at work may need."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import ConfigError, IntegrityError, NotFound
from ..schema import PART_NAMES
from ..storage import Entry, Store
from .channel import CHANNELS, read_entries
from .holds import Lease, Pin, read_holds
from .kept_bundles import Bundles, read_bundles
from .manifest import RELEASES, SEGMENTS, Manifest, read_manifest

ALIVE = timedelta(hours=1)  # a run that has given a sign of life since may find and use any part; 240 heartbeats
_LEAST_GRACE = timedelta(days=7)
MANIFEST = re.compile(rf"{RELEASES}([^/]+)/manifest\.json")
_LOG = re.compile(rf"{CHANNELS}([^/]+)/(\d{{12}})\.json")
_SIGN = re.compile(r"runs/([^/]+)/(?:attempts/(\d+)\.json|heartbeats/(\d+)(\.ended)?|(heartbeat))")


@dataclass(frozen=True, slots=True)
class Policy:
    """How long what lives.

    keep: the newest so many releases of each channel; keep_days: and those that became current since. grace_days: how
    old a file is at least before it is marked, and a mark before it is swept; None: 7, or twice the longest attempt.
    pixels_days, checkpoints_days, bundles_days: how long pixels live, checkpoints and plans of runs that have ended,
    and, from the last file written of one, bundles that no kept release is of. max_share: of the store's bytes, at most
    so much is marked, and swept, in one go.
    """

    keep: int = 14
    keep_days: float = 30.0
    grace_days: float | None = None
    pixels_days: float = 30.0
    checkpoints_days: float = 14.0
    bundles_days: float = 90.0
    max_share: float = 0.3

    def __post_init__(self) -> None:
        days = (self.keep_days, self.pixels_days, self.checkpoints_days, self.bundles_days, self.grace_days or 0.0)
        if self.keep < 1 or min(days) < 0 or not 0 < self.max_share <= 1:
            raise ConfigError(f"{self} cannot be: keep is at least 1, days are not negative, max_share is in (0, 1]")


@dataclass(slots=True)
class RunSeen:
    """A run by the times of its files. began: of each attempt; last: its last sign of life; ended: let go."""

    name: str
    began: dict[int, datetime] = field(default_factory=dict)
    last: dict[int, datetime] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)

    def last_sign(self) -> datetime | None:
        """Return the live attempt's last sign of life, None where it has let go or there was none."""
        highest = max(self.began, default=0)
        return None if not highest or highest in self.ended else max(self.began[highest], self.last[highest])

    def longest(self) -> timedelta:
        """Return how long the longest attempt was."""
        return max((self.last[number] - began for number, began in self.began.items()), default=timedelta(0))


@dataclass(frozen=True, slots=True)
class Roots:
    """What must stay, each with the reason.

    releases: by id; names: files; folders: (prefix, reason), of which a run at work may use any part; runs: those that
    may still be at work; ended: names of holds that hold no more; bundles: what is known of them.
    """

    releases: dict[str, str]
    names: dict[str, str]
    folders: tuple[tuple[str, str], ...]
    runs: dict[str, str]
    ended: frozenset[str]
    bundles: Bundles


def read_runs(entries: Collection[Entry]) -> dict[str, RunSeen]:
    """Return the runs of a listing."""
    found: dict[str, RunSeen] = {}
    shared: dict[str, datetime] = {}
    for entry in entries:
        match = _SIGN.fullmatch(entry.name)
        if match is None:
            continue
        name, attempt, beat, ended, old = match.groups()
        run = found.setdefault(name, RunSeen(name))
        if old:  # of earlier versions, for all attempts
            shared[name] = entry.modified
            continue
        number = int(attempt or beat)
        if attempt:
            run.began[number] = entry.modified
        if ended:
            run.ended.add(number)
        run.last[number] = max(entry.modified, run.last.get(number, entry.modified))
    for name, moment in shared.items():
        if found[name].began:
            number = max(found[name].began)  # a listing has 9 behind 10
            found[name].last[number] = max(moment, found[name].last[number])
    return found


def grace_of(policy: Policy, runs: Collection[RunSeen]) -> timedelta:
    """Return the grace period: what was asked for, else 7 days or twice the longest attempt.

    Raises ConfigError for one that is shorter than twice the longest attempt of any run on the store.
    """
    longest = max(runs, key=RunSeen.longest, default=None)
    least = 2 * longest.longest() if longest else timedelta(0)
    if policy.grace_days is None:
        return max(_LEAST_GRACE, least)
    asked = timedelta(days=policy.grace_days)
    if longest is not None and asked < least:
        raise ConfigError(
            f"a grace of {policy.grace_days:g} days is shorter than twice the longest attempt, of run "
            f"{longest.name!r}, {longest.longest() / timedelta(days=1):.2g} days: a run could lose parts that it has "
            f"just written; give at least {least / timedelta(days=1):.2g}"
        )
    return asked


def read_roots(
    store: Store,
    entries: Sequence[Entry],
    *,
    now: datetime,
    grace: timedelta,
    policy: Policy,
    doomed: Collection[str] | None = None,
) -> Roots:
    """Return what must stay of a listed store.

    doomed: when given, every release but these stays, whatever the policy says of it. Raises IntegrityError for a hold,
    a log or a manifest that cannot be read: nobody knows then what it keeps.
    """
    releases = _kept_by_channels(store, entries, now, policy)
    ended = set()
    for held in read_holds(store, entries):
        reason = _holding(held.document, held.modified, now)
        if reason is None:
            ended.add(held.name)
        else:
            releases.setdefault(held.document.release_id, reason)
    names, working, folders = dict[str, str](), dict[str, str](), list[tuple[str, str]]()
    models, every = dict[str, str](), None
    for run in read_runs(entries).values():
        sign = run.last_sign()
        if sign is None or now - sign >= grace:
            continue
        reason = f"run {run.name} may be at work"
        working[run.name] = reason
        plan = _plan_of(store, run.name)
        names.update((name, f"the plan of {reason}") for name in plan.names)
        if plan.model:
            models.setdefault(plan.model, f"the plan of {reason}")
        else:
            every = f"{reason} and may find this"
        if plan.parent:
            releases.setdefault(plan.parent, f"parent of {reason}")
        if now - sign < ALIVE:
            folders += [(folder, f"{reason} and may find this") for folder in plan.folders]
    manifests = [match.group(1) for entry in entries if (match := MANIFEST.fullmatch(entry.name))]
    for release, reason in _kept_besides(entries, working, now=now, grace=grace, doomed=doomed):
        releases.setdefault(release, reason)
    for release in manifests:
        manifest = _manifest(store, release) if release in releases else None
        if manifest is not None:
            why = f"named by {release}: {releases[release]}"
            models.setdefault(manifest.model_id, why)
            for name in manifest.names():
                names.setdefault(name, why)
    bundles = read_bundles(store, entries, models, every)
    return Roots(releases, names, tuple(folders), working, frozenset(ended), bundles)


def _kept_besides(
    entries: Sequence[Entry],
    working: Mapping[str, str],
    *,
    now: datetime,
    grace: timedelta,
    doomed: Collection[str] | None,
) -> Iterator[tuple[str, str]]:
    """Yield (release, reason) of what stays although no channel, hold or plan says so."""
    for entry in entries:
        match = MANIFEST.fullmatch(entry.name)
        if match is None:
            continue
        release, run = match.group(1), match.group(1).rpartition("-")[0]
        if now - entry.modified < grace:
            yield release, "release younger than the grace period"
        elif run in working:
            yield release, working[run]
        elif doomed is not None and release not in doomed:
            yield release, "release that was not marked"


def _manifest(store: Store, release: str) -> Manifest | None:
    try:
        return read_manifest(store, release)
    except NotFound:  # another sweep was quicker
        return None


def _kept_by_channels(store: Store, entries: Sequence[Entry], now: datetime, policy: Policy) -> dict[str, str]:
    logs: dict[str, dict[int, datetime]] = defaultdict(dict)
    for entry in entries:
        match = _LOG.fullmatch(entry.name)
        if match is not None:
            logs[match.group(1)][int(match.group(2))] = entry.modified
    kept: dict[str, str] = {}
    for channel, log in logs.items():
        seen: set[str] = set()
        for number in sorted(log, reverse=True):
            recent = now - log[number] < timedelta(days=policy.keep_days)
            if len(seen) >= policy.keep and not recent:
                break
            (line,) = read_entries(store, channel, [number])
            what = f"current on {channel}" if not seen else f"one of the last {policy.keep} of {channel}"
            if line.release_id not in seen and len(seen) >= policy.keep:
                what = f"current on {channel} within {policy.keep_days:g} days"
            seen.add(line.release_id)
            kept.setdefault(line.release_id, what)
    return kept


def _holding(document: Pin | Lease, modified: datetime, now: datetime) -> str | None:
    """Return why a hold keeps its release now, None when it has ended."""
    if isinstance(document, Lease):
        alive = now < modified + timedelta(seconds=document.ttl_s)
        return f"leased by {document.owner}" if alive else None
    return f"pinned by {document.owner}" if document.until is None or now < document.until else None


@dataclass(frozen=True, slots=True)
class _Planned:
    names: frozenset[str] = frozenset()
    folders: tuple[str, ...] = ("latents/", "pixels/", "photos/", SEGMENTS)
    parent: str | None = None
    model: str | None = None  # None: not known yet, so it may come to be any


def _plan_of(store: Store, run: str) -> _Planned:
    """Return what a run's plan names; one that has none yet may come to name any part.

    Only names are read: what a plan means is the planning's.
    """
    try:
        with store.open(f"runs/{run}/plan.parquet") as handle, pq.ParquetFile(handle, pre_buffer=False) as file:
            meta = json.loads((file.schema_arrow.metadata or {}).get(b"plan", b"{}"))
            columns = [name for name in PART_NAMES if name in file.schema_arrow.names]
            names = {
                name
                for batch in file.iter_batches(columns=columns, use_threads=False)
                for column in batch.columns
                for name in column.unique().to_pylist()
                if name is not None
            }
    except NotFound:
        return _Planned()
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise IntegrityError(
            f"runs/{run}/plan.parquet cannot be read, so what run {run!r} needs is not known ({error}); wait until the "
            "run has ended, or delete the file"
        ) from error
    model, transform = meta.get("model_id"), meta.get("transform_id")
    latents = f"latents/{model}/" if model else "latents/"
    pixels = [f"{kind}/{transform}/" if transform else f"{kind}/" for kind in ("pixels", "photos")]
    segments = f"{SEGMENTS}{model}/" if model else SEGMENTS
    return _Planned(frozenset(names), (latents, *pixels, segments), meta.get("parent"), model)

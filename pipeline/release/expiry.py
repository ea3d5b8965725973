"""Expiry: list what nothing needs, mark it, and delete a grace period later what still nothing needs.

    expiry/lists/<hash>.parquet    one row a file
    expiry/marks/<hash>.json       such a list, by its digest: to be deleted a grace period after the mark's own time
    expiry/sweeps/<number>.json    what is being deleted now, from before the first until after the last deletion
    expiry/sweeps/<number>.<n>.alive   its process lives

Every time that counts is the store's own. A sweep judges all files anew, after it has said what it is about to delete:
see `holds` for why nothing that someone begins to hold meanwhile can be lost.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import ConfigError, Conflict, Forbidden, IntegrityError, NotFound, Unavailable
from ..keys import DIGEST, SHORT
from ..storage import Entry, Store, store_clock
from .holds import SWEEPS, Sweep, read_sweep
from .inventory import Rules, judge
from .kept_bundles import CONFIG, POINTER
from .manifest import document_bytes
from .marked import LISTS, Judged, read_marked, write_marked
from .roots import MANIFEST, Policy, grace_of, read_roots, read_runs

MARKS = "expiry/marks/"
_CLOCK = "runs/expiry.clock"
_ABANDONED = timedelta(hours=1)  # a sweep that was not renewed for so long has lost its process
_BATCH = 200  # files deleted between two looks whether this sweep is still the one
_AT_ONCE = 8
_SLEPT_S = 600.0  # well below _ABANDONED: nobody can have taken over unseen
_STARTED = (time.monotonic(), time.time())
_NEVER = datetime.min.replace(tzinfo=UTC)


def elapsed() -> float:
    """Return seconds that pass also while this process or its machine sleeps, as far as it can know."""
    return max(time.monotonic() - _STARTED[0], time.time() - _STARTED[1])


class Mark(BaseModel):
    """A list of files that are to be deleted. grace_s: how long after this file's own time at least."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal[1] = 1
    listed: str
    sha256: str = Field(pattern=DIGEST)
    files: int
    bytes: int
    grace_s: float


@dataclass(frozen=True, slots=True)
class Size:
    """So many files of so many bytes."""

    files: int = 0
    bytes: int = 0

    @classmethod
    def of(cls, judged: Sequence[Judged]) -> Size:
        """Return the size of these files."""
        return cls(len(judged), sum(one.entry.size for one in judged))

    def __add__(self, other: Size) -> Size:
        return Size(self.files + other.files, self.bytes + other.bytes)


@dataclass(frozen=True, slots=True)
class Expiry:
    """What one call found and did. judged: every file of the store, after the sweep; waiting: marked earlier, and not
    due yet or kept since; marked: by this call; swept: deleted by it."""

    now: datetime
    grace: timedelta
    judged: tuple[Judged, ...]
    waiting: Size
    marked: Size
    swept: Size

    @property
    def deletable(self) -> Size:
        """What nothing needs now."""
        return Size.of([one for one in self.judged if not one.keep])

    def text(self) -> str:
        """Return the reasons, with files and bytes, as a table for people."""
        files: Counter[tuple[bool, str]] = Counter()
        sizes: Counter[tuple[bool, str]] = Counter()
        for one in self.judged:
            key = (one.keep, one.reason.partition(": ")[2] or one.reason if one.keep else one.reason)
            files[key] += 1
            sizes[key] += one.entry.size
        lines = [
            f"at {self.now:%Y-%m-%d %H:%M:%S} UTC by the store's clock, grace {self.grace / timedelta(days=1):g} days"
        ]
        lines += [
            f"  {'keep' if keep else 'DELETE':<7}{files[keep, why]:>9,} files {sizes[keep, why]:>17,} bytes  {why}"
            for keep, why in sorted(files, key=lambda key: (key[0], -sizes[key]))
        ]
        for word, size in (("swept", self.swept), ("marked", self.marked), ("marked before", self.waiting)):
            if size.files:
                lines.append(f"{word}: {size.files:,} files, {size.bytes:,} bytes")
        return "\n".join(lines)


def expire(store: Store, policy: Policy, *, yes: bool = False) -> Expiry:
    """List every file of the store with the reason why it stays or may go; with `yes`, sweep what is due, then mark.

    Raises ConfigError for a grace that is too short and for more than `max_share` of the bytes in one go,
    IntegrityError for anything that cannot be read whole and may keep something, Unavailable while another sweep works.
    """
    swept = Size()
    if yes:
        for mark_name in _due(store, policy):
            swept += _sweep(store, mark_name, policy)
    now, entries = _looked(store, writes=yes)
    rules = _rules(store, entries, now, policy)
    judged = judge(entries, rules)
    if yes:
        _drop_old_lists(store, entries, now - rules.grace)
    outstanding = _outstanding(store)
    waiting = [one for one in judged if not one.keep and one.entry.name in outstanding]
    fresh = [one for one in judged if not one.keep and one.entry.name not in outstanding]
    if yes and fresh:
        _check_share(fresh, entries, policy, "marked")
        listed, digest = write_marked(store, fresh)
        size = Size.of(fresh)
        mark = Mark(
            listed=listed, sha256=digest, files=size.files, bytes=size.bytes, grace_s=rules.grace.total_seconds()
        )
        store.put_if_absent(f"{MARKS}{digest[:SHORT]}.json", document_bytes(mark))
    return Expiry(now, rules.grace, tuple(judged), Size.of(waiting), Size.of(fresh) if yes else Size(), swept)


def undelete(store: Store) -> Size:
    """Drop every mark, so that nothing is deleted; return what was marked. What still nothing needs is marked again by
    the next `expire`: pin it to keep it. Raises Conflict when a sweep had begun, which stops at its next look."""
    dropped = Size()
    for entry, mark in _marks(store):
        store.delete(entry.name)
        dropped += Size(mark.files, mark.bytes)
    if any(not begun.abandoned for begun in _begun(store, store_clock(store, _CLOCK))):
        raise Conflict(
            "the marks are dropped, but a sweep had begun and may have deleted some of the files; it stops within "
            f"{_BATCH} files. `codebooks verify` tells whether a release is whole"
        )
    return dropped


def _looked(store: Store, *, writes: bool) -> tuple[datetime, list[Entry]]:
    """Return the store's clock, taken before the listing, and every file of the store."""
    try:
        now = store_clock(store, _CLOCK)
    except Forbidden:
        if writes:
            raise
        now = None
    entries = list(store.list())
    # Who may not write sees no clock; the newest file's time is not later than it, so nothing seems older than it is.
    return now or max((entry.modified for entry in entries), default=_NEVER), entries


def _rules(
    store: Store, entries: Sequence[Entry], now: datetime, policy: Policy, doomed: Sequence[str] | None = None
) -> Rules:
    grace = grace_of(policy, read_runs(entries).values())
    roots = read_roots(store, entries, now=now, grace=grace, policy=policy, doomed=doomed)
    return Rules(roots, now, grace, policy)


def _due(store: Store, policy: Policy) -> list[str]:
    """Return the marks whose grace is over, oldest first; those of a sweep that broke off come first."""
    now = store_clock(store, _CLOCK)
    runs = read_runs(list(store.list("runs/"))).values()
    grace = grace_of(policy, runs)
    begun = []
    for other in _begun(store, now):
        if not other.abandoned:
            raise Unavailable(f"{other.name}: another sweep is at work; try again when it has ended, within an hour")
        with suppress(NotFound):  # it has ended since
            mark = read_sweep(store, other.name).mark
            if store.exists(mark):
                begun.append(mark)
            else:
                other.clear(store)  # its mark was dropped, or it broke off at its very end
    due = [
        (entry.modified, entry.name)
        for entry, mark in _marks(store)
        if now - entry.modified >= max(grace, timedelta(seconds=mark.grace_s))
    ]
    return list(dict.fromkeys([*begun, *(name for _, name in sorted(due))]))


def _sweep(store: Store, mark_name: str, policy: Policy) -> Size:
    """Delete what a mark lists and still nothing needs."""
    try:
        mark = _read_mark(store, mark_name)
    except NotFound:  # another one has swept it since
        return Size()
    table = read_marked(store, mark.listed, mark.sha256)
    tokens = dict(zip(table["name"].to_pylist(), table["token"].to_pylist(), strict=True))
    releases = tuple(match.group(1) for name in tokens if (match := MANIFEST.fullmatch(name)))
    holder = uuid.uuid4().hex
    sweep = Sweep(holder=holder, mark=mark_name, listed=mark.listed, sha256=mark.sha256, releases=releases)
    turn = _Turn(store, sweep)
    # Only now: a hold that was written before is seen here, one written later sees the sweep and is refused.
    now, entries = _looked(store, writes=True)
    judged = judge(entries, _rules(store, entries, now, policy, doomed=releases))
    going = [one for one in judged if not one.keep and tokens.get(one.entry.name) == one.entry.token]
    try:
        _check_share(going, entries, policy, "swept")
    except ConfigError:
        turn.end()
        raise
    # A release without a manifest is not there, a bundle without a config neither: nobody can meet one half deleted.
    rest = going
    for first in (MANIFEST, POINTER, CONFIG):
        for one in [one for one in rest if first.fullmatch(one.entry.name)]:
            turn.look()
            turn.delete(one.entry.name)
        rest = [one for one in rest if not first.fullmatch(one.entry.name)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for start in range(0, len(rest), _BATCH):
            turn.look()
            list(pool.map(lambda one: turn.delete(one.entry.name), rest[start : start + _BATCH]))
    store.delete(mark_name)
    turn.end()
    return Size.of(going)


class _Turn:
    """That this process, and no other, is sweeping. Its file lies there from before the first until after the last
    deletion, so whoever looks for sweeps meanwhile finds it."""

    def __init__(self, store: Store, sweep: Sweep) -> None:
        self._store, self._sweep = store, sweep
        # Those that broke off stay until the end of this one, whose mark is theirs: see `_due`.
        self._before = _begun(store, store_clock(store, _CLOCK))
        if not all(other.abandoned for other in self._before):
            raise Unavailable("another sweep has just begun; try again when it has ended, within an hour")
        self._number = max((_number(other.name) for other in self._before), default=0) + 1
        self._name, self._signs = f"{SWEEPS}{self._number:012d}.json", 0
        if not store.put_if_absent(self._name, document_bytes(sweep)):
            raise Conflict(f"{self._name}: another process has begun to sweep; this one ends")

        self._looked = elapsed()

    def delete(self, name: str) -> None:
        """Delete a file, after another look where this process has slept since the last one."""
        if elapsed() - self._looked > _SLEPT_S:
            self.look()
        self._store.delete(name)

    def look(self) -> None:
        """Go on. Raises Conflict when the mark was dropped or another process has taken over."""
        self._looked, mine = elapsed(), False
        self._signs += 1
        self._store.put_if_absent(self._sign(self._signs), b"")
        self._store.delete(self._sign(self._signs - 1))
        names = [entry.name for entry in self._store.list(SWEEPS) if entry.name.endswith(".json")]
        with suppress(NotFound):
            mine = max(names, default="") == self._name and read_sweep(self._store, self._name) == self._sweep
        if not mine:
            raise Conflict(f"the sweep {self._name} was taken over by another process; this one ends")
        if not self._store.exists(self._sweep.mark):
            self.end()
            raise Conflict(f"{self._sweep.mark} was dropped: the sweep has stopped")

    def end(self) -> None:
        """Let go: everything that this sweep deletes is deleted."""
        self._store.delete(self._sign(self._signs))
        for other in self._before:
            other.clear(self._store)
        self._store.delete(self._name)

    def _sign(self, number: int) -> str:
        return f"{SWEEPS}{self._number:012d}.{number:06d}.alive"


@dataclass(frozen=True, slots=True)
class _Begun:
    """A sweep that has begun and not ended. signs: all of its files but the first; abandoned: its process is gone."""

    name: str
    signs: tuple[str, ...]
    abandoned: bool

    def clear(self, store: Store) -> None:
        for name in (*self.signs, self.name):
            store.delete(name)


def _begun(store: Store, now: datetime) -> list[_Begun]:
    entries = list(store.list(SWEEPS))
    found = []
    for entry in entries:
        if entry.name.endswith(".json"):
            own = [other for other in entries if _number(other.name) == _number(entry.name)]
            alive = now - max(other.modified for other in own) < _ABANDONED
            found.append(_Begun(entry.name, tuple(other.name for other in own if other is not entry), not alive))
    return found


def _number(name: str) -> int:
    return int(name.removeprefix(SWEEPS).partition(".")[0])


def _drop_old_lists(store: Store, entries: Sequence[Entry], before: datetime) -> None:
    """Delete lists that no mark names any more: they were swept, or dropped."""
    named = {mark.listed for _, mark in _marks(store)}
    for entry in entries:
        if entry.name.startswith(LISTS) and entry.name not in named and entry.modified < before:
            store.delete(entry.name)


def _outstanding(store: Store) -> set[str]:
    """Return the names on all lists that are marked."""
    found: set[str] = set()
    for _, mark in _marks(store):
        found.update(read_marked(store, mark.listed, mark.sha256)["name"].to_pylist())
    return found


def _marks(store: Store) -> Iterator[tuple[Entry, Mark]]:
    """Yield every mark with its file's entry; what is gone since is no mark."""
    for entry in list(store.list(MARKS)):
        try:
            mark = _read_mark(store, entry.name)
        except NotFound:
            continue
        yield entry, mark


def _read_mark(store: Store, name: str) -> Mark:
    try:
        return Mark.model_validate_json(store.get(name))
    except ValidationError as error:
        raise IntegrityError(f"{name} is no mark of this version: delete it, and mark anew ({error})") from error


def _check_share(going: Sequence[Judged], entries: Sequence[Entry], policy: Policy, word: str) -> None:
    total, size = sum(entry.size for entry in entries), Size.of(going)
    if size.bytes > policy.max_share * total:
        raise ConfigError(
            f"{size.files:,} files of {size.bytes:,} bytes would be {word}, {size.bytes / total:.0%} of the store's "
            f"{total:,}, and at most {policy.max_share:.0%} are in one go: look through the inventory of a run without "
            f"--yes, then allow it with --max-share {min(1.0, size.bytes / total + 0.005):.2f}"
        )

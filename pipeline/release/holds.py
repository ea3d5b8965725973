"""What keeps a release from expiring: pins of people, leases of readers, and how both stay clear of a sweep.

    pins/<release_id>/<owner>.json               until a date, or for good
    leases/<release_id>/<holder>/<number>.json   so many seconds from the object's own time; renewed as the next number

A sweep of `expiry` writes what it is about to delete and then reads the holds; a hold is written and then looks for
sweeps. Each writes before it reads, so on a store that shows its writes at least one of the two sees the other.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from typing import Literal, NamedTuple, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from ..errors import CodebooksError, ConfigError, Conflict, IntegrityError, NotFound, Unavailable
from ..keys import DIGEST
from ..storage import Entry, Store
from .manifest import RELEASE_ID, Manifest, document_bytes, manifest_name, release_folder
from .marked import read_marked

PINS, LEASES, SWEEPS = "pins/", "leases/", "expiry/sweeps/"
OWNER = r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}$"
_APPEND_S = 7 * 86_400.0  # a channel's entry is put within this time of the look that nothing is deleted

Document = TypeVar("Document", bound=BaseModel)


class Pin(BaseModel):
    """A release that somebody wants kept. until: the end; None: for good."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    release_id: str = Field(pattern=RELEASE_ID)
    owner: str = Field(pattern=OWNER)
    reason: str
    until: AwareDatetime | None = None
    created: AwareDatetime


class Lease(BaseModel):
    """A release that a process reads. ttl_s: seconds that it lasts from the stored object's own time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    release_id: str = Field(pattern=RELEASE_ID)
    owner: str = Field(pattern=OWNER)
    ttl_s: float = Field(gt=0, le=90 * 86_400.0)


class Sweep(BaseModel):
    """What is being deleted now. mark: its file; listed, sha256: the list; releases: those whose manifests it holds;
    holder: one text for each process's turn, since a number is free again when its sweep has ended."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    holder: str
    mark: str
    listed: str
    sha256: str = Field(pattern=DIGEST)
    releases: tuple[str, ...]


class Held(NamedTuple):
    """A stored hold with its object's own time."""

    name: str
    modified: datetime
    document: Pin | Lease


def pin(store: Store, release: str, *, owner: str, reason: str, until: datetime | None = None) -> Pin:
    """Keep a release from expiring, until a date or for good; the same owner's same pin again is done.

    Raises NotFound when there is no such release, ConfigError for an end in the past or of no time zone, or when the
    owner has another pin on it, Unavailable while a sweep is deleting it.
    """
    now = datetime.now(UTC)
    if until is not None and until.tzinfo is None:
        raise ConfigError(
            f"the pin would end at {until:%Y-%m-%d %H:%M} of no time zone; give one, as in {now:%Y}-12-31Z"
        )
    if until is not None and until <= now:
        raise ConfigError(f"the pin would end at {until:%Y-%m-%d %H:%M} UTC, which is past; give a later date")
    name = _pin_name(release, owner)
    made = Pin(release_id=release, owner=owner, reason=reason, until=until, created=now)
    if not store.put_if_absent(name, document_bytes(made)):
        standing = _read(store, name, Pin)
        if (standing.until, standing.reason) != (until, reason):
            raise ConfigError(
                f"{owner} has pinned {release} already, {_end(standing)} ({standing.reason}); unpin it first, or pin "
                "under another owner"
            )
        made = standing
    with _undone_on_error(store, name):
        check_not_swept(store, release)
    return made


def unpin(store: Store, release: str, *, owner: str) -> bool:
    """Take an owner's pin away; return whether there was one."""
    name = _pin_name(release, owner)
    found = store.exists(name)
    store.delete(name)
    return found


class HeldLease:
    """A lease that this process holds on a release; `renew` it well within its `ttl_s`, `close` it at the end.

    In a forked child it is the parent's: `renew` then begins one of the child's own, and `close` does nothing.
    """

    def __init__(self, store: Store, release: str, *, owner: str, ttl_s: float) -> None:
        """Use `take_lease`."""
        self.release_id, self.ttl_s = release, ttl_s
        self._store = store
        self._base = f"{LEASES}{_plain(release)}/{_owner(owner)}"
        self._document = document_bytes(Lease(release_id=release, owner=owner, ttl_s=ttl_s))
        self._begin()
        self.renew()

    def _begin(self) -> None:
        self._process, self._number = os.getpid(), 0
        self._folder = f"{self._base}-{uuid.uuid4().hex[:12]}/"

    @property
    def _name(self) -> str:
        return f"{self._folder}{self._number:06d}.json"

    def renew(self) -> None:
        """Begin the lease's time anew. Raises NotFound when the release has expired, Unavailable while it is swept."""
        if self._process != os.getpid():
            self._begin()
        before = self._name
        self._number += 1
        self._store.put_if_absent(self._name, self._document)  # taken: by this call, its reply lost
        with _undone_on_error(self._store, self._name):
            check_not_swept(self._store, self.release_id)
        self._store.delete(before)
        self._renewed = time.monotonic()

    def renew_when_due(self) -> None:
        """Renew once an eighth of its time has passed; cheap enough for every look of a poller. Errors as `renew`."""
        if self._process != os.getpid() or time.monotonic() - self._renewed > self.ttl_s / 8:
            self.renew()

    def close(self) -> None:
        """Let go; a lease that nobody renews ends by itself."""
        if self._process == os.getpid():
            self._store.delete(self._name)


def take_lease(store: Store, release: str, *, owner: str, ttl_s: float = 86_400.0) -> HeldLease:
    """Return a lease on a release: it does not expire for `ttl_s` seconds of the store's time.

    Needs the right to write below `leases/` only. Raises NotFound when there is no such release, Unavailable while a
    sweep is deleting it.
    """
    return HeldLease(store, release, owner=owner, ttl_s=ttl_s)


@contextlib.contextmanager
def kept_while_appending(store: Store, manifest: Manifest) -> Iterator[None]:
    """Keep a release from a sweep until a channel's log names it; nothing of it is being deleted at the beginning."""
    lease = take_lease(store, manifest.release_id, owner="publish", ttl_s=_APPEND_S)
    try:
        check_not_swept(store, manifest.release_id, names=manifest.names())
        yield
    finally:
        with contextlib.suppress(CodebooksError):  # it ends by itself
            lease.close()


def check_not_swept(store: Store, release: str, names: Collection[str] = ()) -> None:
    """Raise Unavailable when a sweep may be deleting a release or one of `names`, NotFound when there is no release."""
    for sweep in read_sweeps(store):
        if release in sweep.releases:
            raise _being_deleted(f"release {release}")
        _check_unlisted(store, sweep, names)
    if not store.exists(manifest_name(release)):
        raise NotFound(f"there is no release {release!r} on {store.url}; `codebooks releases` lists those of a channel")


def check_names_not_swept(store: Store, names: Collection[str]) -> None:
    """Raise Unavailable when a sweep may be deleting one of `names`."""
    for sweep in read_sweeps(store):
        _check_unlisted(store, sweep, names)


def _check_unlisted(store: Store, sweep: Sweep, names: Collection[str]) -> None:
    listed = set(names) and set(names) & set(read_marked(store, sweep.listed, sweep.sha256)["name"].to_pylist())
    if listed:
        raise _being_deleted(min(listed))


def _being_deleted(what: str) -> Unavailable:
    return Unavailable(f"{what} is on the list that `codebooks expire` is deleting now; try again when that has ended")


def read_sweeps(store: Store) -> list[Sweep]:
    """Return the sweeps that have begun and not ended."""
    found = []
    for entry in store.list(SWEEPS):
        with contextlib.suppress(NotFound):  # it has ended since
            if entry.name.endswith(".json"):
                found.append(read_sweep(store, entry.name))
    return found


def read_sweep(store: Store, name: str) -> Sweep:
    """Return one sweep. Raises NotFound, IntegrityError."""
    return _read(store, name, Sweep)


def read_holds(store: Store, entries: Collection[Entry]) -> list[Held]:
    """Return the pins and leases among listed entries; what is gone since holds no more.

    Raises IntegrityError for one that cannot be read whole, an unknown field among it: nobody knows then what it keeps.
    """
    found = []
    for entry in entries:
        kind: type[Pin | Lease] | None = (
            Pin if entry.name.startswith(PINS) else Lease if entry.name.startswith(LEASES) else None
        )
        if kind is not None:
            with contextlib.suppress(NotFound):
                found.append(Held(entry.name, entry.modified, _read(store, entry.name, kind)))
    return found


def holders(store: Store) -> dict[str, list[str]]:
    """Return who pins or leases each release, from the names alone: ended ones that nobody cleared are among them."""
    found: dict[str, list[str]] = {}
    for prefix, word in ((PINS, ""), (LEASES, " (lease)")):
        for entry in store.list(prefix):
            release, _, rest = entry.name.removeprefix(prefix).partition("/")
            owner = rest.removesuffix(".json") if not word else rest.partition("/")[0].rpartition("-")[0]
            found.setdefault(release, []).append(f"{owner}{word}")
    return found


def _pin_name(release: str, owner: str) -> str:
    return f"{PINS}{_plain(release)}/{_owner(owner)}.json"


def _plain(release: str) -> str:
    """Return a release's id as part of a name. Raises ConfigError for what is none."""
    return release_folder(release).split("/")[1]


def _owner(owner: str) -> str:
    if not re.fullmatch(OWNER, owner):
        raise ConfigError(
            f"{owner!r} is no owner; use up to 64 letters, digits, '.', '_', '@', '+' and '-', as ranking-team"
        )
    return owner


def _end(pinned: Pin) -> str:
    return "for good" if pinned.until is None else f"until {pinned.until:%Y-%m-%d %H:%M} UTC"


def _read(store: Store, name: str, kind: type[Document]) -> Document:
    try:
        return kind.model_validate_json(store.get(name))
    except ValidationError as error:
        raise IntegrityError(
            f"{name} cannot be understood, so nothing expires as long as it is there; upgrade visual-codebooks if a "
            f"newer version wrote it, else delete it ({error})"
        ) from error


@contextlib.contextmanager
def _undone_on_error(store: Store, name: str) -> Iterator[None]:
    try:
        yield
    except (NotFound, Unavailable, Conflict):
        with contextlib.suppress(CodebooksError):
            store.delete(name)
        raise

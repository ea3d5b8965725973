"""The channel log: which release is current. The highest number wins; entries are only ever appended."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import chain
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from ..errors import ConfigError, Conflict, IntegrityError, NotFound
from ..keys import DIGEST
from ..storage import Store
from .allowances import read_allowances, write_allowance
from .config import CHANNEL_NAME
from .format import check_store
from .holds import kept_while_appending
from .manifest import RELEASE_ID, Manifest, document_bytes, read_hashed_manifest, read_manifest
from .write import check_listed

CHANNELS = "channels/"
_ENTRY = re.compile(r"(\d{12})\.json")

Reason = Literal["publish", "rollback", "promote"]


class ChannelEntry(BaseModel):
    """One line of a channel's log. run, attempt: which made the release; reason: why it became current."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int = Field(ge=1)
    release_id: str = Field(pattern=RELEASE_ID)
    manifest_sha256: str = Field(pattern=DIGEST)
    run: str
    attempt: int
    reason: Reason
    created: AwareDatetime


def entry_name(channel: str, number: int) -> str:
    """Return the name of a log entry on the store. Raises ConfigError on a name that is no channel's."""
    return f"{_folder(channel)}{number:012d}.json"


def read_head(store: Store, channel: str) -> ChannelEntry | None:
    """Return the current entry of a channel, or None when nothing was ever published on it."""
    numbers = list(_numbers(store, channel))
    return _read_entry(store, channel, max(numbers)) if numbers else None


def asked_manifest(store: Store, release: str | None, channel: str) -> Manifest:
    """Return the manifest of a release, None for the current one of a channel. Raises NotFound where there is none."""
    check_store(store)
    if release is not None:
        return read_manifest(store, release)
    head = channel_head(store, channel)
    return read_manifest(store, head.release_id, expect_sha256=head.manifest_sha256)


def channel_head(store: Store, channel: str) -> ChannelEntry:
    """Return the current entry of a channel. Raises NotFound when nothing was ever published on it."""
    head = read_head(store, channel)
    if head is None:
        raise NotFound(
            f"channel {channel!r} on {store.url} has no release yet; run `codebooks refresh`, or name another channel"
        )
    return head


def read_log(store: Store, channel: str, *, last: int | None = None) -> list[ChannelEntry]:
    """Return the entries of a channel, oldest first; the last one is current. last: only the newest so many."""
    numbers = log_numbers(store, channel)
    return read_entries(store, channel, numbers if last is None else numbers[-last:])


def log_numbers(store: Store, channel: str) -> list[int]:
    """Return the numbers of a channel's entries, oldest first, from a listing alone."""
    return sorted(_numbers(store, channel))


def read_entries(store: Store, channel: str, numbers: Iterable[int]) -> list[ChannelEntry]:
    """Return the entries of these numbers, in this order. Raises IntegrityError for one that is damaged."""
    return [_read_entry(store, channel, number) for number in numbers]


def channel_names(store: Store) -> list[str]:
    """Return the names of the store's channels."""
    found = {entry.name.removeprefix(CHANNELS).partition("/")[0] for entry in store.list(CHANNELS)}
    return sorted(name for name in found if re.fullmatch(CHANNEL_NAME, name))


def published_digest(store: Store, release: str) -> str | None:
    """Return the sha256 that some channel's log has of a release's manifest, None when none names it."""
    for channel in channel_names(store):
        for number in reversed(log_numbers(store, channel)):
            entry = _read_entry(store, channel, number)
            if entry.release_id == release:
                return entry.manifest_sha256
    return None


def publish(
    store: Store,
    channel: str,
    *,
    expected_head: int,
    release_id: str,
    manifest_sha256: str,
    run: str,
    attempt: int,
    reason: Reason = "publish",
) -> ChannelEntry:
    """Append a release to a channel as entry `expected_head` + 1, and only as that.

    expected_head: the head's number when the run froze its plan, 0 for an empty channel. When that entry already names
    this release the run had won before its reply was lost, and the entry is returned. Raises Conflict, naming the
    winner, when the entry is anything else: a newer state of the channel is never overwritten by an older plan. After
    Unavailable the outcome is unknown; the same call again finds out. Raises ConfigError for a sample of a catalogue
    where the channel's release is of a whole one.
    """
    check_store(store)
    # The manifest is read first: what the log names must be whole before any reader can meet it.
    manifest = read_manifest(store, release_id, expect_sha256=manifest_sha256)
    number = expected_head + 1
    if manifest.sample is not None and expected_head:
        check_takes_samples(store, channel, _read_entry(store, channel, expected_head), what=f"release {release_id}")
    entry = ChannelEntry(
        number=number,
        release_id=release_id,
        manifest_sha256=manifest_sha256,
        run=run,
        attempt=attempt,
        reason=reason,
        created=datetime.now(UTC),
    )
    name = entry_name(channel, number)
    if expected_head > 0 and not store.exists(entry_name(channel, expected_head)):
        raise IntegrityError(
            f"channel {channel!r} has no entry {expected_head}, so {name} would leave a gap; "
            "was the log deleted or is this another store? Run again under a new name"
        )
    with kept_while_appending(store, manifest):
        # What an expiry took since the manifest was written must not become current.
        check_listed(store, [*manifest.parts, *manifest.bundle_files(), *chain.from_iterable(manifest.files.values())])
        if store.put_if_absent(name, document_bytes(entry)):
            return entry
    winner = _read_entry(store, channel, number)
    if (winner.release_id, winner.manifest_sha256) == (release_id, manifest_sha256):
        return winner
    raise Conflict(
        f"channel {channel!r} moved on while {release_id!r} was made: entry {number} is the {winner.reason} of release "
        f"{winner.release_id!r} by run {winner.run!r}, attempt {winner.attempt}, at {winner.created:%Y-%m-%d %H:%M:%S} "
        "UTC. The channel stays as it is; start a new run to build on that release"
    )


def check_takes_samples(store: Store, channel: str, head: ChannelEntry, *, what: str) -> None:
    """Raise ConfigError when a channel's current release is of a whole catalogue: no sample may follow it.

    what: the sample, as the message names it.
    """
    try:
        current = read_manifest(store, head.release_id).sample
    except NotFound:  # expired, so nobody can tell: taken for a whole one
        current = None
    if current is None:
        raise ConfigError(
            f"{what} is a sample of its catalogue, and the current release of channel {channel!r}, {head.release_id}, "
            "is of a whole one: readers would lose every item that was not drawn. Name a channel of its own for "
            "samples, for example --channel sample"
        )


def rollback(store: Store, channel: str, *, to: str | None = None) -> ChannelEntry:
    """Make an earlier release current by appending it to the log, and return the new head.

    to: a release_id, which must still have its manifest; None: the release that was current before this one was
    published (a second rollback goes one further back). When `to` is current already, nothing is written.
    A publish at the same moment raises Conflict: look at the log again and decide anew, since "the one before" may have
    become another. A refresh under way then fails with Conflict too: an operator's rollback wins over a stale plan.
    """
    log = read_log(store, channel)
    if not log:
        raise NotFound(f"channel {channel!r} on {store.url} has no releases, so there is nothing to roll back")
    current = log[-1]
    target = to if to is not None else _before(log)
    if target is None:
        raise ConfigError(
            f"channel {channel!r} has no release before {current.release_id!r}; name one with --to RELEASE_ID"
        )
    if target == current.release_id:
        return current
    manifest, digest = read_hashed_manifest(store, target, expect_sha256=_published_digest(log, target))
    return publish(
        store,
        channel,
        expected_head=current.number,
        release_id=target,
        manifest_sha256=digest,
        run=manifest.run,
        attempt=manifest.attempt,
        reason="rollback",
    )


def promote(
    store: Store,
    from_channel: str,
    to_channel: str,
    *,
    release: str | None = None,
    allowed: Mapping[str, str] | None = None,
) -> ChannelEntry:
    """Make a release of one channel the current one of another, and return that one's head.

    release: one that is in the log of `from_channel`; None: its current one. allowed: the reasons by gate of what a
    person let pass. When it is current there already, nothing is written. Only presence is looked at here:
    `verify_release` reads the bytes. Raises NotFound when `from_channel` is empty or never had the release, Conflict
    when `to_channel` moved meanwhile, ConfigError for a sample where `to_channel` is empty or has one of a whole
    catalogue.
    """
    source = promotable(store, from_channel, release)
    head = read_head(store, to_channel)
    if head is not None and head.release_id == source.release_id:
        return head
    if head is None and read_manifest(store, source.release_id, expect_sha256=source.manifest_sha256).sample:
        raise ConfigError(
            f"release {source.release_id} is a sample of its catalogue, and {to_channel!r} is empty: its readers "
            "would take it for the catalogue. `codebooks refresh --limit N --channel NAME` begins a channel for samples"
        )
    number, own = 0 if head is None else head.number, entry_name(from_channel, source.number)
    before = read_allowances(store, {own: source.manifest_sha256}).get(own, {})
    write_allowance(
        store,
        entry_name(to_channel, number + 1),
        release_id=source.release_id,
        manifest_sha256=source.manifest_sha256,
        run=source.run,
        attempt=source.attempt,
        allowed={**before, **(allowed or {})},  # what let it onto its first channel goes with it
    )
    return publish(
        store,
        to_channel,
        expected_head=number,
        release_id=source.release_id,
        manifest_sha256=source.manifest_sha256,
        run=source.run,
        attempt=source.attempt,
        reason="promote",
    )


def unmoved_text(channel: str, release_id: str) -> str:
    """Return what is said where a channel has the release already that it is to have."""
    return f"{release_id} is the current release of channel {channel} already; nothing was changed"


def undo_text(channel: str, before: ChannelEntry) -> str:
    """Return the command that brings a channel back to the release that it had before."""
    return f"Undo with: codebooks rollback --channel {channel} --to {before.release_id}"


def promotable(store: Store, channel: str, release: str | None = None) -> ChannelEntry:
    """Return the newest entry of a channel's log that names a release, None: its head. Raises NotFound."""
    numbers = log_numbers(store, channel)
    if not numbers:
        raise NotFound(f"channel {channel!r} on {store.url} has no releases to promote")
    for number in reversed(numbers):
        entry = _read_entry(store, channel, number)
        if release in (None, entry.release_id):
            return entry
    raise NotFound(
        f"channel {channel!r} on {store.url} never had the release {release!r}; `codebooks releases --channel {channel}"
        "` lists those it had. Only what passed a channel's gates is promoted"
    )


def _before(log: list[ChannelEntry]) -> str | None:
    """Return the release that was current when the current one was published.

    A rollback repeats an older release, so the search starts where that one was last published, not at the log's end:
    otherwise two rollbacks in a row would swap the same two releases.
    """
    current = log[-1].release_id
    start = len(log) - 1
    if log[-1].reason == "rollback":
        published = [i for i, entry in enumerate(log) if entry.release_id == current and entry.reason != "rollback"]
        start = published[-1] if published else start
    return next((entry.release_id for entry in reversed(log[:start]) if entry.release_id != current), None)


def _published_digest(log: list[ChannelEntry], release: str) -> str | None:
    return next((entry.manifest_sha256 for entry in reversed(log) if entry.release_id == release), None)


def _folder(channel: str) -> str:
    if not re.fullmatch(CHANNEL_NAME, channel):
        raise ConfigError(
            f"{channel!r} is no channel name; use lower-case letters, digits, '.', '_' and '-', for example 'stable'"
        )
    return f"{CHANNELS}{channel}/"


def _numbers(store: Store, channel: str) -> Iterator[int]:
    folder = _folder(channel)
    for entry in store.list(folder):
        match = _ENTRY.fullmatch(entry.name.removeprefix(folder))
        if match:
            yield int(match.group(1))


def _read_entry(store: Store, channel: str, number: int) -> ChannelEntry:
    name = entry_name(channel, number)
    try:
        entry = ChannelEntry.model_validate_json(store.get(name))
    except ValidationError as error:
        raise IntegrityError(
            f"{name} is not a channel entry; restore it from the store's versions or a copy, or delete it: the channel "
            f"then goes by its other entries, and a rollback --to writes a newest one again ({error})"
        ) from error
    if entry.number != number:
        raise IntegrityError(
            f"{name} says that it is number {entry.number}: the log was copied or edited by hand; restore it from the "
            "store's versions or a copy, or delete it"
        )
    return entry

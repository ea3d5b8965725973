"""What a channel's log tells: which release was current when, what was in it, who holds on to it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ..errors import ConfigError, NotFound
from ..storage import Store
from .allowances import read_allowances
from .channel import ChannelEntry, entry_name, log_numbers, read_entries
from .manifest import Manifest, read_manifest

_COUNTS = ("items", "photos", "refused", "added", "changed", "removed")
_RECALL = "recall"


@dataclass(frozen=True, slots=True)
class Told:
    """One line of a channel's history. manifest: None once the release has expired; holders: who pins or leases it;
    allowed: the reasons by gate of what a person let pass."""

    entry: ChannelEntry
    manifest: Manifest | None
    current: bool
    holders: tuple[str, ...] = ()
    allowed: Mapping[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> str | None:
        """What the gates said: `passed`; `allowed`, by a person with a reason; `refused`, of a release that a rollback
        put live by its id. None where no gates are recorded."""
        if self.allowed:
            return "allowed"
        if self.manifest is None or not self.manifest.config.get("gates"):
            return None
        failed = [verdict for verdict in self.manifest.verdicts or () if not verdict["passed"]]
        if not failed:
            return "passed"
        return "refused" if any(verdict["allowed"] is None for verdict in failed) else "allowed"

    def row(self) -> dict[str, Any]:
        """Return this line as plain values for JSON."""
        entry, manifest = self.entry, self.manifest
        return {
            "number": entry.number,
            "created": entry.created.isoformat(timespec="seconds"),
            "release": entry.release_id,
            "reason": entry.reason,
            "run": entry.run,
            "attempt": entry.attempt,
            "current": self.current,
            "expired": manifest is None,
            "model_id": manifest.model_id if manifest else None,
            "counts": dict(manifest.counts) if manifest else {},
            "recall": manifest.measures.get(_RECALL) if manifest else None,
            "verdict": self.verdict,
            **({"allowed": dict(self.allowed)} if self.allowed else {}),
            "pins": list(self.holders),
        }


@dataclass(frozen=True, slots=True)
class History:
    """The lines asked for, oldest first, and how many older ones there are before them."""

    channel: str
    told: tuple[Told, ...]
    left_out: int


def history(
    store: Store, channel: str, *, last: int = 20, holders: Mapping[str, Sequence[str]] | None = None
) -> History:
    """Return the newest `last` lines of a channel; older entries are listed, not read. holders: by release_id."""
    numbers = log_numbers(store, channel)
    shown = read_entries(store, channel, numbers[-max(1, last) :])
    return _told(store, channel, shown, holders or {}, head=shown[-1].number if shown else 0, before=len(numbers))


def live_at(
    store: Store, channel: str, moment: datetime, *, holders: Mapping[str, Sequence[str]] | None = None
) -> History:
    """Return the one line that was current at a moment, by the times that the entries carry.

    Those are the publishers' clocks, so the answer is as exact as these. About log2 of the entries are read. Raises
    NotFound when nothing was published by then.
    """
    numbers = log_numbers(store, channel)
    read: dict[int, ChannelEntry] = {}

    def created(number: int) -> datetime:
        read[number] = read_entries(store, channel, [number])[0]
        return read[number].created

    place = bisect_right(numbers, moment, key=created)
    if place == 0:
        raise NotFound(
            f"channel {channel!r} on {store.url} had no release yet at {moment:%Y-%m-%d %H:%M:%S} UTC; `codebooks "
            "releases` shows when the first came"
        )
    entry = read.get(numbers[place - 1]) or read_entries(store, channel, [numbers[place - 1]])[0]
    return _told(store, channel, [entry], holders or {}, head=numbers[-1], before=place)


def parse_moment(text: str) -> datetime:
    """Return a moment of a command line, UTC where it names no zone. Raises ConfigError."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(
            f"{text!r} is no time; write it as 2026-11-21 or 2026-11-21T03:00 or 2026-11-21T03:00+01:00, UTC where no "
            "zone is named"
        ) from error
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def none_yet_text(store: Store, channel: str) -> str:
    """Return what is said of a channel without any."""
    return f"channel {channel!r} on {store.url} has no releases yet; `codebooks refresh` publishes one"


def history_text(found: History) -> str:
    """Return a history as a table for people."""
    rows = [(told, told.row()) for told in found.told]
    counts = [name for name in _COUNTS if any(name in row["counts"] for _, row in rows)]
    more = [name for name in ("recall", "verdict", "pins") if any(row[name] for _, row in rows)]
    heading = ["", "number", "created (UTC)", "release", "reason", *counts, *more]
    cells = [heading]
    for told, row in rows:
        numbers = [f"{row['counts'][name]:,}" if name in row["counts"] else "-" for name in counts]
        created = told.entry.created.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
        release = row["release"] + (" (expired)" if row["expired"] else "")
        number = str(row["number"])
        extra = [_shown(row[name]) for name in more]
        cells.append(["*" if row["current"] else "", number, created, release, row["reason"], *numbers, *extra])
    lines = [f"channel {found.channel}, * marks the current release", *_aligned(cells, {1, *range(5, 5 + len(counts))})]
    lines += [f"{t.entry.number}: {gate} was allowed: {why}" for t in found.told for gate, why in t.allowed.items()]
    if found.left_out:
        lines.append(f"{found.left_out:,} older entries are left out; --last N shows more")
    return "\n".join(lines)


def _told(
    store: Store,
    channel: str,
    entries: Sequence[ChannelEntry],
    holders: Mapping[str, Sequence[str]],
    *,
    head: int,
    before: int,
) -> History:
    manifests = {release: _manifest(store, release) for release in {entry.release_id for entry in entries}}
    allowed = read_allowances(store, {entry_name(channel, one.number): one.manifest_sha256 for one in entries})
    told = tuple(
        Told(
            entry,
            manifests[entry.release_id],
            entry.number == head,
            tuple(holders.get(entry.release_id, ())),
            allowed.get(entry_name(channel, entry.number), {}),
        )
        for entry in entries
    )
    return History(channel, told, before - len(told))


def _manifest(store: Store, release: str) -> Manifest | None:
    try:
        return read_manifest(store, release)
    except NotFound:  # expired; the log still tells of it
        return None


def _shown(value: Any) -> str:
    if not value:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else ", ".join(value) if isinstance(value, list) else str(value)


def _aligned(cells: list[list[str]], right: set[int]) -> list[str]:
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]

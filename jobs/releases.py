"""List what a channel has published."""

from __future__ import annotations

import argparse
from typing import Any

from jobs.command import Arguments, Outcome
from jobs.place import load_light
from pipeline.errors import NotFound
from pipeline.release import ChannelEntry, Manifest, check_store, read_log, read_manifest
from pipeline.storage import Store

_SHOWN_COUNTS = ("items", "photos", "refused", "added", "changed", "removed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `releases`."""
    parser.add_argument("--channel", metavar="NAME", help="the channel; by default that of the config, or `stable`")
    parser.add_argument("--last", metavar="N", type=int, default=20, help="only the newest N entries (default 20)")


def run(arguments: Arguments) -> Outcome:
    """Read the channel's log and the counts of the releases in it."""
    config = load_light(arguments)
    store = config.store.open()
    check_store(store)
    channel = arguments.options.channel or config.publish.channel
    log = read_log(store, channel)
    if not log:
        text = f"channel {channel!r} on {store.url} has no releases yet; `codebooks refresh` publishes one"
        return Outcome(reason="no releases", details={"channel": channel, "releases": []}, text=text)
    shown = log[-max(1, arguments.options.last) :]
    manifests = {release: _manifest(store, release) for release in {entry.release_id for entry in shown}}
    rows = [_row(entry, manifests[entry.release_id], current=entry is log[-1]) for entry in shown]
    return Outcome(
        release=log[-1].release_id,
        reason="listed",
        details={"channel": channel, "releases": rows},
        text=_table(rows, channel, left_out=len(log) - len(shown)),
    )


def _manifest(store: Store, release: str) -> Manifest | None:
    try:
        return read_manifest(store, release)
    except NotFound:  # expired; the log still tells of it
        return None


def _row(entry: ChannelEntry, manifest: Manifest | None, *, current: bool) -> dict[str, Any]:
    return {
        "number": entry.number,
        "created": entry.created.isoformat(timespec="seconds"),
        "release": entry.release_id,
        "reason": entry.reason,
        "run": entry.run,
        "attempt": entry.attempt,
        "current": current,
        "expired": manifest is None,
        "model_id": manifest.model_id if manifest else None,
        "counts": dict(manifest.counts) if manifest else {},
    }


def _table(rows: list[dict[str, Any]], channel: str, *, left_out: int) -> str:
    names = [name for name in _SHOWN_COUNTS if any(name in row["counts"] for row in rows)]
    heading = ["", "number", "created (UTC)", "release", "reason", *names]
    cells = [heading]
    for row in rows:
        counts = [f"{row['counts'][name]:,}" if name in row["counts"] else "-" for name in names]
        created = row["created"].removesuffix("+00:00").replace("T", " ")
        release = row["release"] + (" (expired)" if row["expired"] else "")
        cells.append(["*" if row["current"] else "", str(row["number"]), created, release, row["reason"], *counts])
    widths = [max(len(line[column]) for line in cells) for column in range(len(heading))]
    right = {1, *range(5, len(heading))}
    lines = [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    lines.insert(0, f"channel {channel}, * marks the current release")
    if left_out:
        lines.append(f"{left_out:,} older entries are left out; --last N shows more")
    return "\n".join(lines)

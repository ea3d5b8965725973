"""Make an earlier release current again."""

from __future__ import annotations

import argparse

from jobs.command import Arguments, Outcome
from jobs.place import load_light
from pipeline.errors import NotFound
from pipeline.release import check_store, read_head, rollback


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `rollback`."""
    parser.add_argument("--channel", metavar="NAME", help="the channel; by default that of the config, or `stable`")
    parser.add_argument("--to", metavar="RELEASE_ID", help="the release; by default the one before the current one")


def run(arguments: Arguments) -> Outcome:
    """Append an earlier release to the channel's log; nothing is deleted, and a later rollback can undo it."""
    config = load_light(arguments)
    store = config.store.open()
    check_store(store)
    channel = arguments.options.channel or config.publish.channel
    before = read_head(store, channel)
    if before is None:
        raise NotFound(f"channel {channel!r} on {store.url} has no releases, so there is nothing to roll back")
    entry = rollback(store, channel, to=arguments.options.to)
    details = {"channel": channel, "number": entry.number, "before": before.release_id}
    if entry.number == before.number:
        text = f"{entry.release_id} is the current release of channel {channel} already; nothing was changed"
        return Outcome(release=entry.release_id, reason="nothing to do", details=details, text=text)
    text = (
        f"channel {channel} is back at {entry.release_id} (number {entry.number}); it was at {before.release_id}. "
        f"Undo with: codebooks rollback --channel {channel} --to {before.release_id}"
    )
    return Outcome(release=entry.release_id, published=True, reason="rolled back", details=details, text=text)

"""Make an earlier release current again."""

from __future__ import annotations

from jobs.command import Arguments, Outcome
from jobs.options import CHANNEL, option, takes
from jobs.place import open_place
from pipeline.errors import NotFound
from pipeline.release import read_head, rollback
from pipeline.release.channel import undo_text, unmoved_text

add_arguments = takes(
    CHANNEL,
    option("--to", metavar="RELEASE_ID", help="the release; by default the one before the current one"),
)


def run(arguments: Arguments) -> Outcome:
    """Append an earlier release to the channel's log; nothing is deleted, and a later rollback can undo it."""
    place = open_place(arguments)
    store, channel = place.store, place.channel
    before = read_head(store, channel)
    if before is None:
        raise NotFound(f"channel {channel!r} on {store.url} has no releases, so there is nothing to roll back")
    entry = rollback(store, channel, to=arguments.options.to)
    details = {"channel": channel, "number": entry.number, "before": before.release_id}
    if entry.number == before.number:
        text = unmoved_text(channel, entry.release_id)
        return Outcome(release=entry.release_id, reason="nothing to do", details=details, text=text)
    text = f"channel {channel} is back at {entry.release_id} (number {entry.number}); it was at {before.release_id}. "
    text += undo_text(channel, before)
    return Outcome(release=entry.release_id, published=True, reason="rolled back", details=details, text=text)

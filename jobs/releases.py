"""List what a channel has published."""

from __future__ import annotations

from jobs.command import Arguments, Outcome
from jobs.options import CHANNEL, option, takes
from jobs.place import open_place
from pipeline.release import history, history_text, holders, live_at, none_yet_text, parse_moment

add_arguments = takes(
    CHANNEL,
    option("--last", metavar="N", type=int, default=20, help="only the newest N entries (default 20)"),
    option("--at", metavar="TIME", help="the one that was current then, as 2026-11-21T03:00 (UTC)"),
)


def run(arguments: Arguments) -> Outcome:
    """Read the channel's log and the counts of the releases in it."""
    place, options = open_place(arguments), arguments.options
    store, channel = place.store, place.channel
    if options.at is not None:
        found = live_at(store, channel, parse_moment(options.at), holders=holders(store))
    else:
        found = history(store, channel, last=options.last, holders=holders(store))
    rows = [told.row() for told in found.told]
    details = {"channel": channel, "releases": rows}
    if not rows:
        return Outcome(reason="no releases", details=details, text=none_yet_text(store, channel))
    return Outcome(release=rows[-1]["release"], reason="listed", details=details, text=history_text(found))

"""Keep a release from expiring."""

from __future__ import annotations

from jobs.command import Arguments, Outcome
from jobs.options import option, owner, takes
from jobs.place import open_place
from pipeline.release import parse_moment, pin

add_arguments = takes(
    option("release", metavar="RELEASE_ID", help="the release to keep"),
    owner("who wants it kept; by default you"),
    option("--until", metavar="TIME", help="when the pin ends, as 2027-01-31; by default never"),
    option("--reason", metavar="TEXT", default="-", help="why, for those who clean up"),
)


def run(arguments: Arguments) -> Outcome:
    """Write the pin; `codebooks unpin` takes it away."""
    options = arguments.options
    store = open_place(arguments).store
    until = None if options.until is None else parse_moment(options.until)
    made = pin(store, options.release, owner=options.owner, reason=options.reason, until=until)
    end = f"until {made.until:%Y-%m-%d %H:%M} UTC" if made.until else "for good"
    text = f"{made.release_id} is pinned by {made.owner} {end}"
    return Outcome(release=made.release_id, reason="pinned", details={"pin": made.model_dump(mode="json")}, text=text)

"""Let a release expire again that somebody had pinned."""

from __future__ import annotations

from jobs.command import Arguments, Outcome
from jobs.options import option, owner, takes
from jobs.place import open_place
from pipeline.release import unpin

add_arguments = takes(
    option("release", metavar="RELEASE_ID", help="the release"),
    owner("whose pin; by default yours"),
)


def run(arguments: Arguments) -> Outcome:
    """Delete the pin; whatever else keeps the release goes on keeping it."""
    options = arguments.options
    store = open_place(arguments).store
    found = unpin(store, options.release, owner=options.owner)
    text = f"{options.release} is {'no longer' if found else 'not'} pinned by {options.owner}"
    reason = "unpinned" if found else "nothing to do"
    return Outcome(release=options.release, reason=reason, details={"owner": options.owner}, text=text)

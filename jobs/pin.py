"""Keep a release from expiring."""

from __future__ import annotations

import argparse
import getpass

from jobs.command import Arguments, Outcome
from jobs.place import load_light
from pipeline.release import check_store, parse_moment, pin


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `pin`."""
    parser.add_argument("release", metavar="RELEASE_ID", help="the release to keep")
    parser.add_argument("--owner", metavar="NAME", default=getpass.getuser(), help="who wants it kept; by default you")
    parser.add_argument("--until", metavar="TIME", help="when the pin ends, as 2027-01-31; by default never")
    parser.add_argument("--reason", metavar="TEXT", default="-", help="why, for those who clean up")


def run(arguments: Arguments) -> Outcome:
    """Write the pin; `codebooks unpin` takes it away."""
    options = arguments.options
    store = load_light(arguments).store.open()
    check_store(store)
    until = None if options.until is None else parse_moment(options.until)
    made = pin(store, options.release, owner=options.owner, reason=options.reason, until=until)
    end = f"until {made.until:%Y-%m-%d %H:%M} UTC" if made.until else "for good"
    text = f"{made.release_id} is pinned by {made.owner} {end}"
    return Outcome(release=made.release_id, reason="pinned", details={"pin": made.model_dump(mode="json")}, text=text)

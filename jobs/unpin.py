"""Let a release expire again that somebody had pinned."""

from __future__ import annotations

import argparse
import getpass

from jobs.command import Arguments, Outcome
from jobs.place import load_light
from pipeline.release import check_store, unpin


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `unpin`."""
    parser.add_argument("release", metavar="RELEASE_ID", help="the release")
    parser.add_argument("--owner", metavar="NAME", default=getpass.getuser(), help="whose pin; by default yours")


def run(arguments: Arguments) -> Outcome:
    """Delete the pin; whatever else keeps the release goes on keeping it."""
    options = arguments.options
    store = load_light(arguments).store.open()
    check_store(store)
    found = unpin(store, options.release, owner=options.owner)
    text = f"{options.release} is {'no longer' if found else 'not'} pinned by {options.owner}"
    reason = "unpinned" if found else "nothing to do"
    return Outcome(release=options.release, reason=reason, details={"owner": options.owner}, text=text)

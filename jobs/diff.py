"""Show what changed from one release to another."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from jobs.command import Arguments, Outcome
from jobs.place import load_light
from pipeline.errors import CodebooksError
from pipeline.index.moved import moved_neighbours
from pipeline.release import check_store, diff_releases, diff_text, published_digest, read_manifest
from pipeline.storage.cache import FileCache


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `diff`."""
    parser.add_argument("before", metavar="RELEASE_A", help="the earlier release")
    parser.add_argument("after", metavar="RELEASE_B", help="the later one")
    parser.add_argument("--sample", metavar="N", type=int, default=200, help="items whose neighbours are compared")
    parser.add_argument("-k", metavar="K", type=int, default=10, help="neighbours of each (default 10)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="which items are drawn (default 0)")


def run(arguments: Arguments) -> Outcome:
    """Compare items, attributes and measures, and the neighbours of a sample where both indexes open."""
    options = arguments.options
    store = load_light(arguments).store.open()
    check_store(store)
    names = (options.before, options.after)
    before, after = (read_manifest(store, name, expect_sha256=published_digest(store, name)) for name in names)
    found = diff_releases(store, before, after)
    details, lines = asdict(found), [diff_text(found)]
    try:
        moved = moved_neighbours(
            store, FileCache(), before, after, sample=options.sample, k=options.k, seed=options.seed
        )
        details["neighbours"] = moved and asdict(moved)
        lines.append(f"  {moved.text()}" if moved else "  neighbours: the releases have no item in common")
    except CodebooksError as error:  # an index that this machine cannot open takes nothing from the rest
        details["neighbours"], details["neighbours_unread"] = None, str(error)
        lines.append(f"  neighbours were not compared: {error}")
    return Outcome(release=options.after, reason="compared", details=details, text="\n".join(lines))

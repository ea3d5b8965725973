"""Show what changed from one release to another."""

from __future__ import annotations

from dataclasses import asdict

from jobs.command import Arguments, Outcome
from jobs.options import option, takes
from jobs.place import open_place
from pipeline.errors import CodebooksError
from pipeline.index.moved import moved_neighbours
from pipeline.release import diff_releases, diff_text, published_digest, read_manifest
from pipeline.storage.cache import FileCache

add_arguments = takes(
    option("before", metavar="RELEASE_A", help="the earlier release"),
    option("after", metavar="RELEASE_B", help="the later one"),
    option("--sample", metavar="N", type=int, default=200, help="items whose neighbours are compared"),
    option("-k", metavar="K", type=int, default=10, help="neighbours of each (default 10)"),
    option("--seed", metavar="N", type=int, default=0, help="which items are drawn (default 0)"),
)


def run(arguments: Arguments) -> Outcome:
    """Compare items, attributes and measures, and the neighbours of a sample where both indexes open."""
    options = arguments.options
    store = open_place(arguments).store
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

"""Show why an item has the neighbours it has."""

from __future__ import annotations

from jobs.asking import open_asked, open_other
from jobs.command import Arguments, Outcome
from jobs.options import CHANNEL, RELEASE, option, takes
from pipeline.quality.explaining import explain, explained_text
from pipeline.quality.item_page import item_page
from pipeline.storage.new_files import new_file, write_new

add_arguments = takes(
    option("item_id", help="the item's key"),
    option("-k", metavar="K", type=int, default=10, help="how many neighbours (default 10)"),
    CHANNEL,
    RELEASE,
    option("--against", metavar="RELEASE_ID", help="the release beside it; by default its parent"),
    option("--to", metavar="FILE.html", help="write a page with pictures too; it must not be there yet"),
)


def run(arguments: Arguments) -> Outcome:
    """Show photos, neighbours beside another release's, what decided each, semantic ID and quarantine."""
    options = arguments.options
    target = None if options.to is None else new_file(options.to, (".html",))
    now = open_asked(arguments).opened
    other, absent = open_other(arguments, now.manifest)
    found = explain(now, options.item_id, other, k=options.k, absent=absent)
    text = explained_text(found)
    if target is not None:
        size = write_new(target, item_page(found, now, other))
        text += f"\n{target}: {size:,} bytes"
    details = {**found.details(), "file": None if target is None else str(target)}
    return Outcome(release=found.release, reason="explained", details=details, text=text)

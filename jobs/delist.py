"""Mask items for every reader at once, or show them again."""

from __future__ import annotations

from jobs.command import Arguments, Outcome
from jobs.options import option, owner, takes
from jobs.place import load_light
from pipeline.release import claim_store, delist, relist

add_arguments = takes(
    option("items", metavar="ITEM_ID", nargs="*", help="the items, then settings as store=..."),
    option("--item", metavar="ITEM_ID", action="append", default=[], help="one that looks like a setting"),
    option("--undo", action="store_true", help="show the items again"),
    owner("who wants it; by default you"),
    option("--reason", metavar="TEXT", default="-", help="why; readers say it when asked for the item"),
)


def run(arguments: Arguments) -> Outcome:
    """Write the tombstone, which readers see when they open a release and at their next refresh."""
    options = arguments.options
    arguments, items = arguments.settings_apart(options.items)
    store, asked = load_light(arguments).store.open(), items + options.item
    claim_store(store)
    if options.undo:
        items, word = relist(store, asked), "are shown again"
    else:
        items, word = delist(store, asked, owner=options.owner, reason=options.reason), "are delisted"
    text = f"{len(items):,} items {word}: readers follow when they open a release or refresh"
    reason = ("relisted" if options.undo else "delisted") if items else "nothing to do"
    return Outcome(reason=reason, details={"items": items}, text=text)

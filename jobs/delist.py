"""Mask items for every reader at once, or show them again."""

from __future__ import annotations

import argparse
import getpass
import re

from jobs.command import Arguments, Outcome
from jobs.place import load_light
from pipeline.release import claim_store, delist, relist


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `delist`."""
    parser.add_argument("items", metavar="ITEM_ID", nargs="*", help="the items, then settings as store=...")
    parser.add_argument("--item", metavar="ITEM_ID", action="append", default=[], help="one that looks like a setting")
    parser.add_argument("--undo", action="store_true", help="show the items again")
    parser.add_argument("--owner", metavar="NAME", default=getpass.getuser(), help="who wants it; by default you")
    parser.add_argument("--reason", metavar="TEXT", default="-", help="why; readers say it when asked for the item")


def run(arguments: Arguments) -> Outcome:
    """Write the tombstone, which readers see when they open a release and at their next refresh."""
    options = arguments.options
    settings = [word for word in options.items if re.match(r"[a-z_.]+=", word)]
    asked = [word for word in options.items if word not in settings] + options.item
    store = load_light(arguments.with_overrides(*settings)).store.open()
    claim_store(store)
    if options.undo:
        items, word = relist(store, asked), "are shown again"
    else:
        items, word = delist(store, asked, owner=options.owner, reason=options.reason), "are delisted"
    text = f"{len(items):,} items {word}: readers follow when they open a release or refresh"
    reason = ("relisted" if options.undo else "delisted") if items else "nothing to do"
    return Outcome(reason=reason, details={"items": items}, text=text)

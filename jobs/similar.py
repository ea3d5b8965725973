"""Ask a release which items are nearest to an item."""

from __future__ import annotations

import argparse

from jobs.asking import add_query_arguments, answer, open_asked
from jobs.command import Arguments, Outcome
from pipeline.settings.conditions import parse_where


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `similar`."""
    parser.add_argument("item_id", help="the item's key")
    add_query_arguments(parser)


def run(arguments: Arguments) -> Outcome:
    """Show the items nearest to an item, never the item itself."""
    options = arguments.options
    where = parse_where(options.where)
    release = open_asked(arguments)
    return answer(release, options.item_id, release.similar(options.item_id, k=options.k, where=where))

"""Ask a release which items are nearest to an item."""

from __future__ import annotations

from jobs.asking import answer, open_asked
from jobs.command import Arguments, Outcome
from jobs.options import QUESTION, option, takes
from pipeline.settings.conditions import parse_where

add_arguments = takes(
    option("item_id", help="the item's key"),
    QUESTION,
)


def run(arguments: Arguments) -> Outcome:
    """Show the items nearest to an item, never the item itself."""
    options = arguments.options
    where = parse_where(options.where)
    release = open_asked(arguments)
    return answer(release, options.item_id, release.similar(options.item_id, k=options.k, where=where))

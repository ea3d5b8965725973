"""Offer customers items of a release, by what they have had: tables of a file of events."""

from __future__ import annotations

import argparse

from jobs.asking import open_asked
from jobs.command import Arguments, Outcome
from jobs.place import load_light
from pipeline.recommending import EventTable, RecommendConfig, recommend
from pipeline.recommending.telling import details_of, told
from pipeline.settings import check_and_build, merge
from pipeline.settings.sources import Source
from pipeline.storage import Files, open_store

_COLUMNS = ("customer", "item", "weight", "time")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `recommend`."""
    parser.add_argument("--events", metavar="FILE|FOLDER", required=True, help="Parquet: who had which item")
    parser.add_argument("--out", metavar="FOLDER", help="where the tables go; by default beside the release")
    for name in _COLUMNS:
        parser.add_argument(f"--{name}", metavar="COLUMN", help=f"the column of the {name} (default: {name})")
    parser.add_argument("--half-life", metavar="90d", help="how old an event is that counts half as much as the newest")
    parser.add_argument("--top", metavar="N", help="rows a customer or an item (default 20)")
    parser.add_argument("--most-items", metavar="N", help="of a customer's items so many ask (default 50)")
    parser.add_argument("--again", action="store_true", default=None, help="offer also what a customer has had")
    parser.add_argument("--channel", metavar="NAME", help="the channel; by default that of the config, or `stable`")
    parser.add_argument("--release", metavar="RELEASE_ID", help="a certain release, instead of the current one")


def run(arguments: Arguments) -> Outcome:
    """Write customer -> items, customer -> customers and item -> items; the same question again finds them."""
    options = vars(arguments.options)
    given = {name: options[name] for name in RecommendConfig.model_fields if options[name] is not None}
    config = check_and_build(merge([Source("the options", given)]), RecommendConfig)
    place = load_light(arguments).store
    events = EventTable(Files(place.options()), options["events"], config)
    out = None if options["out"] is None else open_store(options["out"], place.options())
    done = recommend(open_asked(arguments).opened, events, config, place.open(), out)
    reason = "nothing to do" if done.done_before else "written"
    return Outcome(release=done.summary.release_id, reason=reason, details=details_of(done), text=told(done))

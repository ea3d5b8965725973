"""Offer customers items of a release, by what they have had: tables of a file of events."""

from __future__ import annotations

from jobs.asking import open_asked
from jobs.command import Arguments, Outcome
from jobs.options import CHANNEL, RELEASE, option, takes
from jobs.place import load_light
from pipeline.recommending import EventTable, RecommendConfig, recommend
from pipeline.recommending.telling import details_of, told
from pipeline.settings import check_and_build, merge
from pipeline.settings.sources import Source
from pipeline.storage import Files, open_store

add_arguments = takes(
    option("--events", metavar="FILE|FOLDER", required=True, help="Parquet: who had which item"),
    option("--out", metavar="FOLDER", help="where the tables go; by default beside the release"),
    *(
        option(f"--{name}", metavar="COLUMN", help=f"the column of the {name} (default: {name})")
        for name in ("customer", "item", "weight", "time")
    ),
    option("--half-life", metavar="90d", help="how old an event is that counts half as much as the newest"),
    option("--top", metavar="N", help="rows a customer or an item (default 20)"),
    option("--most-items", metavar="N", help="of a customer's items so many ask (default 50)"),
    option("--again", action="store_true", default=None, help="offer also what a customer has had"),
    CHANNEL,
    RELEASE,
)


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

"""Show what a refresh would do and cost; writes nothing."""

from __future__ import annotations

from jobs.command import Arguments, Outcome
from jobs.config import Config, load_config, photo_files
from jobs.options import option
from pipeline.planning import Plan, make_plan, nothing_to_do, pixels_line
from pipeline.planning.described import describe, first_photos, first_refused
from pipeline.runs import default_run_name
from pipeline.storage import Store

add_arguments = option("--channel", metavar="NAME", help="as of `refresh`: where it would publish")


def run(arguments: Arguments) -> Outcome:
    """Read the catalogue, resolve tokens, compare with the channel's release and say what that means."""
    config = load_config(arguments)
    store = config.store.open()
    name = arguments.run or default_run_name()
    channel = arguments.options.channel
    plan = make_plan(config, store, photo_files(config), run=name, limit=arguments.limit, channel=channel)
    idle = nothing_to_do(plan, store, config)
    reason = "nothing to do" if idle else "planned"
    details = {
        "plan": plan.summary.model_dump(mode="json"),
        "photos": first_photos(plan),
        "refused": first_refused(plan),
    }
    return Outcome(
        run=name,
        release=plan.summary.parent,
        published=False,
        reason=reason,
        details=details,
        text=describe(plan, idle=idle, pixels=_pixels(config, store, plan)),
    )


def _pixels(config: Config, store: Store, plan: Plan) -> list[str]:
    told = plan.summary
    counts, known = told.counts, told.model_id
    sizes = {"fetched": counts["to_fetch"], "photos": counts["photos"], "fetch_bytes": told.fetch_bytes}
    return [pixels_line(config, store, model_id=known, **sizes)] if counts["to_fetch"] else []

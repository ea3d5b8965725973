"""Show what a refresh would do and cost; writes nothing."""

from __future__ import annotations

from jobs.command import Arguments, Outcome
from jobs.config import load_config, photo_files
from jobs.options import option
from pipeline.planning import make_plan, nothing_to_do
from pipeline.planning.described import describe, first_photos, first_refused, pixels_lines
from pipeline.runs import default_run_name

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
        text=describe(plan, idle=idle, pixels=pixels_lines(config, store, plan)),
    )

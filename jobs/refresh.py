"""The nightly refresh: plan, pixels, train if needed, encode, index, evaluate, gate, publish."""

from __future__ import annotations

from jobs.command import Arguments, Outcome
from jobs.options import ALLOWING, option, takes
from jobs.pipeline_run import run_until

add_arguments = takes(
    option(
        "--channel",
        metavar="NAME",
        help="publish there instead of on publish.channel; a sample (--limit) is published only on a channel so named",
    ),
    option(
        "--retrain",
        action="store_true",
        help="train and encode everything anew if the settings now ask for it; without it, and without train.when, "
        "only a channel's first refresh does",
    ),
    option(
        "--live",
        action="store_true",
        help="keep the bundle of the channel's release, also when the period of train.when is over: the night that "
        "goes on serving while a new bundle waits on publish.canary",
    ),
    ALLOWING,
)


def run(arguments: Arguments) -> Outcome:
    """Bring the channel's release up to date with the catalogue."""
    return run_until(arguments, "publish")

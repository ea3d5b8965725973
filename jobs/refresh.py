"""The nightly refresh: plan, pixels, train if needed, encode, index, evaluate, gate, publish."""

from __future__ import annotations

import argparse

from jobs.command import Arguments, Outcome
from jobs.parser import add_allowing
from jobs.pipeline_run import run_until


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `refresh`."""
    parser.add_argument(
        "--channel",
        metavar="NAME",
        help="publish there instead of on publish.channel; a sample (--limit) is published only on a channel so named",
    )
    parser.add_argument(
        "--retrain",
        action="store_true",
        help="train and encode everything anew if the settings now ask for it; without it, and without train.when, "
        "only a channel's first refresh does",
    )
    parser.add_argument(
        "--live",
        action="store_true",
        help="keep the bundle of the channel's release, also when the period of train.when is over: the night that "
        "goes on serving while a new bundle waits on publish.canary",
    )
    add_allowing(parser)


def run(arguments: Arguments) -> Outcome:
    """Bring the channel's release up to date with the catalogue."""
    return run_until(arguments, "publish")

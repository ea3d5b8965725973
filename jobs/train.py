"""Train the model of a config on its catalogue; stops before encoding."""

from __future__ import annotations

from jobs.command import Arguments, Outcome
from jobs.pipeline_run import run_until


def run(arguments: Arguments) -> Outcome:
    """Plan, decode the photos and train, unless the store already has the bundle that the config asks for."""
    return run_until(arguments, "train")

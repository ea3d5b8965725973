"""The nightly refresh: plan, pixels, train if needed, encode, index, evaluate, gate, publish."""

from __future__ import annotations

from jobs.command import Arguments, Outcome
from jobs.pipeline_run import run_until


def run(arguments: Arguments) -> Outcome:
    """Bring the channel's release up to date with the catalogue."""
    return run_until(arguments, "publish")

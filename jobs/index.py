"""Build the index and write a whole release as a candidate; no channel moves."""

from __future__ import annotations

from jobs.command import Arguments, Outcome
from jobs.pipeline_run import run_until


def run(arguments: Arguments) -> Outcome:
    """Everything that `encode` does, then build the index and write the release, without publishing it."""
    return run_until(arguments, "index")

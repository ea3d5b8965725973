"""Measure and gate a candidate release; no channel moves."""

from __future__ import annotations

from jobs.command import Arguments, Outcome
from jobs.pipeline_run import run_until


def run(arguments: Arguments) -> Outcome:
    """Everything that `index` does, then what the latents tell of categories; exit 4 when a gate refuses."""
    return run_until(arguments, "evaluate")

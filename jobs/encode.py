"""Encode a catalogue into latents parts; stops before the index."""

from __future__ import annotations

from jobs.command import Arguments, Outcome
from jobs.pipeline_run import run_until


def run(arguments: Arguments) -> Outcome:
    """Everything that `train` does, then encode the photos into latents parts."""
    return run_until(arguments, "encode")

"""What `doctor --try` tries: one night in small, from a started worker over one training step to encoded photos."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from jobs.command import Arguments
from jobs.config import Config, config_values, load_config
from jobs.pipeline_run import run_config
from jobs.ray_session import ray_session
from pipeline.errors import CodebooksError
from pipeline.findings import Finding, Level
from pipeline.planning.freezing import How
from pipeline.planning.trial import on_scratch, small_config
from pipeline.progress import Progress
from pipeline.workers import ask_a_worker, compared

_MEND = "a night would end the same way: see the text, then try again"
_REPORT = "no known trouble of a machine or a config; see the text, and report it if it is ours"


def tried(arguments: Arguments, *, whole: bool) -> Iterator[Finding]:
    """Yield a finding for each thing that was tried, up to the first that fails.

    whole: the command line names a whole config, which is tried with its own model, batch size, cluster and store;
    else a small model on a cluster of this machine. Everything is written below one folder of `runs/`, which is deleted
    at the end.
    """
    with _scratch(arguments, whole=whole) as config:
        for name, attempt in (("a worker", _worker), ("a step and a photo", _night)):
            began = time.monotonic()
            try:
                level, text, mend = attempt(config)
            except CodebooksError as error:
                yield Finding("fail", f"try: {name}", str(error), _MEND, error.exit_code)
                return
            except Exception as error:  # noqa: BLE001 - a doctor says what hurts, in one line, whatever it is
                yield Finding("fail", f"try: {name}", f"{type(error).__name__}: {error}", _REPORT, 1)
                return
            yield Finding(level, f"try: {name}", f"{text}; {time.monotonic() - began:.0f} s", mend)


@contextmanager
def _scratch(arguments: Arguments, *, whole: bool) -> Iterator[Config]:
    """Yield the config of a night in small: a generated catalogue, one step, everything on a store of its own."""
    with tempfile.TemporaryDirectory(prefix="visual-codebooks-doctor-") as folder:
        asked = load_config(arguments) if whole else Config.model_validate(small_config(folder))
        with on_scratch(asked, config_values(asked), asked.store) as values:
            yield Config.model_validate(values)


def _worker(config: Config) -> tuple[Level, str, str]:
    """Start one worker process and compare what it runs with what this process runs."""
    with ray_session(config.cluster, busy=1):
        return compared(ask_a_worker())


def _night(config: Config) -> tuple[Level, str, str]:
    """Decode, train one step and encode, as `codebooks encode` would."""
    how = How(retrain=True)
    outcome = run_config(config, name="try", how=how, until="encode", progress=Progress())
    seconds = outcome.details["seconds"]
    shown = ", ".join(f"{name} {seconds[name]:.1f} s" for name in ("pixels", "train", "encode") if name in seconds)
    return "ok", f"{config.model.kind}, one step of {config.train.batch_size} photos: {outcome.text} ({shown})", ""

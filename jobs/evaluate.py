"""Measure and gate a candidate release; no channel moves. On request its model's quality table."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from jobs.command import Arguments, Outcome
from jobs.config import load_config, photo_files
from jobs.options import option, takes
from jobs.pipeline_run import run_until
from pipeline.errors import GateRefused
from pipeline.progress import Progress
from pipeline.quality.table import asked_table, named_bundles, write_quality
from pipeline.quality.table_sample import PHOTOS
from pipeline.runs import default_run_name

_TABLE = ("table", "beside", "photos", "without_baselines")


add_arguments = takes(
    option(
        "--table", action="store_true", help="compare the model with baselines; writes quality.html and quality.json"
    ),
    option(
        "--beside",
        metavar="MODEL_ID",
        action="append",
        default=[],
        help="also another bundle of the store, by its id or the first digits; may be given several times",
    ),
    option("--photos", metavar="N", type=int, help=f"of up to N items, {PHOTOS:,} by default"),
    option("--without-baselines", action="store_true", help="only the models"),
)


def run(arguments: Arguments) -> Outcome:
    """Everything that `index` does, then what the latents tell of categories; exit 4 when a gate refuses.

    With --table then the quality table, also of a release that a gate refused. Raises as `run_until`; ConfigError for
    options of the table without it, and before anything is run for models that cannot stand in it.
    """
    options = asked_table(**{name: getattr(arguments.options, name) for name in _TABLE})
    if options is None:
        return run_until(arguments, "evaluate")
    config = load_config(arguments)
    store, note, files = config.store.open(), Progress().note, photo_files(config)
    named_bundles(store, config, options)
    write = partial(write_quality, store, config, options=options, note=note, files=files)
    arguments = arguments.with_run(arguments.run or default_run_name())
    try:
        outcome = run_until(arguments, "evaluate")
    except GateRefused as refused:
        if refused.release is not None:
            note(write(run=str(arguments.run), release=refused.release).text)
        raise
    written = write(run=str(outcome.run), release=str(outcome.release))
    return replace(outcome, details={**outcome.details, **written.details}, text=f"{outcome.text}\n\n{written.text}")

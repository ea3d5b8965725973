"""Measure and gate a candidate release; no channel moves. On request its model's quality table."""

from __future__ import annotations

from dataclasses import replace

from jobs.command import Arguments, Outcome
from jobs.config import Config, load_config, photo_files
from jobs.options import option, takes
from jobs.pipeline_run import run_until
from pipeline.errors import GateRefused
from pipeline.progress import Progress
from pipeline.quality.table import TableOptions, WrittenTable, asked_table, named_bundles, write_quality
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
    named_bundles(config.store.open(), config, options)
    arguments = arguments.with_run(arguments.run or default_run_name())
    try:
        outcome = run_until(arguments, "evaluate")
    except GateRefused as refused:
        if refused.release is not None:
            written = _write(config, str(arguments.run), refused.release, options)
            Progress().note(written.text)
        raise
    written = _write(config, str(outcome.run), str(outcome.release), options)
    return replace(outcome, details={**outcome.details, **written.details}, text=f"{outcome.text}\n\n{written.text}")


def _write(config: Config, run: str, release: str, options: TableOptions) -> WrittenTable:
    return write_quality(
        config.store.open(),
        config,
        run=run,
        release=release,
        options=options,
        note=Progress().note,
        files=photo_files(config),
    )

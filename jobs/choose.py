"""Candidate models of a catalogue by folds: quality, speed, licence; writes the winner's config."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack

from jobs.choosing import Stages, candidates_asked
from jobs.command import Arguments, Outcome
from jobs.config import load_config, photo_files
from jobs.context import Context
from jobs.options import option, takes
from pipeline.progress import Progress
from pipeline.quality.candidates import write_winner
from pipeline.quality.choice_report import choice_details, choice_text, choose_among
from pipeline.quality.choose_config import PHOTOS
from pipeline.quality.choosing import fold_photos, measure_candidates
from pipeline.runs import default_run_name, open_run
from pipeline.storage import LocalStore
from pipeline.storage.new_files import unused
from pipeline.watch import Watch

add_arguments = takes(
    option("--candidates", metavar="NAME,...", help="of choose.candidates, presets or YAML files"),
    option("--folds", metavar="N", type=int, help="how many; each is asked of what the others give"),
    option("--by", metavar="COLUMN", help="what stays in one fold, a contributor or brand; else item_id"),
    option("--seeds", metavar="N,...", help="of the trainings (default 0)"),
    option("--write", metavar="FILE", help="write the winner's config; an existing file stays"),
)


def run(arguments: Arguments) -> Outcome:
    """Make every candidate without each fold in turn, ask it that fold's photos, and compare.

    Everything runs on this machine and on a scratch store; finished folds are kept under `choices/` on the store and
    found again. Raises ConfigError (exit 2), InputError (3), Unavailable (6).
    """
    options = arguments.options
    target = None if options.write is None else unused(options.write, "name another file with --write")
    config = load_config(arguments)
    asked = config.choose.asked(folds=options.folds, by=options.by, seeds=options.seeds)
    named = candidates_asked(arguments, config)
    candidates = [each.candidate for each in named.values()]
    store, progress = config.store.open(), Progress()
    run = open_run(store, arguments.run or default_run_name())
    with ExitStack() as stack:
        scratch = LocalStore(stack.enter_context(tempfile.TemporaryDirectory(prefix="choose-")))
        attempt = stack.enter_context(run.begin(f"command: choose\nasked: {asked.model_dump_json()}\n"))
        watch = stack.enter_context(Watch())
        context = Context(config, store, photo_files(config), run, attempt, progress, watch)
        stages = Stages(context, scratch, arguments.limit or PHOTOS)
        first = next(each.settings for each in candidates if not each.members)
        photos = fold_photos(stages.plan(first, "first"), config, by=asked.by, folds=asked.folds)
        measured = measure_candidates(store, candidates, photos, stages, seeds=asked.seeds, note=progress.note)
        choice = choose_among(measured, photos)
        details = {"choice": choice_details(choice), **watch.summary()}
        run.write_result({"run": run.name, "release": None, "published": False, "reason": "chosen", **details})
    text = choice_text(choice)
    if target is not None:
        write_winner(target, named[choice.winner.name], named, f"Chosen by `codebooks choose`.\n{text}")
        text += f"\nwrote {target}; then: codebooks refresh --config {target}"
    return Outcome(run=run.name, reason="chosen", details={**details, "config": target and str(target)}, text=text)

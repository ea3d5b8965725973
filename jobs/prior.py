"""Learn how the codes of a VQ release fit together: how likely each photo is, and pictures like them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from jobs.command import Arguments, Outcome
from jobs.options import CHANNEL, RELEASE_OF_CHANNEL, option, takes
from jobs.place import LightConfig
from jobs.ray_session import ray_session
from jobs.sources import read_config
from pipeline.errors import ConfigError
from pipeline.models import load_bundle
from pipeline.models.priors import check_draw
from pipeline.models.priors.stored import load_prior
from pipeline.nodes import ClusterConfig
from pipeline.planning import ReleasePhotos, release_photos
from pipeline.planning.prior_run import (
    PriorTask,
    frozen_text,
    held_task,
    known_prior,
    labels_of,
    prior_job,
    settled_task,
)
from pipeline.planning.prior_section import DEFAULT_PRIOR, AnyPriorSection, category_column, codes_of
from pipeline.progress import Progress
from pipeline.quality.prior_results import Sampling, check_category, described, write_results
from pipeline.release import Manifest, asked_manifest, check_store
from pipeline.release.tables import read_table
from pipeline.runs import Attempt, Run, default_run_name, open_run
from pipeline.storage import Store
from pipeline.training import train_job
from pipeline.watch import Watch


class PriorCommandConfig(LightConfig):
    """What `prior` reads of a config; the release says the rest, so that the sections of a refresh are passed over.

    catalogue: only `category` of it, the column that a prior `by_category` is told and the table of outliers shows.
    """

    prior: AnyPriorSection = DEFAULT_PRIOR
    catalogue: dict[str, Any] = Field(default_factory=dict)
    cluster: ClusterConfig = ClusterConfig()


@dataclass(frozen=True, slots=True)
class Work:
    """One live attempt and what it works with."""

    config: PriorCommandConfig
    store: Store
    run: Run
    attempt: Attempt
    progress: Progress
    watch: Watch


add_arguments = takes(
    CHANNEL,
    RELEASE_OF_CHANNEL,
    option("--samples", metavar="N", type=int, default=64, help="how many pictures to show (default 64)"),
    option("--temperature", metavar="T", type=float, default=1.0, help="below 1 draws likelier codes (default 1)"),
    option("--top-k", metavar="K", type=int, help="draw only among the K likeliest codes of each cell"),
    option("--category", metavar="NAME", help="draw pictures of this category alone; needs prior.by_category=true"),
)


def run(arguments: Arguments) -> Outcome:
    """Find or train the prior of a release's codes, then measure it, judge every photo and draw pictures.

    Raises ConfigError (exit 2) also for a release of a model without codes, InputError (3), Conflict (5), Unavailable
    (6); a run of the same name continues.
    """
    config = load_prior_config(arguments)
    options = arguments.options
    sampling = Sampling(options.samples, options.temperature, options.top_k, options.category)
    store = config.store.open()
    check_store(store)  # before the run's own folder is looked into
    run = open_run(store, arguments.run or default_run_name())
    # Read before the run begins: a wrong release, model or option leaves nothing on the store.
    held = held_task(run)
    named = held.release_id if held else options.release
    channel = options.channel or config.publish.channel
    manifest = asked_manifest(store, named, channel)
    bundle = load_bundle(store, manifest.model_id)
    num_codes = codes_of(manifest, bundle)
    check_draw(temperature=sampling.temperature, top_k=sampling.top_k, num_codes=num_codes)
    column = category_column(config.catalogue, config.prior)
    items = read_table(store, manifest, "items")
    photos = release_photos(items, config.prior.train, category=column)
    check_category(sampling, labels_of(config.prior, photos), by_category=config.prior.by_category)
    asked = {name: getattr(options, name) for name in ("release", "samples", "temperature", "top_k", "category")}
    with ExitStack() as stack:
        attempt = stack.enter_context(run.begin(frozen_text(config.prior, column, channel, asked)))
        done = run.read_result()
        if done is not None:
            return outcome_of(done, "this run has already finished")
        task = held or settled_task(run, config.prior, manifest, column)
        work = Work(config, store, run, attempt, Progress(), stack.enter_context(Watch()))
        prior_id, trained = found_or_trained(work, task, manifest, photos, column, num_codes)
        attempt.check()
        with work.watch.stage("results", photos=len(photos.items)):
            prior, seed = load_prior(store, prior_id), config.prior.train.seed
            result = write_results(store, run, prior, bundle, manifest, photos, sampling, seed=seed)
        result |= {"train_key": task.train_key, "trained": trained, **work.watch.summary()}
        reason = "prior trained" if trained else "prior found"
        result |= {"run": run.name, "release": manifest.release_id, "published": False, "reason": reason}
        return outcome_of(run.write_result(result))


def load_prior_config(arguments: Arguments) -> PriorCommandConfig:
    """Return what a command line and its config say of a prior. Raises ConfigError."""
    for text in arguments.overrides:
        if text.startswith("train."):  # it would be passed over, and the prior trained otherwise than asked
            raise ConfigError(f"{text!r} is of a model's training; a prior's is in prior.train: write 'prior.{text}'")
    return read_config(arguments, PriorCommandConfig)


def found_or_trained(
    work: Work, task: PriorTask, manifest: Manifest, photos: ReleasePhotos, column: str | None, num_codes: int
) -> tuple[str, bool]:
    """Return the prior_id that answers the task's key, and whether it had to be trained."""
    section, run = work.config.prior, work.run
    found = known_prior(work.store, run.name, section, manifest, column, task.train_key)
    if found is not None:
        work.progress.note(f"prior: {found[:12]} answers key {task.train_key[:12]}")
        return found, False
    train, held_out = section.train, int(photos.held_out.sum())
    trained = len(photos.items) - held_out
    work.progress.note(f"prior: trained on the codes of {trained:,} photos, {held_out:,} held out for validation")
    job = prior_job(run, work.attempt, section, manifest, photos, num_codes=num_codes, train_key=task.train_key)
    with ExitStack() as stack:
        with work.watch.stage("ray"):
            settings = work.config.model_dump(mode="json")
            busy = train.workers * train.threads
            stack.enter_context(ray_session(work.config.cluster, busy=busy, settings=settings))
        work.attempt.check()
        with work.watch.stage("train", photos=trained * train.epochs):
            return train_job(job, progress=work.progress.training), True


def outcome_of(result: Mapping[str, Any], reason: str | None = None) -> Outcome:
    """Return a result as an outcome; reason: why nothing had to be done."""
    lines = [reason] if reason else []
    return Outcome(
        run=result["run"],
        release=result["release"],
        published=False,
        reason=reason or result["reason"],
        details=result,
        text="\n".join([*lines, *described(result)]),
    )

"""Learn how the codes of a VQ release fit together: how likely each photo is, and pictures like them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.command import Arguments, Outcome
from jobs.options import CHANNEL, RELEASE_OF_CHANNEL, option, takes
from jobs.place import LightConfig
from jobs.ray_session import ray_session
from jobs.sources import read_config
from pipeline.errors import ConfigError, IntegrityError
from pipeline.models import load_bundle
from pipeline.models.priors import check_draw
from pipeline.models.priors.stored import find_prior, load_prior
from pipeline.nodes import ClusterConfig
from pipeline.planning import ReleasePhotos, release_photos
from pipeline.planning.prior_section import (
    DEFAULT_PRIOR,
    AnyPriorSection,
    category_column,
    codes_of,
    network_of,
    train_key_of,
)
from pipeline.progress import Progress
from pipeline.quality.prior_results import Sampling, check_category, described, write_results
from pipeline.release import Manifest, asked_manifest, check_store
from pipeline.release.tables import read_table
from pipeline.runs import Attempt, Run, default_run_name, open_run
from pipeline.storage import Store
from pipeline.training import PriorJob, train_job
from pipeline.watch import Watch

_TASK = "prior.json"


class PriorCommandConfig(LightConfig):
    """What `prior` reads of a config; the release says the rest, so that the sections of a refresh are passed over.

    catalogue: only `category` of it, the column that a prior `by_category` is told and the table of outliers shows.
    """

    prior: AnyPriorSection = DEFAULT_PRIOR
    catalogue: dict[str, Any] = Field(default_factory=dict)
    cluster: ClusterConfig = ClusterConfig()


class Task(BaseModel):
    """What a run's first attempt settles for all later ones: the release, and the key that a prior of it answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    release_id: str
    train_key: str


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
    held = _held_task(run)
    named = held.release_id if held else options.release
    manifest = asked_manifest(store, named, options.channel or config.publish.channel)
    bundle = load_bundle(store, manifest.model_id)
    num_codes = codes_of(manifest, bundle)
    check_draw(temperature=sampling.temperature, top_k=sampling.top_k, num_codes=num_codes)
    column = category_column(config.catalogue, config.prior)
    items = read_table(store, manifest, "items")
    photos = release_photos(items, config.prior.train, category=column)
    labels = photos.labels() if config.prior.by_category else ()
    check_category(sampling, labels, by_category=config.prior.by_category)
    with ExitStack() as stack:
        attempt = stack.enter_context(run.begin(_frozen_text(config, options, column)))
        done = run.read_result()
        if done is not None:
            return outcome_of(done, "this run has already finished")
        task = held or Task(
            release_id=manifest.release_id, train_key=train_key_of(config.prior, run.name, manifest, column)
        )
        task = Task.model_validate_json(run.freeze(_TASK, task.model_dump_json().encode()))
        work = Work(config, store, run, attempt, Progress(), stack.enter_context(Watch()))
        prior_id, trained = found_or_trained(work, task, manifest, photos, labels, num_codes)
        attempt.check()
        with work.watch.stage("results", photos=len(photos.items)):
            result = write_results(
                store,
                run,
                load_prior(store, prior_id),
                bundle,
                manifest,
                photos,
                sampling,
                seed=config.prior.train.seed,
            )
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
    work: Work, task: Task, manifest: Manifest, photos: ReleasePhotos, labels: tuple[str, ...], num_codes: int
) -> tuple[str, bool]:
    """Return the prior_id that answers the task's key, and whether it had to be trained."""
    column = category_column(work.config.catalogue, work.config.prior)
    former = train_key_of(work.config.prior, work.run.name, manifest, column, former=True)
    found = find_prior(work.store, task.train_key) or find_prior(work.store, former)
    if found is not None:
        work.progress.note(f"prior: {found[:12]} answers key {task.train_key[:12]}")
        return found, False
    train, held_out = work.config.prior.train, int(photos.held_out.sum())
    trained = len(photos.items) - held_out
    work.progress.note(f"prior: trained on the codes of {trained:,} photos, {held_out:,} held out for validation")
    job = PriorJob(
        store=work.store,
        codes=tuple(photos.code_rows(labels)),
        labels=labels,
        prior=network_of(work.config.prior),
        num_codes=num_codes,
        model_id=manifest.model_id,
        train=train,
        run_dir=f"runs/{work.run.name}",
        attempt=work.attempt.number,
        train_key=task.train_key,
    )
    with ExitStack() as stack:
        with work.watch.stage("ray"):
            settings = work.config.model_dump(mode="json")
            busy = train.workers * train.threads
            stack.enter_context(ray_session(work.config.cluster, busy=busy, settings=settings))
        work.attempt.check()
        with work.watch.stage("train", photos=trained * train.epochs):
            prior_id = train_job(job, progress=work.progress.training)
    return prior_id, True


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


def _held_task(run: Run) -> Task | None:
    data = run.read_frozen(_TASK)
    try:
        return None if data is None else Task.model_validate_json(data)
    except ValidationError as error:
        raise IntegrityError(f"{run.folder}{_TASK} is damaged ({error}); start a run of another name") from error


def _frozen_text(config: PriorCommandConfig, options: argparse.Namespace, column: str | None) -> str:
    """Return what a run freezes: all that its results depend on, not the cluster that computes them."""
    asked = {
        "command": "prior",
        "channel": options.channel or config.publish.channel,
        "category_column": column,
        "prior": config.prior.model_dump(mode="json"),
        **{name: getattr(options, name) for name in ("release", "samples", "temperature", "top_k", "category")},
    }
    return str(yaml.safe_dump(asked, sort_keys=True))

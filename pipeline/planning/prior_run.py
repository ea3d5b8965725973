"""What a run of `prior` settles once, which prior on the store answers it, and the training of one that none does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import IntegrityError
from ..models.priors.stored import find_prior
from ..release import Manifest
from ..runs import Attempt, Run
from ..storage import Store
from ..training import PriorJob
from .code_rows import ReleasePhotos
from .prior_section import AnyPriorSection, network_of, train_key_of

_TASK = "prior.json"


class PriorTask(BaseModel):
    """What a run's first attempt settles for all later ones: the release, and the key that a prior of it answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    release_id: str
    train_key: str


def held_task(run: Run) -> PriorTask | None:
    """Return what an earlier attempt settled. Raises IntegrityError where that is damaged."""
    data = run.read_frozen(_TASK)
    try:
        return None if data is None else PriorTask.model_validate_json(data)
    except ValidationError as error:
        raise IntegrityError(f"{run.folder}{_TASK} is damaged ({error}); start a run of another name") from error


def settled_task(run: Run, section: AnyPriorSection, manifest: Manifest, column: str | None) -> PriorTask:
    """Return what all attempts do: what the first one froze, else this."""
    key = train_key_of(section, run.name, manifest, column)
    task = PriorTask(release_id=manifest.release_id, train_key=key)
    return PriorTask.model_validate_json(run.freeze(_TASK, task.model_dump_json().encode()))


def frozen_text(section: AnyPriorSection, column: str | None, channel: str, asked: Mapping[str, Any]) -> str:
    """Return what a run freezes: all that its results depend on, not the cluster that computes them.

    asked: of the command line, by the names of its options.
    """
    prior = section.model_dump(mode="json")
    whole = {"command": "prior", "channel": channel, "category_column": column, "prior": prior, **asked}
    return str(yaml.safe_dump(whole, sort_keys=True))


def known_prior(
    store: Store, run: str, section: AnyPriorSection, manifest: Manifest, column: str | None, train_key: str
) -> str | None:
    """Return the prior_id that answers a key, or the key that an earlier version gave the same; None: train one."""
    former = train_key_of(section, run, manifest, column, former=True)
    return find_prior(store, train_key) or find_prior(store, former)


def prior_job(
    run: Run,
    attempt: Attempt,
    section: AnyPriorSection,
    manifest: Manifest,
    photos: ReleasePhotos,
    *,
    num_codes: int,
    train_key: str,
) -> PriorJob:
    """Return the training of the prior of a release's codes."""
    labels = labels_of(section, photos)
    return PriorJob(
        store=run.store,
        codes=tuple(photos.code_rows(labels)),
        labels=labels,
        prior=network_of(section),
        num_codes=num_codes,
        model_id=manifest.model_id,
        train=section.train,
        run_dir=f"runs/{run.name}",
        attempt=attempt.number,
        train_key=train_key,
    )


def labels_of(section: AnyPriorSection, photos: ReleasePhotos) -> tuple[str, ...]:
    """Return the categories that a prior is told, none where it is told none."""
    return photos.labels() if section.by_category else ()

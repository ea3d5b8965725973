"""Trained priors on the store, named by content, found by what was asked, loaded without pickled code."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError

from ...errors import InputError
from ...storage import Store
from ..shelves import FORMAT, Shelf, asked_key, at_rest
from . import PRIORS, build_prior
from .base import Prior, PriorConfig

STORED = Shelf("priors", "prior", "prior_id")


@dataclass(frozen=True, slots=True)
class StoredPrior:
    """A prior from the store, on the CPU, in evaluation mode, frozen. model_id: of the VQ model whose codes it knows.

    measures: what was measured when it was saved, for example nats per code.
    """

    prior_id: str
    prior: Prior
    model_id: str
    measures: Mapping[str, float]


def prior_key(
    prior: PriorConfig,
    model_id: str,
    train: Mapping[str, Any],
    seed: int,
    version: int,
    nonce: str = "",
    *,
    condition: str | None = None,
) -> str:
    """Return the key (64 hex digits) of a prior's training: everything that was asked for, never the catalogue.

    model_id: of the VQ model whose codes it learns. train: its configuration as plain values. nonce: sets trainings
    apart that ask for the same; "" for none. condition: the name of the column that a prior `by_category` is told.
    """
    what = {"prior": prior.model_dump(mode="json"), "model_id": model_id}
    return asked_key(what, train=train, seed=seed, version=version, nonce=nonce, condition=condition)


def save_prior(store: Store, prior: Prior, *, model_id: str, measures: Mapping[str, float], train_key: str) -> str:
    """Write a trained prior below `priors/<prior_id>/`; return the prior_id that answers `train_key`.

    See `Shelf.save`. The given prior is not changed. Raises IntegrityError when the store holds other bytes under its
    name.
    """
    kept = at_rest(copy.deepcopy(prior))
    facts = {
        "format": FORMAT,
        "prior": kept.settings.model_dump(mode="json"),
        "num_codes": kept.num_codes,
        "grid": list(kept.grid),
        "labels": list(kept.labels),
        "model_id": model_id,
        "measures": dict(measures),
    }
    return STORED.save(store, kept, facts, train_key=train_key, derived={})


def find_prior(store: Store, train_key: str) -> str | None:
    """Return the prior_id of the prior that answers a key; None when nothing does.

    Raises IntegrityError when the key names a prior that is no longer there.
    """
    return STORED.find(store, train_key)


def load_prior(store: Store, prior_id: str) -> StoredPrior:
    """Return a prior from the store; torch's random generator stays as it is.

    Raises NotFound when there is none, IntegrityError when its bytes are not those that the prior_id was made from,
    InputError when this version of the project does not know it.
    """
    config = STORED.config(store, prior_id)
    tensors = STORED.tensors(store, prior_id, config)
    facts, name = STORED.facts(config, prior_id), STORED.name(prior_id, "config.json")
    kind = facts.get("prior", {}).get("kind")
    if kind not in PRIORS:
        raise InputError(
            f"{name}: a prior of kind {kind!r}; this version knows {', '.join(sorted(PRIORS))}. Use the version that "
            "wrote it, or train anew"
        )
    try:
        settings: PriorConfig = PRIORS[kind][0].model_validate_json(json.dumps(facts["prior"]))
        prior = _built(settings, facts)
        prior.load_state_dict(tensors)
    except (ValidationError, RuntimeError) as error:  # fields, or tensors, of another version
        raise InputError(
            f"{name}: this version cannot read this prior; use the version that wrote it, or train anew\n{error}"
        ) from error
    return StoredPrior(prior_id, at_rest(prior), facts["model_id"], facts["measures"])


def newest_prior(store: Store, model_id: str) -> StoredPrior | None:
    """Return the prior of a VQ model that was written last, None where it has none; errors as `load_prior`."""
    written = {
        entry.name.split("/")[1]: entry.modified
        for entry in store.list(f"{STORED.folder}/")
        if entry.name.endswith("/config.json")
    }
    for prior_id in sorted(written, key=lambda each: (written[each], each), reverse=True):
        if STORED.facts(STORED.config(store, prior_id), prior_id).get("model_id") == model_id:
            return load_prior(store, prior_id)
    return None


def _built(settings: PriorConfig, facts: Mapping[str, Any]) -> Prior:
    height, width = facts["grid"]
    with torch.random.fork_rng(devices=[]):
        return build_prior(settings, num_codes=facts["num_codes"], grid=(height, width), labels=facts["labels"])

"""Trained priors on the store, named by content, found by what was asked, loaded without pickled code."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import ValidationError

from ...errors import InputError, IntegrityError, NotFound
from ...keys import DIGEST, key_of, portable
from ...release.manifest import read_document
from ...storage import Store
from ..bundle import model_id_of
from . import PRIORS, build_prior
from .base import Prior, PriorConfig

FORMAT = 1


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
    asked = {
        "format": FORMAT,
        "prior": prior.model_dump(mode="json"),
        "model_id": model_id,
        "train": dict(train),
        "seed": seed,
        "version": version,
        "nonce": nonce,
    }
    if condition is not None:
        asked["condition"] = condition
    return key_of(portable(asked))


def save_prior(store: Store, prior: Prior, *, model_id: str, measures: Mapping[str, float], train_key: str) -> str:
    """Write a trained prior below `priors/<prior_id>/`; return the prior_id that answers `train_key`.

    That is this one's, sha256 of config and weights, or that of who came first. Weights first, then config.json, so a
    prior without config.json is not there and saving again completes it; the key last. The given prior is not changed.
    Raises IntegrityError when the store holds other bytes under its name.
    """
    frozen = _frozen(copy.deepcopy(prior))
    facts = {
        "format": FORMAT,
        "prior": frozen.settings.model_dump(mode="json"),
        "num_codes": frozen.num_codes,
        "grid": list(frozen.grid),
        "labels": list(frozen.labels),
        "model_id": model_id,
        "measures": dict(measures),
    }
    config = (json.dumps(facts, sort_keys=True, indent=2, allow_nan=False) + "\n").encode()
    tensors = {name: tensor.contiguous().clone() for name, tensor in frozen.state_dict().items()}
    prior_id = model_id_of(config, tensors)
    if not store.put_if_absent(_weights(prior_id), safetensors.torch.save(tensors, {"format": "pt"})):
        _read_weights(store, prior_id, config)
    store.put_if_absent(_config(prior_id), config)
    pointer = json.dumps({"prior_id": prior_id, "train_key": train_key}, sort_keys=True).encode()
    if store.put_if_absent(_pointer(train_key), pointer):
        return prior_id
    return _read_pointer(store, train_key)


def find_prior(store: Store, train_key: str) -> str | None:
    """Return the prior_id of the prior that answers a key; None when nothing does.

    Raises IntegrityError when the key names a prior that is no longer there.
    """
    try:
        prior_id = _read_pointer(store, train_key)
    except NotFound:
        return None
    if not store.exists(_config(prior_id)):
        raise IntegrityError(
            f"{_pointer(train_key)} on {store.url} names prior {prior_id}, which is not there; restore "
            f"priors/{prior_id}/, or delete {_pointer(train_key)} to train anew"
        )
    return prior_id


def load_prior(store: Store, prior_id: str) -> StoredPrior:
    """Return a prior from the store; torch's random generator stays as it is.

    Raises NotFound when there is none, IntegrityError when its bytes are not those that the prior_id was made from,
    InputError when this version of the project does not know it.
    """
    name = _config(prior_id)
    try:
        config = store.get(name)
    except NotFound as error:
        raise NotFound(f"there is no prior {prior_id} on {store.url}: {name} is missing; train one") from error
    tensors = _read_weights(store, prior_id, config)
    facts = read_document(config, name)
    kind = facts.get("prior", {}).get("kind")
    if facts.get("format") != FORMAT or kind not in PRIORS:
        raise InputError(
            f"{name}: a prior of kind {kind!r} in format {facts.get('format')!r}; this version reads format {FORMAT} "
            f"and knows {', '.join(sorted(PRIORS))}. Use the version that wrote it, or train anew"
        )
    try:
        settings: PriorConfig = PRIORS[kind][0].model_validate_json(json.dumps(facts["prior"]))
        prior = _built(settings, facts)
        prior.load_state_dict(tensors)
    except (ValidationError, RuntimeError) as error:  # fields, or tensors, of another version
        raise InputError(
            f"{name}: this version cannot read this prior; use the version that wrote it, or train anew\n{error}"
        ) from error
    return StoredPrior(prior_id, _frozen(prior), facts["model_id"], facts["measures"])


def _built(settings: PriorConfig, facts: Mapping[str, Any]) -> Prior:
    height, width = facts["grid"]
    with torch.random.fork_rng(devices=[]):
        return build_prior(settings, num_codes=facts["num_codes"], grid=(height, width), labels=facts["labels"])


def _read_weights(store: Store, prior_id: str, config: bytes) -> dict[str, torch.Tensor]:
    name = _weights(prior_id)
    try:
        tensors = safetensors.torch.load(store.get(name))
    except (NotFound, safetensors.SafetensorError) as error:
        raise IntegrityError(
            f"{name} on {store.url} is missing or damaged ({error}); restore it, or train anew"
        ) from error
    found = model_id_of(config, tensors)
    if found != prior_id:
        raise IntegrityError(f"prior {prior_id} on {store.url} is damaged: its files make the id {found}; train anew")
    return tensors


def _frozen(prior: Prior) -> Prior:
    return prior.to("cpu").eval().requires_grad_(requires_grad=False)


def _config(prior_id: str) -> str:
    return f"priors/{prior_id}/config.json"


def _weights(prior_id: str) -> str:
    return f"priors/{prior_id}/weights.safetensors"


def _pointer(train_key: str) -> str:
    return f"priors/by-key/{train_key}.json"


def _read_pointer(store: Store, train_key: str) -> str:
    name = _pointer(train_key)
    prior_id = read_document(store.get(name), name).get("prior_id")
    if not isinstance(prior_id, str) or not re.fullmatch(DIGEST, prior_id):
        raise IntegrityError(
            f"{name} on {store.url} names the prior_id {prior_id!r:.80}, which is not 64 hex digits; "
            "delete it to train anew"
        )
    return prior_id

"""Bundles: finished models on the store, named by content, found by what was asked, loaded without pickled code."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from .. import models
from ..errors import InputError, IntegrityError, NotFound
from ..keys import DIGEST, digest_of, key_of, portable
from ..release import FileEntry
from ..release.manifest import read_document
from ..storage import Store
from .base import Model, ModelConfig, as_dict
from .card import write_card
from .export import export_encoder

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Bundle:
    """A model from the store: on the CPU, in evaluation mode, frozen. images: how photos become pixels.

    labels: the categories that a conditional model knows, in the order of its table; () for every other model.
    """

    model_id: str
    config: ModelConfig
    image_size: int
    images: Mapping[str, Any]
    model: Model
    labels: tuple[str, ...] = ()


def train_key(
    model: ModelConfig,
    images: Mapping[str, Any],
    train: Mapping[str, Any],
    seed: int,
    version: int,
    nonce: str = "",
    *,
    condition: str | None = None,
) -> str:
    """Return the key (64 hex digits) of a training: everything that was asked for, never the catalogue.

    images, train: configurations as plain values. nonce: sets trainings apart that ask for the same; "" for none.
    condition: the name of the column that a conditional model is told.
    """
    asked = {
        "format": FORMAT,
        "model": as_dict(model),
        "images": dict(images),
        "train": dict(train),
        "seed": seed,
        "version": version,
        "nonce": nonce,
    }
    if condition is not None:
        asked["condition"] = condition
    return key_of(portable(asked))


def model_id_of(config: bytes, tensors: Mapping[str, Tensor]) -> str:
    """Return the model_id: sha256 (hex) over config.json and, in name order, every tensor's name, dtype, shape, bytes.

    The bytes of a safetensors file would not do: the order inside it is not repeatable.
    """
    digest = hashlib.sha256(f"{len(config)}\n".encode() + config)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(json.dumps([name, dtype, list(tensor.shape)]).encode() + b"\n")
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_bundle(
    store: Store,
    model: Model,
    config: ModelConfig,
    images: BaseModel | Mapping[str, Any],
    *,
    train_key: str,
    card: Mapping[str, Any],
    labels: Sequence[str] = (),
) -> str:
    """Write a trained model and return the model_id that answers `train_key`: this one, or that of who came first.

    images: the configuration the photos were decoded with, with `size`. card: facts for the model card, plain values.
    labels: the categories that a conditional model was built with; another model's are not kept.
    Order: weights, ONNX encoder, card, config.json, then the key; so a bundle without config.json is not there, and
    saving again after a crash completes it. The given model is not changed. Raises IntegrityError when the store holds
    other bytes under this bundle's name.
    """
    images = as_dict(images) if isinstance(images, BaseModel) else dict(images)
    frozen = _frozen(copy.deepcopy(model))
    facts = {"format": FORMAT, "image_size": model.image_size, "images": images, "model": as_dict(config)}
    if config.conditional:  # the other bundles' bytes, hence their ids, stay as they are
        facts["labels"] = list(labels)
    config_bytes = (json.dumps(facts, sort_keys=True, indent=2, allow_nan=False) + "\n").encode()
    tensors = {name: tensor.contiguous().clone() for name, tensor in frozen.state_dict().items()}
    model_id = model_id_of(config_bytes, tensors)
    folder = f"models/{model_id}"
    if not store.exists(f"{folder}/config.json"):
        if not store.put_if_absent(f"{folder}/weights.safetensors", safetensors.torch.save(tensors, {"format": "pt"})):
            _read_weights(store, model_id, config_bytes)
        # Derived files: whichever attempt wrote them made them from these weights.
        if not store.exists(f"{folder}/encoder.onnx"):
            store.put_if_absent(f"{folder}/encoder.onnx", export_encoder(frozen, conditional=config.conditional))
        text = write_card(model_id, facts, sum(tensor.numel() for tensor in tensors.values()), train_key, card)
        store.put_if_absent(f"{folder}/card.md", text.encode())
        store.put_if_absent(f"{folder}/config.json", config_bytes)
    pointer = json.dumps({"model_id": model_id, "train_key": train_key}, sort_keys=True).encode()
    if store.put_if_absent(_pointer_name(train_key), pointer):
        return model_id
    return _read_pointer(store, train_key)


def find_bundle(store: Store, train_key: str) -> str | None:
    """Return the model_id of the bundle that answers a train key; None when nothing does.

    Raises IntegrityError when the key names a bundle that is no longer there.
    """
    try:
        model_id = _read_pointer(store, train_key)
    except NotFound:
        return None
    if not store.exists(f"models/{model_id}/config.json"):
        raise IntegrityError(
            f"{_pointer_name(train_key)} on {store.url} names model {model_id}, whose bundle is not there; restore "
            f"models/{model_id}/, or delete {_pointer_name(train_key)} to train anew"
        )
    return model_id


def load_bundle(store: Store, model_id: str) -> Bundle:
    """Return a model from the store.

    Only JSON and safetensors are read, so nothing that is stored is run; torch's random generator stays as it is.
    Raises NotFound when there is no such bundle (also when it was only half written), IntegrityError when its bytes
    are not those the model_id was made from, InputError when this version of the project does not know the model.
    """
    name, config_bytes = _config_bytes(store, model_id)
    tensors = _read_weights(store, model_id, config_bytes)
    facts = _facts(config_bytes, name)
    config = _model_config(facts["model"], name)
    labels = _labels(facts, config, name)
    with torch.random.fork_rng(devices=[]):
        model = models.build_model(config, image_size=facts["image_size"], labels=labels)
    _refuse_differences(model.state_dict(), tensors, name)
    model.load_state_dict(tensors)
    return Bundle(model_id, config, facts["image_size"], facts["images"], _frozen(model), labels)


def stored_config(store: Store, model_id: str) -> tuple[ModelConfig, dict[str, Any]]:
    """Return a bundle's model config and its images config as plain values, without reading its weights.

    So nothing tells yet whether the bytes are those the model_id was made from. Raises NotFound, InputError.
    """
    name, config_bytes = _config_bytes(store, model_id)
    facts = _facts(config_bytes, name)
    return _model_config(facts["model"], name), facts["images"]


def bundle_files(store: Store, model_id: str) -> dict[str, FileEntry]:
    """Return what a manifest says of the files that a query by photo reads: its fields `encoder`, `bundle_config`.

    The model_id covers weights and config, not the derived encoder, so only a manifest can hold the encoder to its
    bytes. Raises IntegrityError when one of them is missing.
    """
    found: dict[str, FileEntry] = {}
    for field, file in (("encoder", "encoder.onnx"), ("bundle_config", "config.json")):
        name = f"models/{model_id}/{file}"
        try:
            data = store.get(name)
        except NotFound as error:
            raise IntegrityError(f"{name} on {store.url} is missing; restore it, or train anew") from error
        found[field] = FileEntry(name=name, bytes=len(data), sha256=digest_of(data))
    return found


def _frozen(model: Model) -> Model:
    return model.to("cpu").eval().requires_grad_(requires_grad=False)


def _pointer_name(train_key: str) -> str:
    return f"models/by-key/{train_key}.json"


def _read_pointer(store: Store, train_key: str) -> str:
    name = _pointer_name(train_key)
    model_id = read_document(store.get(name), name).get("model_id")
    if not isinstance(model_id, str) or not re.fullmatch(DIGEST, model_id):
        raise IntegrityError(
            f"{name} on {store.url} names the model_id {model_id!r:.80}, which is not 64 hex digits; "
            "delete it to train anew"
        )
    return model_id


def _config_bytes(store: Store, model_id: str) -> tuple[str, bytes]:
    """Return name and bytes of a bundle's config. Raises NotFound."""
    name = f"models/{model_id}/config.json"
    try:
        return name, store.get(name)
    except NotFound as error:
        raise NotFound(
            f"there is no bundle {model_id} on {store.url}: {name} is missing, so it expired or was never finished; "
            "`codebooks train` makes one"
        ) from error


def _facts(config: bytes, name: str) -> dict[str, Any]:
    """Return what a config.json says. Raises InputError for another format."""
    facts = read_document(config, name)
    if facts.get("format") != FORMAT:
        raise InputError(
            f"{name}: a bundle of format {facts.get('format')!r}; this version reads format {FORMAT}. Use the version "
            "that wrote it, or train anew"
        )
    return facts


def _read_weights(store: Store, model_id: str, config: bytes) -> dict[str, Tensor]:
    """Return a bundle's tensors. Raises IntegrityError unless they and the config are what the model_id stands for."""
    name = f"models/{model_id}/weights.safetensors"
    try:
        data = store.get(name)
        tensors = safetensors.torch.load(data)
    except NotFound as error:
        raise IntegrityError(f"{name} on {store.url} is missing; restore it, or train anew") from error
    except safetensors.SafetensorError as error:
        raise IntegrityError(
            f"{name} on {store.url} is no safetensors file ({error}); restore it, or train anew"
        ) from error
    found = model_id_of(config, tensors)
    if found != model_id:
        raise IntegrityError(
            f"bundle {model_id} on {store.url} is damaged: its config.json (sha256 {digest_of(config)[:12]}...) and "
            f"weights.safetensors (sha256 {digest_of(data)[:12]}...) make the id {found}; restore it, or train anew"
        )
    return tensors


def _model_config(values: Mapping[str, Any], name: str) -> ModelConfig:
    """Return the configuration of a stored model. Raises InputError that shows what this version does not know."""
    kind = values.get("kind")
    if kind not in models.MODELS:
        raise InputError(
            f"{name}: the model's kind is {kind!r}; this version knows {', '.join(sorted(models.MODELS))}. "
            "Use the version that wrote it, or train anew"
        )
    config_class, _ = models.MODELS[kind]
    try:
        return config_class.model_validate_json(json.dumps(values))
    except ValidationError as error:
        unknown, missing = set(values) - set(config_class.model_fields), set(config_class.model_fields) - set(values)
        lines = [f"+ {field}: {values[field]!r} (stored, unknown here)" for field in sorted(unknown)]
        lines += [f"- {field} (known here, not stored)" for field in sorted(missing)]
        lines += [
            f"! {'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
            for problem in error.errors()
            if problem["type"] != "extra_forbidden"
        ]
        raise InputError(
            f"{name}: this version cannot read the configuration of a {kind!r} model; use the version that wrote it, "
            "or train anew\n" + "\n".join(lines)
        ) from error


def _labels(facts: Mapping[str, Any], config: ModelConfig, name: str) -> tuple[str, ...]:
    """Return a stored conditional model's categories. Raises InputError when they are missing or no list of texts."""
    if not config.conditional:
        return ()
    labels = facts.get("labels")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise InputError(
            f"{name}: a {config.kind!r} model without its list of labels (found {labels!r}); use the version that "
            "wrote it, or train anew"
        )
    return tuple(labels)


def _refuse_differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], name: str) -> None:
    """Raise InputError that lists the tensors by which the code's model and the stored one differ."""
    here = {key: (str(tensor.dtype), tuple(tensor.shape)) for key, tensor in expected.items()}
    there = {key: (str(tensor.dtype), tuple(tensor.shape)) for key, tensor in found.items()}
    if here == there:
        return
    lines = [f"+ {key} {there[key]} (stored)" for key in sorted(there) if here.get(key) != there[key]]
    lines += [f"- {key} {here[key]} (expected)" for key in sorted(here) if there.get(key) != here[key]]
    raise InputError(
        f"{name}: the stored tensors are not those of this version's model; use the version that wrote it, or train "
        "anew\n" + "\n".join(lines)
    )

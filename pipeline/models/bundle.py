"""Bundles: finished models on the store, named by content, found by what was asked, loaded without pickled code."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from ..errors import InputError, IntegrityError, NotFound
from ..images import ImagesConfig
from ..keys import digest_of
from ..release import FileEntry
from ..storage import Files, Store
from .base import Model, ModelConfig, StoredImages, Taught, as_dict, stored_transforms
from .card import write_card
from .export import export_encoder
from .kinds import MODELS, build_model
from .shelves import FORMAT, Shelf, asked_key, at_rest
from .teachers import cells_of

BUNDLES = Shelf("models", "bundle", "model_id", expires=True)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A model from the store: on the CPU, in evaluation mode, frozen. images: how photos become pixels, for a model of
    several sizes one config each.

    labels: the categories that a conditional model knows, in the order of its table; () for every other model.
    """

    model_id: str
    config: ModelConfig
    image_size: int
    images: StoredImages
    model: Model
    labels: tuple[str, ...] = ()

    @property
    def transforms(self) -> tuple[ImagesConfig, ...]:
        """Return `images` as configs."""
        return stored_transforms(self.images)


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
    what = {"model": as_dict(model), "images": dict(images)}
    return asked_key(what, train=train, seed=seed, version=version, nonce=nonce, condition=condition)


def save_bundle(
    store: Store,
    model: Model,
    config: ModelConfig,
    images: BaseModel | StoredImages,
    *,
    train_key: str,
    card: Mapping[str, Any],
    labels: Sequence[str] = (),
    exports: bool = True,
) -> str:
    """Write a trained model and return the model_id that answers `train_key`: this one, or that of who came first.

    images: the configuration the photos were decoded with, with `size`, or a list of one for each size that the model
    sees. card: facts for the model card, plain values. labels: the categories that a conditional model was built with;
    another model's are not kept. exports: False leaves the ONNX encoder out, on a store that is thrown away.
    A bundle without config.json is not there, and saving again after a crash completes it (`Shelf.save`). The given
    model is not changed. Raises IntegrityError when the store holds other bytes under this bundle's name.
    """
    values = as_dict(images) if isinstance(images, BaseModel) else images
    kept = at_rest(copy.deepcopy(model))
    facts: dict[str, Any] = {
        "format": FORMAT,
        "image_size": model.image_size,
        "images": values,
        "model": as_dict(config),
    }
    if config.conditional:  # the other bundles' bytes, hence their ids, stay as they are
        facts["labels"] = list(labels)
    numbers = sum(tensor.numel() for tensor in kept.state_dict().values())
    return BUNDLES.save(
        store,
        kept,
        facts,
        train_key=train_key,
        derived={
            **({"encoder.onnx": lambda _: export_encoder(kept, conditional=config.conditional)} if exports else {}),
            "card.md": lambda model_id: write_card(model_id, facts, numbers, train_key, card).encode(),
        },
    )


def find_bundle(store: Store, train_key: str) -> str | None:
    """Return the model_id of the bundle that answers a train key; None when nothing does, or it has expired.

    Raises Unavailable while an expiry is deleting it.
    """
    return BUNDLES.find(store, train_key)


def load_bundle(store: Store, model_id: str) -> Bundle:
    """Return a model from the store.

    Only JSON and safetensors are read, so nothing that is stored is run; torch's random generator stays as it is.
    Raises NotFound when there is no such bundle (also when it was only half written), IntegrityError when its bytes
    are not those the model_id was made from, InputError when this version of the project does not know the model.
    """
    config_bytes = BUNDLES.config(store, model_id)
    tensors = BUNDLES.tensors(store, model_id, config_bytes)
    facts, name = BUNDLES.facts(config_bytes, model_id), BUNDLES.name(model_id, "config.json")
    config = _model_config(facts["model"], name)
    labels = _labels(facts, config, name)
    with torch.random.fork_rng(devices=[]):
        model = build_model(config, image_size=facts["image_size"], labels=labels)
    _refuse_differences(model.state_dict(), tensors, name)
    model.load_state_dict(tensors)
    return Bundle(model_id, config, facts["image_size"], facts["images"], at_rest(model), labels)


def stored_config(store: Store, model_id: str) -> tuple[ModelConfig, StoredImages]:
    """Return a bundle's model config and its images config as plain values, without reading its weights.

    So nothing tells yet whether the bytes are those the model_id was made from. Raises NotFound, InputError.
    """
    facts = BUNDLES.facts(BUNDLES.config(store, model_id), model_id)
    return _model_config(facts["model"], BUNDLES.name(model_id, "config.json")), facts["images"]


def resolved_config(
    store: Store,
    config: ModelConfig,
    images: Mapping[str, Any],
    *,
    teacher: str | None = None,
    files: Files | None = None,
) -> ModelConfig:
    """Return a config as its bundle keeps it, with what files (`described`), teacher and bundles (`resolved`) say.

    teacher: the bundle of the teacher that the config describes. Without it such a teacher is taken as it would be
    built, which tells what a model will be like, and not yet whose features it learns from. files: reads the weights,
    by default as the store is reached. Raises NotFound, ConfigError, InputError where a file cannot be used.
    """
    asked = config.taught_by()
    if isinstance(asked, str):
        config = config.taught(_taught_by_bundle(store, asked))
    elif asked is not None:
        config = config.taught(
            _taught_as_built(store, asked, images, files) if teacher is None else _taught_by_bundle(store, teacher)
        )
    described = config.described(files or Files(store.options))
    return described.resolved(lambda model_id: stored_config(store, model_id), images)


def _taught_by_bundle(store: Store, model_id: str) -> Taught:
    found = load_bundle(store, model_id)
    return _taught(model_id, found.model, found.config, found.transforms)


def _taught_as_built(store: Store, teacher: ModelConfig, images: Mapping[str, Any], files: Files | None) -> Taught:
    own = teacher.transforms(ImagesConfig.model_validate(images))
    built = resolved_config(store, teacher, images, files=files)
    with torch.random.fork_rng(devices=[]):
        model = build_model(built, image_size=own[0].size)
    return _taught("0" * 64, model, built, own)


def _taught(model_id: str, model: Model, config: ModelConfig, transforms: Sequence[ImagesConfig]) -> Taught:
    return Taught(
        model_id=model_id,
        config=config,
        transforms=tuple(transforms),
        image_size=model.image_size,
        numbers=model.latent_dim,
        cells=cells_of(model),
    )


def bundle_files(store: Store, model_id: str) -> dict[str, FileEntry]:
    """Return what a manifest says of the files that a query by photo reads: its fields `encoder`, `bundle_config`.

    The model_id covers weights and config, not the derived encoder, so only a manifest can hold the encoder to its
    bytes. Raises IntegrityError when one of them is missing.
    """
    found: dict[str, FileEntry] = {}
    for field, file in (("encoder", "encoder.onnx"), ("bundle_config", "config.json")):
        name = BUNDLES.name(model_id, file)
        try:
            data = store.get(name)
        except NotFound as error:
            raise IntegrityError(f"{name} on {store.url} is missing; restore it, or train anew") from error
        found[field] = FileEntry(name=name, bytes=len(data), sha256=digest_of(data))
    return found


def _model_config(values: Mapping[str, Any], name: str) -> ModelConfig:
    """Return the configuration of a stored model. Raises InputError that shows what this version does not know."""
    kind = values.get("kind")
    if kind not in MODELS:
        raise InputError(
            f"{name}: the model's kind is {kind!r}; this version knows {', '.join(sorted(MODELS))}. "
            "Use the version that wrote it, or train anew"
        )
    config_class, _ = MODELS[kind]
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

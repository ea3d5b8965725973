"""Trained things on the store: named by content, found by what was asked, read without pickled code."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import InputError, IntegrityError, NotFound
from ..keys import DIGEST, digest_of, key_of, portable
from ..release.holds import check_names_not_swept
from ..release.manifest import read_document
from ..storage import Store

FORMAT = 1
Kept = TypeVar("Kept", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Shelf:
    """Where one sort of trained thing lies: `<folder>/<id>/`, and by what was asked `<folder>/by-key/<train_key>.json`.

    word: what it is called in messages. id_name: the field of a pointer that names its id. expires: whether an expiry
    may delete one, so that a key which names one that is gone answers nothing.
    """

    folder: str
    word: str
    id_name: str
    expires: bool = False

    def name(self, its_id: str, file: str) -> str:
        """Return the name of one of its files on the store."""
        return f"{self.folder}/{its_id}/{file}"

    def save(
        self,
        store: Store,
        module: nn.Module,
        facts: Mapping[str, Any],
        *,
        train_key: str,
        derived: Mapping[str, Callable[[str], bytes]],
    ) -> str:
        """Write a module, frozen as `at_rest` returns it, and return the id that answers `train_key`.

        That is this one's, or that of who came first. facts: what config.json holds, plain values. derived: by file
        name, what is made of the id; whichever attempt writes such a file makes it from these weights. Order: weights,
        derived files, config.json, then the key, so one without config.json is not there, and saving again after a
        crash completes it. Raises IntegrityError when the store holds other bytes under its name, Unavailable while an
        expiry is deleting it.
        """
        config = (json.dumps(facts, sort_keys=True, indent=2, allow_nan=False) + "\n").encode()
        tensors = {name: tensor.contiguous().clone() for name, tensor in module.state_dict().items()}
        its_id = content_id(config, tensors)
        weights = safetensors.torch.save(tensors, {"format": "pt"})
        self._check_stays(store, its_id)  # what lies there of an earlier training may be going
        if not store.put_if_absent(self.name(its_id, "weights.safetensors"), weights):
            self.tensors(store, its_id, config)
        if not store.exists(self.name(its_id, "config.json")):
            for file, make in derived.items():
                if not store.exists(self.name(its_id, file)):
                    store.put_if_absent(self.name(its_id, file), make(its_id))
            store.put_if_absent(self.name(its_id, "config.json"), config)
        return self.answer(store, train_key, its_id)

    def answer(self, store: Store, train_key: str, its_id: str) -> str:
        """Let one that is there answer a key; return the id that answers it: this one, or that of who came first."""
        pointer = json.dumps({self.id_name: its_id, "train_key": train_key}, sort_keys=True).encode()
        if store.put_if_absent(self._pointer(train_key), pointer):
            return its_id
        first = self._pointed(store, train_key)
        if not self.expires or store.exists(self.name(first, "config.json")):
            return first
        store.delete(self._pointer(train_key))  # it names one that has expired
        store.put_if_absent(self._pointer(train_key), pointer)
        return self._pointed(store, train_key)

    def find(self, store: Store, train_key: str) -> str | None:
        """Return the id that answers a key; None when nothing does.

        Raises IntegrityError when the key names one that is no longer there, where none expire; Unavailable while an
        expiry is deleting what it names. A run looks after its attempt is written, and a sweep judges after it has
        said that it begins: so the one sees the other, and nobody goes on with half of a bundle.
        """
        try:
            its_id = self._pointed(store, train_key)
        except NotFound:
            return None
        if self.expires:
            self._check_stays(store, its_id)
            return its_id if store.exists(self.name(its_id, "config.json")) else None
        if not store.exists(self.name(its_id, "config.json")):
            pointer = self._pointer(train_key)
            raise IntegrityError(
                f"{pointer} on {store.url} names {self.word} {its_id}, which is not there; restore "
                f"{self.folder}/{its_id}/, or delete {pointer} to train anew"
            )
        return its_id

    def _check_stays(self, store: Store, its_id: str) -> None:
        if self.expires:
            check_names_not_swept(store, [self.name(its_id, file) for file in ("config.json", "weights.safetensors")])

    def config(self, store: Store, its_id: str) -> bytes:
        """Return the bytes of its config.json. Raises NotFound when there is no such thing, or it was half written."""
        name = self.name(its_id, "config.json")
        try:
            return store.get(name)
        except NotFound as error:
            raise NotFound(
                f"there is no {self.word} {its_id} on {store.url}: {name} is missing, so it expired or was never "
                "finished; train one"
            ) from error

    def facts(self, config: bytes, its_id: str) -> dict[str, Any]:
        """Return what the bytes of a config.json say. Raises InputError for another format."""
        name = self.name(its_id, "config.json")
        facts = read_document(config, name)
        if facts.get("format") != FORMAT:
            raise InputError(
                f"{name}: a {self.word} of format {facts.get('format')!r}; this version reads format {FORMAT}. Use the "
                "version that wrote it, or train anew"
            )
        return facts

    def tensors(self, store: Store, its_id: str, config: bytes) -> dict[str, Tensor]:
        """Return its tensors. Raises IntegrityError unless they and the config are what the id stands for."""
        name = self.name(its_id, "weights.safetensors")
        try:
            data = store.get(name)
            tensors = safetensors.torch.load(data)
        except NotFound as error:
            raise IntegrityError(f"{name} on {store.url} is missing; restore it, or train anew") from error
        except safetensors.SafetensorError as error:
            raise IntegrityError(
                f"{name} on {store.url} is damaged, no safetensors file ({error}); restore it, or train anew"
            ) from error
        found = content_id(config, tensors)
        if found != its_id:
            raise IntegrityError(
                f"{self.word} {its_id} on {store.url} is damaged: its config.json (sha256 {digest_of(config)[:12]}...) "
                f"and weights.safetensors (sha256 {digest_of(data)[:12]}...) make the id {found}; restore it, or train "
                "anew"
            )
        return tensors

    def _pointer(self, train_key: str) -> str:
        return f"{self.folder}/by-key/{train_key}.json"

    def _pointed(self, store: Store, train_key: str) -> str:
        name = self._pointer(train_key)
        its_id = read_document(store.get(name), name).get(self.id_name)
        if not isinstance(its_id, str) or not re.fullmatch(DIGEST, its_id):
            raise IntegrityError(
                f"{name} on {store.url} names the {self.id_name} {its_id!r:.80}, which is not 64 hex digits; delete it "
                "to train anew"
            )
        return its_id


def asked_key(
    what: Mapping[str, Any], *, train: Mapping[str, Any], seed: int, version: int, nonce: str, condition: str | None
) -> str:
    """Return the key (64 hex digits) of a training: everything that was asked for, never the catalogue.

    what: the configurations of what is trained, plain values; train: the training's. nonce: sets trainings apart that
    ask for the same; "" for none. condition: the name of the column whose categories are told; None: none are.
    """
    asked = {**what, "format": FORMAT, "train": dict(train), "seed": seed, "version": version, "nonce": nonce}
    if condition is not None:
        asked["condition"] = condition
    return key_of(portable(asked))


def content_id(config: bytes, tensors: Mapping[str, Tensor]) -> str:
    """Return the id of content: sha256 (hex) over config.json and, by name, each tensor's name, dtype, shape, bytes.

    The bytes of a safetensors file would not do: the order inside it is not repeatable.
    """
    digest = hashlib.sha256(f"{len(config)}\n".encode() + config)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(json.dumps([name, dtype, list(tensor.shape)]).encode() + b"\n")
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def at_rest(module: Kept) -> Kept:
    """Return a module as it is kept: on the CPU, in evaluation mode, without gradients."""
    return module.to("cpu").eval().requires_grad_(requires_grad=False)

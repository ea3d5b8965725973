"""Codebooks as files: safetensors, read and written without pickled code and without torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import IntegrityError, NotFound
from ..keys import digest_of, key_of
from ..release import Sample
from ..storage import Store
from .config import SemanticIdsConfig
from .quantizer import Codebooks

FORMAT = "1"
_DTYPES = {"F32": "<f4"}  # safetensors' names


@dataclass(frozen=True, slots=True)
class HeldCodebooks:
    """Codebooks as they lie on the store; digest: the sha256 of these bytes, which names the epoch's vocabulary."""

    books: Codebooks
    data: bytes

    @property
    def digest(self) -> str:
        """The sha256 of the file."""
        return digest_of(self.data)


def codebooks_name(model_id: str, config: SemanticIdsConfig, metric: str, sample: Sample | None = None) -> str:
    """Return the name of a bundle's codebooks for these settings; the capacity is not one of them.

    sample: of the catalogue; a model that learns nothing is the same for a sample and for all, its codebooks are not.
    """
    asked: dict[str, object] = {
        "format": FORMAT,
        "method": config.method,
        "levels": list(config.levels),
        "seed": config.seed,
        "metric": metric,
    }
    if sample is not None:
        asked["sample"] = sample.model_dump(mode="json")
    return f"models/{model_id}/sids-{key_of(asked)[:12]}.safetensors"


def find_codebooks(store: Store, name: str) -> HeldCodebooks | None:
    """Return the codebooks of this name; None when nobody has fitted them. Raises IntegrityError for damaged ones."""
    try:
        data = store.get(name)
    except NotFound:
        return None
    return HeldCodebooks(codebooks_from(data, name), data)


def keep_codebooks(store: Store, name: str, books: Codebooks, facts: Mapping[str, str]) -> HeldCodebooks:
    """Write codebooks unless somebody was first; return those that are there now."""
    data = codebooks_bytes(books, facts)
    if store.put_if_absent(name, data):
        return HeldCodebooks(books, data)
    data = store.get(name)
    return HeldCodebooks(codebooks_from(data, name), data)


def codebooks_bytes(books: Codebooks, facts: Mapping[str, str]) -> bytes:
    """Return codebooks as a safetensors file: level_0, level_1, ... float32 [codes, d]; facts: its metadata."""
    header: dict[str, object] = {"__metadata__": {**facts, "format": FORMAT}}
    start = 0
    for number, level in enumerate(books.levels):
        header[f"level_{number}"] = {
            "dtype": "F32",
            "shape": list(level.shape),
            "data_offsets": [start, start + level.nbytes],
        }
        start += level.nbytes
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    levels = [np.ascontiguousarray(level, "<f4").tobytes() for level in books.levels]
    return b"".join([struct.pack("<Q", len(text)), text, *levels])


def codebooks_from(data: bytes, name: str) -> Codebooks:
    """Return the codebooks of a file that `codebooks_bytes` wrote. Raises IntegrityError for anything else."""
    try:
        (length,) = struct.unpack_from("<Q", data)
        header, body = json.loads(data[8 : 8 + length]), memoryview(data)[8 + length :]
        tensors = {key: value for key, value in header.items() if key != "__metadata__"}
        levels = []
        for number in range(len(tensors)):
            entry = tensors[f"level_{number}"]
            start, end = entry["data_offsets"]
            levels.append(
                np.frombuffer(body[start:end], _DTYPES[entry["dtype"]]).astype(np.float32).reshape(entry["shape"])
            )
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise IntegrityError(f"{name} is no file of codebooks ({error}); restore it") from error
    if not levels or any(level.ndim != 2 or level.shape[1] != levels[0].shape[1] for level in levels):
        raise IntegrityError(f"{name} holds levels of {[level.shape for level in levels]}; restore it")
    return Codebooks(tuple(levels))

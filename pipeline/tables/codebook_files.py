"""Codebooks as files: safetensors, read and written without pickled code and without torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import IntegrityError, NotFound
from ..index.latents import Float32
from ..keys import digest_of, key_of, portable
from ..release import Sample
from ..storage import Store
from .config import SemanticIdsConfig
from .encoder import Encoder, Layer
from .quantizer import Codebooks

FORMAT = "1"
_WITH_ENCODER = "2"  # the format of a file that holds an encoder beside the levels
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
    if config.method == "rqvae":
        asked["rqvae"] = portable(config.rqvae.model_dump(mode="json"))
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
    """Write codebooks unless somebody was first; return those that are there now, where they are these as they are."""
    data = codebooks_bytes(books, facts)
    if store.put_if_absent(name, data):
        return HeldCodebooks(books, data)
    theirs = store.get(name)
    return HeldCodebooks(books if theirs == data else codebooks_from(theirs, name), theirs)


def codebooks_bytes(books: Codebooks, facts: Mapping[str, str]) -> bytes:
    """Return codebooks as a safetensors file: level_0, level_1, ... float32 [codes, d]; facts: its metadata.

    Trained ones have `encoder_shift`, `encoder_scale` and, layer by layer, `encoder_weight_0` [outputs, inputs],
    `encoder_bias_0`, ... too.
    """
    tensors = {f"level_{number}": level for number, level in enumerate(books.levels)}
    if books.encoder is not None:
        tensors |= {"encoder_shift": books.encoder.shift, "encoder_scale": books.encoder.scale}
        for number, layer in enumerate(books.encoder.layers):
            tensors |= {f"encoder_weight_{number}": layer.weight, f"encoder_bias_{number}": layer.bias}
    header: dict[str, object] = {
        "__metadata__": {**facts, "format": FORMAT if books.encoder is None else _WITH_ENCODER}
    }
    start = 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, start + tensor.nbytes]}
        start += tensor.nbytes
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    held = [np.ascontiguousarray(tensor, "<f4").tobytes() for tensor in tensors.values()]
    return b"".join([struct.pack("<Q", len(text)), text, *held])


def codebooks_from(data: bytes, name: str) -> Codebooks:
    """Return the codebooks of a file that `codebooks_bytes` wrote. Raises IntegrityError for anything else."""
    try:
        tensors = _tensors(data)
        levels = _numbered(tensors, "level")
        encoder = None
        if tensors:
            layers = zip(_numbered(tensors, "encoder_weight"), _numbered(tensors, "encoder_bias"), strict=True)
            shift, scale = tensors.pop("encoder_shift"), tensors.pop("encoder_scale")
            encoder = Encoder(shift, scale, tuple(Layer(*layer) for layer in layers))
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise IntegrityError(f"{name} is no file of codebooks ({error}); restore it") from error
    if tensors:
        raise IntegrityError(f"{name} is no file of codebooks (it holds {sorted(tensors)} too); restore it")
    if not levels or any(level.ndim != 2 or level.shape[1] != levels[0].shape[1] for level in levels):
        raise IntegrityError(f"{name} holds levels of {[level.shape for level in levels]}; restore it")
    if encoder is not None and not _fits(encoder, levels[0].shape[1]):
        shapes = [layer.weight.shape for layer in encoder.layers]
        raise IntegrityError(f"{name} holds an encoder of layers {shapes}, which do not fit each other; restore it")
    return Codebooks(tuple(levels), encoder)


def _tensors(data: bytes) -> dict[str, Float32]:
    (length,) = struct.unpack_from("<Q", data)
    header, body = json.loads(data[8 : 8 + length]), memoryview(data)[8 + length :]
    tensors = {}
    for key, entry in header.items():
        if key != "__metadata__":
            start, end = entry["data_offsets"]
            flat = np.frombuffer(body[start:end], _DTYPES[entry["dtype"]]).astype(np.float32)
            tensors[key] = flat.reshape(entry["shape"])
    return tensors


def _numbered(tensors: dict[str, Float32], stem: str) -> list[Float32]:
    """Take `<stem>_0`, `<stem>_1`, ... out of the tensors. Raises KeyError where a number is left out."""
    count = sum(name.startswith(f"{stem}_") for name in tensors)
    return [tensors.pop(f"{stem}_{number}") for number in range(count)]


def _fits(encoder: Encoder, code_dim: int) -> bool:
    widths = [len(encoder.shift), *(len(layer.bias) for layer in encoder.layers)]
    shapes = [layer.weight.shape for layer in encoder.layers]
    flat = [encoder.shift, encoder.scale, *(layer.bias for layer in encoder.layers)]
    right = shapes == list(zip(widths[1:], widths, strict=False)) and all(tensor.ndim == 1 for tensor in flat)
    return right and len(encoder.scale) == widths[0] and widths[-1] == code_dim

"""A bundle's weights against the model_id that names them, without torch: releases rest on them and list them not."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import NotFound
from ..keys import digest_of
from ..storage import Store
from .manifest import Manifest

# safetensors' names of dtypes, as torch spells them: the model_id is made of these words.
_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}
_CODEBOOKS = "sids-"  # files of codebooks in a bundle's folder, which a manifest names by their digest


def bundle_problems(store: Store, manifest: Manifest) -> Iterator[str]:
    """Yield what is wrong with the files that a release takes from its bundle beside those that its manifest lists.

    The weights and config.json must make the model_id; codebooks of semantic IDs must be those that the release used.
    A folder without weights is no problem where its config.json is not that of a trained model: releases can be made
    of vectors and an encoder alone.
    """
    folder = f"models/{manifest.model_id}/"
    present = {entry.name.removeprefix(folder) for entry in store.list(folder)}
    if "weights.safetensors" in present or ("config.json" in present and _trained(store.get(f"{folder}config.json"))):
        yield from _weights_problems(store, folder, manifest.model_id)
    asked = manifest.inputs.get("semantic_ids")
    if isinstance(asked, Mapping) and "codebooks" in asked:
        held = sorted(name for name in present if name.startswith(_CODEBOOKS))
        if asked["codebooks"] not in {digest_of(store.get(folder + name)) for name in held}:
            yield (
                f"{folder}{_CODEBOOKS}*: none of {len(held)} files ({', '.join(held)}) has the sha256 "
                f"{asked['codebooks']} of the codebooks that the manifest names"
            )


def _trained(config: bytes) -> bool:
    try:
        return "format" in json.loads(config)
    except (ValueError, TypeError):
        return False


def _weights_problems(store: Store, folder: str, model_id: str) -> Iterator[str]:
    weights, config = f"{folder}weights.safetensors", f"{folder}config.json"
    read = {}
    for name in (weights, config):
        try:
            read[name] = store.get(name)
        except NotFound:
            yield f"{name} is missing"
    if len(read) < 2:
        return
    try:
        found = weights_id(read[config], read[weights])
    except ValueError as error:
        yield f"{weights} is damaged: {error}"
        return
    if found != model_id:
        yield f"{weights} and {config} make the id {found}, and are those of the model {model_id}"


def weights_id(config: bytes, data: bytes) -> str:
    """Return the model_id that a config.json and a safetensors file make, as `models.shelves.content_id` does.

    Raises ValueError for a file in which any byte could be another without changing what is read from it: a header
    that is not the one text of its content, or bytes of which no tensor is made.
    """
    header, body = _parsed(data)
    digest, end = hashlib.sha256(f"{len(config)}\n".encode() + config), 0
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    for _, entry in sorted(entries.items(), key=lambda pair: (pair[1]["data_offsets"], pair[0])):
        start, stop = entry["data_offsets"]
        if start != end or stop < start:
            raise ValueError(f"its tensors leave the bytes {end} to {start} out")
        end = stop
    if end != len(body):
        raise ValueError(f"its tensors end at byte {end:,} of {len(body):,}")
    for name in sorted(entries):
        entry = entries[name]
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"the dtype of {name} is {entry['dtype']!r}, known are {', '.join(_DTYPES)}")
        digest.update(json.dumps([name, _DTYPES[entry["dtype"]], entry["shape"]]).encode() + b"\n")
        digest.update(body[slice(*entry["data_offsets"])])
    return digest.hexdigest()


def _parsed(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """Return the header of a safetensors file and the bytes after it. Raises ValueError."""
    if len(data) < 8:
        raise ValueError(f"{len(data)} bytes are no safetensors file")
    (length,) = struct.unpack_from("<Q", data)
    text = data[8 : 8 + length]
    if length != len(text) or length % 8:
        raise ValueError(f"its header would be of {length:,} bytes")
    header = json.loads(text)
    again = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    if not isinstance(header, dict) or again + b" " * (-len(again) % 8) != text:
        raise ValueError("its header is not as safetensors writes it")
    if header.get("__metadata__", {"format": "pt"}) != {"format": "pt"}:
        raise ValueError(f"its metadata are {header['__metadata__']!r:.80}")
    for name, entry in header.items():
        if name != "__metadata__" and (
            not isinstance(entry, dict)
            or sorted(entry) != ["data_offsets", "dtype", "shape"]
            or not all(type(each) is int and each >= 0 for each in [*entry["shape"], *entry["data_offsets"]])
            or len(entry["data_offsets"]) != 2
        ):
            raise ValueError(f"its header has {name!r:.80} as {entry!r:.200}")
    return header, memoryview(data)[8 + length :]

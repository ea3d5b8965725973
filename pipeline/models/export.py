"""The encoder as an ONNX file: what a reader needs to encode a photo without torch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import CodebooksError
from .base import Latents, Model
from .conditions import FIRST_CATEGORY
from .foreign.onnx_merging import merge_graphs

TOLERANCE = 1e-4  # of a mean, relative to its size where that is above 1
_CODES_TOLERANCE = 0.01  # share of codes that rounding may move between two nearly equal neighbours
_OPSET = 18
_PREFIX = "latents_"


class _Encoder(nn.Module):
    """A model's `encode` as a `forward` with a plain tuple, in the order of `output_names`."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return _parts(self.model.encode(images))


class _EncoderOfSizes(_Encoder):
    def forward(self, *images: Tensor) -> tuple[Tensor, ...]:
        given: Any = images
        return _parts(self.model.encode(given))


class _ConditionalEncoder(_Encoder):
    def forward(self, images: Tensor, condition: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return _parts(self.model.encode(images, condition))


def _parts(latents: Latents) -> tuple[Tensor, ...]:
    return tuple(part for part in (latents.mean, latents.log_var, latents.codes) if part is not None)


def output_names(model: Model) -> list[str]:
    """Return the names of the exported encoder's outputs: mean, then log_var and codes where the model has them."""
    return ["mean", *(["log_var"] if model.has_log_var else []), *(["codes"] if model.num_latent_codes else [])]


def export_encoder(model: Model, *, conditional: bool = False) -> bytes:
    """Return the ONNX file of a model's encoder: input `images` uint8 [batch, 3, H, W], any batch size.

    A model of several sizes has further inputs `images_1`, ..., in the order of `Model.image_sizes`.
    conditional: a second input `condition` int64 [batch], rows of the model's table (`conditions.condition_of`).
    Weights are inside; nothing in it names the machine it was made on. The model is on the CPU and in evaluation mode.
    Raises CodebooksError when onnxruntime and torch disagree about it by more than 1e-4.
    """
    example = _examples(model, photos=2, conditional=conditional)
    wrapper = _ConditionalEncoder if conditional else _Encoder
    if len(model.image_sizes) > 1:
        wrapper = _EncoderOfSizes
    tensors = tuple(torch.from_numpy(array) for array in example.values())
    data = export_module(wrapper(model).eval(), tensors, list(example), output_names(model))
    _check(model, data, conditional=conditional)
    return data


def export_module(module: nn.Module, example: tuple[Tensor, ...], inputs: list[str], outputs: list[str]) -> bytes:
    """Return the ONNX file of a module in evaluation mode, of any batch size, with named inputs and outputs.

    Graphs of others that it runs stand in it as they are. Nothing in it names the machine it was made on.
    """
    shapes: Any = ({0: torch.export.Dim("batch")}, *({0: torch.export.Dim.AUTO} for _ in inputs[1:]))
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            example,
            input_names=inputs,
            output_names=[_PREFIX + name for name in outputs],
            dynamic_shapes=(shapes,) if isinstance(module, _EncoderOfSizes) else shapes,
            opset_version=_OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    proto = program.model_proto  # type: ignore[union-attr]
    merge_graphs(proto)
    _name_outputs(proto.graph)
    _strip(proto)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def run_encoder(
    data: bytes, images: np.ndarray, condition: np.ndarray | None = None, **others: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the outputs of an exported encoder by name for photos, uint8 [B, 3, H, W]; on the CPU, by onnxruntime.

    condition: int64 [B], for a conditional model. others: `images_1`, ... of a model of several sizes.
    """
    told = {} if condition is None else {"condition": condition}
    return run_graph(data, {"images": images, **told, **others})


def run_graph(data: bytes, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the outputs of an ONNX file by name, of its inputs by name; on the CPU, by onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(given)), strict=True))


def _check(model: Model, data: bytes, *, conditional: bool) -> None:
    """Compare onnxruntime with torch on another batch size than the exporter saw, for conditions 0, 1, 2, the last."""
    given = _examples(model, photos=5, conditional=conditional)
    exported = run_encoder(data, **given)
    tensors: Any = tuple(torch.from_numpy(array) for array in given.values())
    with torch.no_grad():
        latents = model.encode(tensors) if len(model.image_sizes) > 1 else model.encode(*tensors)
    same = np.ones(len(given["images"]), dtype=bool)
    if latents.codes is not None:
        moved = exported["codes"] != latents.codes.numpy()
        if moved.mean() > _CODES_TOLERANCE:
            raise CodebooksError(
                f"the exported encoder chooses {moved.mean():.1%} other codes than torch; do not use it"
            )
        same = ~moved.any(axis=1)
    for name, expected in (("mean", latents.mean), ("log_var", latents.log_var)):
        if expected is None:
            continue
        wanted = expected.numpy()[same]
        apart = np.abs(exported[name][same] - wanted) / np.maximum(1.0, np.abs(wanted))
        if apart.size and not apart.max() <= TOLERANCE:
            raise CodebooksError(
                f"the exported encoder's {name} differs from torch by {apart.max():.2g}, more than {TOLERANCE}; "
                "check the versions of torch, onnxscript and onnxruntime"
            )


def _examples(model: Model, photos: int, *, conditional: bool) -> dict[str, np.ndarray]:
    """Return made-up inputs by name: photos, uint8 [photos, 3, size, size], and where asked conditions 0, 1, 2, ...

    torch's generator stays untouched.
    """
    rng = np.random.default_rng(0)
    given: dict[str, Any] = {
        f"images_{number}" if number else "images": rng.integers(0, 256, (photos, 3, size, size), dtype=np.uint8)
        for number, size in enumerate(model.image_sizes)
    }
    if conditional:
        rows = np.arange(photos, dtype=np.int64) % (FIRST_CATEGORY + len(model.labels))
        rows[-1] = FIRST_CATEGORY + len(model.labels) - 1
        given["condition"] = rows
    return given


def _name_outputs(graph: Any) -> None:
    """Give the outputs their names; inner values that have one of these (`mean` is also an operator) lose it."""
    wanted = {output.name.removeprefix(_PREFIX) for output in graph.output}
    renamed = {name: f"{name}_inner" for name in wanted} | {_PREFIX + name: name for name in wanted}
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for value in (*graph.output, *graph.value_info, *graph.initializer):
        value.name = renamed.get(value.name, value.name)


def _strip(proto: Any) -> None:
    """Remove stack traces, doc strings and metadata: they hold absolute paths of the machine that exported."""
    proto.doc_string = ""
    proto.producer_name, proto.producer_version = "visual-codebooks", ""
    del proto.metadata_props[:]
    for function in proto.functions:
        _strip_nodes(function)
    _strip_nodes(proto.graph)
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info, *proto.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]


def _strip_nodes(graph: Any) -> None:
    graph.doc_string = ""
    del graph.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            attribute.doc_string = ""
            if attribute.HasField("g"):
                _strip_nodes(attribute.g)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says about itself; its errors are raised all the same."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)

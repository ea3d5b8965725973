"""ONNX files that others exported: checked, cut at one output, brought to one form."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from ...errors import ConfigError, InputError
from ...keys import digest_of
from .network import near

OPSET = 18  # what our own exporter writes; a graph of an older one is raised to it, of a newer one raises ours
_TYPES = {1: "float32", 10: "float16", 2: "uint8"}
_BATCH = "batch"


class GraphConfig(BaseModel):
    """What is known of a graph whose bytes a bundle holds. shape: of the output without its batch.

    sha256, bytes: of the graph as the bundle holds it. layout: where the channels of its pictures lie.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    bytes: int
    input: str
    output: str
    dtype: Literal["float32", "float16", "uint8"]
    layout: Literal["nchw", "nhwc"]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """An ONNX file in the form that bundles hold, and what is known of it."""

    data: bytes
    config: GraphConfig


def graph_of(data: bytes, source: str, output: str, size: int) -> Graph:
    """Return the graph of an ONNX file up to one of its values, for pictures of one size and any number of them.

    output: the name of an output, or of any inner value. Raises InputError where the file is no ONNX model, is cut
    short, keeps weights in other files, or has not one input of pictures; ConfigError for an unknown output or a size
    that its input does not take.
    """
    model = _parsed(data, source)
    given = _only_input(model, source)
    layout = _layout(given, source, size)
    _cut(model, output, source)
    _free_the_batch(model, given)
    model = _raised(model, source)
    _strip(model)
    stored = model.SerializeToString(deterministic=True)
    dtype = _TYPES[given.type.tensor_type.elem_type]
    shape = _tried(stored, (given.name, layout, dtype), size, source)
    config = GraphConfig(
        sha256=digest_of(stored),
        bytes=len(stored),
        input=given.name,
        output=output,
        dtype=dtype,  # type: ignore[arg-type]
        layout=layout,
        shape=shape,
    )
    return Graph(stored, config)


def session_of(data: bytes) -> Any:
    """Return an onnxruntime session on the CPU with as many threads as torch has, on a GPU where it can."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    there = [name for name in wanted if name in onnxruntime.get_available_providers()]
    return onnxruntime.InferenceSession(data, options, providers=there)


def _parsed(data: bytes, source: str) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise InputError(
            f"{source} ({len(data):,} bytes) is no ONNX model, or is cut short; give the whole .onnx file"
        ) from error
    if not model.graph.node or not model.opset_import:
        raise InputError(f"{source} ({len(data):,} bytes) holds no ONNX graph; give the whole .onnx file")
    outside = next((tensor.name for tensor in _tensors(model.graph) if tensor.data_location == tensor.EXTERNAL), None)
    if outside is not None:
        raise InputError(
            f"{source} keeps its tensor {outside!r} in another file; save it in one: onnx.save_model(model, path, "
            "save_as_external_data=False)"
        )
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # of damaged bytes also others than ValidationError; only onnx's own code runs here
        raise InputError(f"{source} is no valid ONNX model ({str(error).splitlines()[0]}); export it anew") from error
    return model


def _tensors(graph: Any) -> Iterable[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            for inner in attribute.graphs:
                yield from _tensors(inner)


def _only_input(model: Any, source: str) -> Any:
    weights = {tensor.name for tensor in model.graph.initializer}
    given = [value for value in model.graph.input if value.name not in weights]
    if len(given) != 1 or len(given[0].type.tensor_type.shape.dim) != 4:
        listed = ", ".join(f"{value.name} of {len(value.type.tensor_type.shape.dim)} dimensions" for value in given)
        raise InputError(
            f"{source} has the inputs {listed or 'none'}; needed is one of pictures, [batch, 3, height, width]. Of a "
            "model of pictures and texts, export the picture tower alone"
        )
    if given[0].type.tensor_type.elem_type not in _TYPES:
        raise InputError(f"{source}: its input {given[0].name} is none of {', '.join(_TYPES.values())}")
    return given[0]


def _layout(given: Any, source: str, size: int) -> Literal["nchw", "nhwc"]:
    lengths = [dim.dim_value for dim in given.type.tensor_type.shape.dim]  # 0: any
    layout: Literal["nchw", "nhwc"] = "nhwc" if lengths[3] == 3 and lengths[1] != 3 else "nchw"
    sides = lengths[2:] if layout == "nchw" else lengths[1:3]
    channels = lengths[1] if layout == "nchw" else lengths[3]
    if channels not in (0, 3):
        raise InputError(f"{source}: its input {given.name} has {channels} channels, and photos have 3")
    wrong = [side for side in sides if side not in (0, size)]
    if wrong:
        raise ConfigError(
            f"model.preprocessing.size is {size}, but {source} takes pictures of {sides[0]} x {sides[1]}; set "
            f"model.preprocessing.size={wrong[0]}, or export it with free sides"
        )
    return layout


def _cut(model: Any, output: str, source: str) -> None:
    """Make one value the only output, and leave out what it does not need."""
    import onnx

    graph = model.graph
    makers = {name: number for number, node in enumerate(graph.node) for name in node.output if name}
    if output not in makers:
        ends = [value.name for value in graph.output]
        known = near(output, [*makers])
        raise ConfigError(
            f"model.output is {output!r}, which {source} does not have; its outputs: {', '.join(ends)}; {known}"
        )
    needed, waiting = set[int](), [output]
    while waiting:
        number = makers.get(waiting.pop())
        if number is None or number in needed:
            continue
        needed.add(number)
        waiting += [name for name in _read_by(graph.node[number]) if name]
    nodes = [node for number, node in enumerate(graph.node) if number in needed]
    read = {name for node in nodes for name in _read_by(node)}
    weights = [tensor for tensor in graph.initializer if tensor.name in read]
    named = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in named]
    for field, kept in (("node", nodes), ("initializer", weights), ("input", inputs)):
        del getattr(graph, field)[:]
        getattr(graph, field).extend(kept)
    del graph.output[:], graph.value_info[:]
    graph.output.append(onnx.ValueInfoProto(name=output))


def _read_by(node: Any) -> list[str]:
    """Return the values that a node reads, also those that its inner graphs take from outside."""
    read = list(node.input)
    for attribute in node.attribute:
        for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            read += [name for inside in inner.node for name in _read_by(inside)]
    return read


def _free_the_batch(model: Any, given: Any) -> None:
    for value in model.graph.input:
        if value.name == given.name:
            value.type.tensor_type.shape.dim[0].dim_param = _BATCH


def _raised(model: Any, source: str) -> Any:
    import onnx
    from onnx import version_converter

    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), OPSET)
    if opset >= OPSET:
        inferred = model
    else:
        try:
            inferred = version_converter.convert_version(_with_output_type(model), OPSET)
        except Exception as error:  # ConvertError is none of Python's own; only onnx's code runs here
            raise InputError(
                f"{source} is of ONNX opset {opset} and cannot be raised to {OPSET} ({str(error).splitlines()[0]}); "
                f"export it anew with opset {OPSET}"
            ) from error
    del inferred.graph.value_info[:]
    return _with_output_type(inferred) if inferred.graph.output else onnx.ModelProto()


def _with_output_type(model: Any) -> Any:
    """Return a model whose output has its type, which an inner value lacked."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model)
    kinds = {value.name: value for value in (*inferred.graph.value_info, *inferred.graph.output)}
    for value in model.graph.output:
        found = kinds.get(value.name)
        kind = found.type.tensor_type.elem_type if found is not None else 0
        value.type.tensor_type.elem_type = kind or onnx.TensorProto.FLOAT
    return model


def _strip(model: Any) -> None:
    """Remove what says where the file was made: doc strings, names of producers, metadata."""
    model.doc_string = model.producer_name = model.producer_version = model.domain = ""
    del model.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]


def _tried(data: bytes, given: tuple[str, str, str], size: int, source: str) -> tuple[int, ...]:
    """Return the output's shape without the batch, by running it on one photo and on two."""
    name, layout, dtype = given
    shape = (3, size, size) if layout == "nchw" else (size, size, 3)
    values = np.random.default_rng(0).random((2, *shape)).astype(dtype)
    try:
        session = session_of(data)
        alone = session.run(None, {name: values[:1]})[0]
    except Exception as error:
        raise InputError(f"{source} does not run in onnxruntime: {str(error).splitlines()[0][:300]}") from error
    try:
        both = session.run(None, {name: values})[0]
    except Exception as error:
        raise InputError(
            f"{source} takes one picture at a time; export it with a free batch, in torch.onnx.export by "
            "dynamic_shapes={'x': {0: 'batch'}}"
        ) from error
    if alone.ndim not in (2, 3, 4) or alone.shape[0] != 1 or both.shape != (2, *alone.shape[1:]):
        raise ConfigError(
            f"model.output: {source} says {list(alone.shape)} of one picture and {list(both.shape)} of two; needed are "
            "numbers, tokens or maps of each picture: [batch, D], [batch, tokens, D] or [batch, C, h, w]"
        )
    return tuple(int(length) for length in alone.shape[1:])

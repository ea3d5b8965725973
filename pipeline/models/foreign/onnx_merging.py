"""Graphs of others put into an exported encoder, in the places that `OnnxNetwork` left for them."""

from __future__ import annotations

from typing import Any

from .onnx_graphs import OPSET
from .onnx_network import DOMAIN, OPERATOR


def merge_graphs(encoder: Any) -> None:
    """Put the graphs that an encoder carries as bytes where it runs them; in place.

    encoder: an ONNX model as the exporter made it. Raises nothing where it carries none.
    """
    graph = encoder.graph
    places = [node for node in graph.node if node.domain == DOMAIN and node.op_type == OPERATOR]
    if not places:
        return
    carried = {name for node in places for name in node.input[1:]}
    bytes_of = {tensor.name: tensor for tensor in graph.initializer if tensor.name in carried}
    nodes: list[Any] = []
    opset = OPSET
    for node in graph.node:
        if not any(node is place for place in places):
            nodes.append(node)
            continue
        inner, version = _prefixed(bytes_of[node.input[1]], f"graph{len(nodes)}_", node.input[0], node.output[0])
        nodes += list(inner.graph.node)
        graph.initializer.extend(inner.graph.initializer)
        encoder.functions.extend(inner.functions)
        opset = max(opset, version)
        _add_domains(encoder, inner)
    kept = [tensor for tensor in graph.initializer if tensor.name not in carried]
    for field, values in (("node", nodes), ("initializer", kept)):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del getattr(graph, field)[:]
        getattr(graph, field).extend(copies)
    values_kept = [value for value in graph.value_info if value.name not in carried]
    del graph.value_info[:]
    graph.value_info.extend(values_kept)
    _set_opset(encoder, opset)


def _prefixed(tensor: Any, prefix: str, given: str, found: str) -> tuple[Any, int]:
    """Return the graph of its bytes with names of its own, reading and writing values of the encoder; its opset."""
    import onnx
    from onnx import compose, numpy_helper

    model = onnx.load_model_from_string(numpy_helper.to_array(tensor).tobytes())
    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), OPSET)
    model = compose.add_prefix(model, prefix)
    names = {model.graph.input[0].name: given, model.graph.output[0].name: found}
    for node in model.graph.node:
        _rename(node, names)
    return model, version


def _rename(node: Any, names: dict[str, str]) -> None:
    node.input[:] = [names.get(name, name) for name in node.input]
    node.output[:] = [names.get(name, name) for name in node.output]
    for attribute in node.attribute:
        for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            for inside in inner.node:
                _rename(inside, names)


def _add_domains(encoder: Any, inner: Any) -> None:
    there = {entry.domain for entry in encoder.opset_import}
    for entry in inner.opset_import:
        if entry.domain not in there and entry.domain != "ai.onnx":
            encoder.opset_import.append(entry)


def _set_opset(encoder: Any, opset: int) -> None:
    kept = [entry for entry in encoder.opset_import if entry.domain != DOMAIN]
    for entry in kept:
        if entry.domain in ("", "ai.onnx"):
            entry.version = max(entry.version, opset)
    copies = [type(entry).FromString(entry.SerializeToString()) for entry in kept]
    del encoder.opset_import[:]
    encoder.opset_import.extend(copies)

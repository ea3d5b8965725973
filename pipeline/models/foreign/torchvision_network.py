"""torchvision's classification networks (BSD-3-Clause), read out at any node of their graph."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError
from .network import ForeignNetwork, Seen, from_tokens, near
from .weights import load_exactly, tensors_of

_OUTPUT = "output"


class TorchvisionNetwork(ForeignNetwork):
    """One of torchvision's networks up to a node, named as `get_graph_node_names` names it: `layer4`, `avgpool`, ...

    Raises ConfigError for an unknown network or node, or a size that it cannot take.
    """

    def __init__(self, architecture: str, output: str, size: int) -> None:
        super().__init__()
        from torchvision.models.feature_extraction import create_feature_extractor

        self.architecture, self.output = architecture, output
        full, nodes = _graph(architecture)
        self.optional = set(full.state_dict())
        prefixes = list(dict.fromkeys(_prefix(node) for node in nodes))
        if output not in nodes and output not in _all_prefixes(nodes):
            known = [node for node in prefixes if node != "x"]
            raise ConfigError(
                f"model.output is {output!r}, which torchvision's {architecture} does not have; {near(output, known)}"
            )
        at = [node for node in prefixes if _last(nodes, node) <= _last(nodes, output) and node != "x"]
        # By their full names: of two prefixes that mean one node, the library would move one to another node.
        end = nodes[_last(nodes, output)]
        wanted = {f"map{number}": nodes[_last(nodes, node)] for number, node in enumerate(at)}
        wanted = {name: node for name, node in wanted.items() if node != end} | {_OUTPUT: end}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            extractor: Any = create_feature_extractor(full, {**{node: name for name, node in wanted.items()}})
            found = _tried(extractor, architecture, size)
            chosen = _finest_first({name: found[name] for name in wanted})
            # One graph for both: the output, and the maps that a perceptual loss may ask for on its way.
            kept = {wanted[name]: name for name in chosen}
            self.network: Any = create_feature_extractor(full, {**kept, end: _OUTPUT})
        self.network.eval()
        self.maps_at = chosen

    def seen(self, values: Tensor) -> Seen:
        """Return what the network says at its output."""
        found = self.network(values)[_OUTPUT]
        if found.ndim == 3:  # a transformer's tokens, its class token first
            return from_tokens(found, 1, self.output)
        if found.ndim == 4 and found.shape[2] != found.shape[3]:
            raise ConfigError(f"model.output {self.output!r} has its channels last; name the node that permutes them")
        return Seen(maps=found) if found.ndim == 4 else Seen(vector=found.flatten(1))

    def all_maps(self, values: Tensor) -> list[Tensor]:
        """Return the last map of every resolution up to the output."""
        if not self.maps_at:
            raise ConfigError(f"torchvision's {self.architecture} has no maps up to {self.output!r}; name a later node")
        found = self.network(values)
        return [found[name] for name in self.maps_at]

    def take(self, data: bytes, source: str) -> None:
        """Take the weights by torchvision's names; what lies behind the output may be in the file."""
        tensors = tensors_of(data, source)
        needed = set(self.network.state_dict())
        what = f"torchvision's {self.architecture}"
        load_exactly(self.network, tensors, optional=self.optional - needed, what=what, source=source)


def _graph(architecture: str) -> tuple[Any, list[str]]:
    """Return a network with random weights and the names of its nodes in the order they run."""
    import torchvision
    from torchvision.models.feature_extraction import get_graph_node_names

    known = torchvision.models.list_models(module=torchvision.models)
    if architecture not in known:
        raise ConfigError(
            f"model.architecture is {architecture!r}, which torchvision {torchvision.__version__} does not know; "
            f"{near(architecture, known)}"
        )
    options = {"transform_input": False, "aux_logits": True} if architecture == "inception_v3" else {}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = torchvision.models.get_model(architecture, weights=None, **options).eval()
        return network, list(get_graph_node_names(network)[1])


def _prefix(node: str) -> str:
    """Return the stage a node lies in: `layer1`, `features.3`."""
    first, _, rest = node.partition(".")
    return f"{first}.{rest.split('.')[0]}" if first in ("features", "encoder") and rest else first


def _all_prefixes(nodes: list[str]) -> set[str]:
    return {".".join(node.split(".")[:length]) for node in nodes for length in range(1, node.count(".") + 1)}


def _first(nodes: list[str], name: str) -> int:
    return next(number for number, node in enumerate(nodes) if node == name or node.startswith(f"{name}."))


def _last(nodes: list[str], name: str) -> int:
    return max(number for number, node in enumerate(nodes) if node == name or node.startswith(f"{name}."))


def _tried(extractor: Any, architecture: str, size: int) -> dict[str, Any]:
    try:
        with torch.no_grad():
            found: dict[str, Any] = extractor.eval()(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"model.preprocessing.size is {size}, which torchvision's {architecture} cannot take ({reason}); name the "
            "size that it was trained on"
        ) from error
    return found


def _finest_first(found: dict[str, Any]) -> list[str]:
    """Return the names of the last square map [1, C, h, h] of every resolution."""
    last: dict[int, str] = {}
    for name, value in found.items():
        if isinstance(value, Tensor) and value.ndim == 4 and value.shape[2] == value.shape[3]:
            last[value.shape[2]] = name
    return [last[side] for side in sorted(last, reverse=True)]

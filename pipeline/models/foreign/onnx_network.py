"""A network in an ONNX file, run by onnxruntime; in an exported encoder it stands as it is."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import ConfigError, InputError
from ...keys import digest_of
from .network import ForeignNetwork, Seen, from_tokens
from .onnx_graphs import GraphConfig, graph_of, session_of

DOMAIN, OPERATOR = "visual_codebooks", "Graph"
_KEPT = 4  # sessions in a process


class _Sessions:
    """The latest sessions of this process, by the digest of their graphs. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: OrderedDict[tuple[str, int], Any] = OrderedDict()

    def of(self, config: GraphConfig, graph: Tensor) -> Any:
        """Return the session of a graph's bytes. Raises InputError for other bytes than the config names."""
        key = (config.sha256, torch.get_num_threads())
        with self._lock:
            session = self._found.pop(key, None)
            if session is None:
                data = graph.cpu().numpy().tobytes()
                if digest_of(data) != config.sha256:
                    raise InputError("the pretrained ONNX graph has no weights yet; give its file to `use_file`")
                session = session_of(data)
            self._found[key] = session
            while len(self._found) > _KEPT:
                self._found.popitem(last=False)
        return session


_SESSIONS = _Sessions()


class OnnxNetwork(ForeignNetwork):
    """A graph whose bytes are the buffer `graph`, uint8 [bytes]: a bundle holds them, its model_id covers them."""

    graph: Tensor

    def __init__(self, config: GraphConfig, size: int) -> None:
        super().__init__()
        self.config, self.size = config, size
        self.register_buffer("graph", torch.zeros(config.bytes, dtype=torch.uint8))

    def seen(self, values: Tensor) -> Seen:
        """Return what the graph says. No gradient passes through it."""
        if torch.is_grad_enabled() and values.requires_grad:
            raise ConfigError(
                "a loss needs gradients through this pretrained network, and an ONNX file gives none; name the same "
                "network as a torchvision or timm file"
            )
        given = self._arranged(values)
        found = self._symbolic(given) if torch.compiler.is_exporting() else self._run(given)
        return self._seen(found.float())

    def blank(self, side: int) -> Seen:
        """Return zeros of the shapes that the graph has, which is not there yet."""
        return self._seen(torch.zeros(1, *self.config.shape))

    def all_maps(self, values: Tensor) -> list[Tensor]:
        """Return the map of the output."""
        maps = self.seen(values).maps
        if maps is None:
            raise ConfigError(
                f"model.output {self.config.output!r} of the ONNX file has no maps; name a value that has"
            )
        return [maps]

    def take(self, data: bytes, source: str) -> None:
        """Take the graph of a file. Raises InputError for another file than the config was filled in by."""
        made = graph_of(data, source, self.config.output, self.size)
        if made.config != self.config:
            raise InputError(
                f"{source} is not the file that the config was made by: its graph has the sha256 {made.config.sha256}, "
                f"expected is {self.config.sha256}; run again"
            )
        self.graph.copy_(torch.frombuffer(bytearray(made.data), dtype=torch.uint8))

    def _arranged(self, values: Tensor) -> Tensor:
        values = values.permute(0, 2, 3, 1) if self.config.layout == "nhwc" else values
        if self.config.dtype == "uint8":
            return values.round().clamp(0, 255).to(torch.uint8)
        return values.to(torch.float16 if self.config.dtype == "float16" else torch.float32)

    def _run(self, given: Tensor) -> Tensor:
        session = _SESSIONS.of(self.config, self.graph)
        found = session.run(None, {self.config.input: np.ascontiguousarray(given.detach().cpu().numpy())})[0]
        return torch.from_numpy(found).to(given.device)

    def _symbolic(self, given: Tensor) -> Tensor:
        """Return a place for the graph; `onnx_merging.merge_graphs` puts it there."""
        symbolic: Any = torch.onnx.ops.symbolic
        found: Tensor = symbolic(
            f"{DOMAIN}::{OPERATOR}",
            [given, self.graph],
            attrs={},
            dtype=torch.float32,
            shape=[given.shape[0], *self.config.shape],
            version=1,
        )
        return found

    def _seen(self, found: Tensor) -> Seen:
        if found.ndim == 4:
            return Seen(maps=found.permute(0, 3, 1, 2) if self.config.layout == "nhwc" else found)
        if found.ndim == 2:
            return Seen(vector=found)
        tokens = found.shape[1]
        side = int(tokens**0.5)  # what is more than a square of patches are class and other tokens, which come first
        return from_tokens(found, tokens - side * side, self.config.output)

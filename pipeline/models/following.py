"""A two-view model with a copy of itself that follows slowly and has no gradient: what MoCo learns from."""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import nn

from .base import Step
from .two_views import TwoViews, TwoViewsConfig


class Following(TwoViews):
    """Backbone and projector, and their copies, which `follow`. The copies' weights are buffers: nothing trains,
    averages or clips them."""

    def __init__(self, config: TwoViewsConfig, image_size: int) -> None:
        super().__init__(config, image_size)
        self.key_network = following(self.network)
        self.key_projector = following(self.projector)
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self._started = False
        self._step: Step | None = None  # from the forward pass to the end of the step

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return the copies, each with what it follows."""
        return [(self.key_network, self.network), (self.key_projector, self.projector)]

    def use_file(self, data: bytes, source: str) -> None:
        """Begin with a pretrained backbone's weights, the copy with its statistics too, which nothing moves later."""
        super().use_file(data, source)
        with torch.no_grad():
            for name, buffer in self.network.named_buffers():
                self.key_network.get_buffer(name).copy_(buffer)

    def begin(self, step: Step) -> None:
        """Note a step; before the first of all, make the copies equal: a training may begin with another's weights."""
        self._step = step
        if not self._started and not bool(self.get_buffer("started")):
            with torch.no_grad():
                self.follow(1.0)
                self.get_buffer("started").fill_(value=True)
        self._started = True

    def end(self, momentum: float) -> None:
        """Let the copies follow with the `rising` momentum of the step that began; nothing without a forward pass."""
        if self._step is not None:
            self.follow(1.0 - rising(momentum, self._step))
            self._step = None

    @torch.no_grad()
    def follow(self, share: float) -> None:
        """Move every weight of the copies by a share of the way to what it follows."""
        for copy, model in self.pairs():
            for name, parameter in model.named_parameters():
                copy.get_buffer(name).lerp_(parameter, share)


def following(module: nn.Module) -> nn.Module:
    """Return a copy of a module whose parameters are buffers of the same names and values."""
    copy = deepcopy(module)
    for part in copy.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach().clone())
    return copy


def rising(momentum: float, step: Step) -> float:
    """Return the momentum of a step, which rises to 1 by the end of the training along half a cosine.

    Grill et al. 2020 (BYOL, arXiv 2006.07733), section 3.2: 1 - (1 - momentum) (cos(pi k / K) + 1) / 2.
    """
    return 1.0 - (1.0 - momentum) * (math.cos(math.pi * step.number / max(step.total, 1)) + 1.0) / 2.0

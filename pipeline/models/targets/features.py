"""The map of a frozen encoder as the target: what is in the photo rather than its pixels (arXiv 2003.07441)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from ...errors import ConfigError
from ...losses import mse
from ..frozen import FrozenConfig, FrozenEncoder, resnet18_map
from .base import Target, TargetBase


class FeatureTarget(TargetBase):
    """encoder: whose map, with exactly one layer. channels, size: the map's; known where the encoder is a ResNet-18.

    Every position of the map is standardised over its channels. weight: multiplies the squared error summed over the
    map, so it is 1 / (2 sigma^2) of a Gaussian decoder with the standard deviation sigma.
    """

    kind: Literal["features"] = "features"
    encoder: FrozenConfig
    channels: int | None = Field(None, ge=1)
    size: int | None = Field(None, ge=1)
    weight: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _one_known_map(self) -> FeatureTarget:
        if len(self.encoder.layers) != 1:
            raise ValueError(
                f"encoder.layers of a feature target is {list(self.encoder.layers)}; name exactly one, for example [2]"
            )
        if self.encoder.model_id is not None and (self.channels is None or self.size is None):
            raise ValueError("a feature target of a bundle needs channels and size of the bundle's map; name both")
        return self

    def frozen(self) -> FrozenConfig:
        """Return the encoder."""
        return self.encoder


class Features(Target):
    """Outputs are a map, float [B, channels, size, size], standardised at every position."""

    def __init__(self, config: FeatureTarget, image_size: int) -> None:
        super().__init__()
        channels, size = config.channels, config.size
        if channels is None or size is None:
            known = resnet18_map(config.encoder.layers[0], image_size)
            channels, size = channels or known[0], size or known[1]
        self.config = config
        self.image_size = image_size
        self.channels, self.size = channels, size
        self._frozen: tuple[FrozenEncoder, ...] = ()  # in a tuple: never a submodule, so never state or a parameter

    def loss(self, outputs: Tensor, pictures: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted squared error; part `reconstruction`. Raises ConfigError before `use_frozen`."""
        if not self._frozen:
            raise ConfigError("the feature target has no encoder yet: give model.use_frozen what load_frozen returned")
        with torch.no_grad():
            found = self._frozen[0].maps(pictures)[0].movedim(1, -1)
            target = F.layer_norm(found, found.shape[-1:]).movedim(-1, 1)
        total = self.config.weight * mse(outputs, target)
        return total, {"reconstruction": total.detach()}

    def use_frozen(self, frozen: FrozenEncoder) -> None:
        """Take the encoder. Raises ConfigError unless its map has the channels and the size that were asked for."""
        with torch.no_grad():
            found = frozen.maps(torch.zeros(1, 3, self.image_size, self.image_size))
        shape = tuple(found[0].shape[1:])
        if shape != (self.channels, self.size, self.size):
            raise ConfigError(
                f"target.channels is {self.channels} and target.size {self.size}, but layer "
                f"{self.config.encoder.layers[0]} of the encoder gives {shape[0]} channels of {shape[1]} x {shape[2]} "
                f"for photos of {self.image_size} pixels; set channels={shape[0]} size={shape[1]}"
            )
        self._frozen = (frozen,)

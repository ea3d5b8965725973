"""Frozen encoders: what a perceptual loss or a feature target looks at, and never trains."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from ..errors import ConfigError

# Of ImageNet, which torchvision's weights were trained on.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_WIDTHS = (64, 64, 128, 256, 512)


class FrozenConfig(BaseModel):
    """Exactly one of the two. weights: path or URI of torchvision ResNet-18 weights (.pth or .safetensors).

    model_id: a bundle on the same store whose encoder has feature maps. layers: which of its maps, 0 the finest; of a
    ResNet-18 0 is the stem before its pooling, at half of the picture's side, and 1 to 4 are the four stages.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    weights: str | None = None
    model_id: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    layers: tuple[int, ...] = Field(default=(0, 1), min_length=1)

    @model_validator(mode="after")
    def _one_of_two(self) -> FrozenConfig:
        if (self.weights is None) == (self.model_id is None):
            raise ValueError("name either weights (a ResNet-18 file or URI) or model_id (a bundle), not both or none")
        last = len(_WIDTHS) - 1
        if min(self.layers) < 0 or (self.weights is not None and max(self.layers) > last):
            raise ValueError(
                f"layers is {list(self.layers)}; a ResNet-18 has the maps 0 to {last}, a bundle's begin at 0 too"
            )
        return self


class FrozenEncoder(nn.Module):
    """An encoder in evaluation mode without gradients to its own weights; gradients to the pictures pass.

    Whoever uses one holds it in a tuple, so that it is no submodule: it has no place in a state, an optimiser or DDP.
    It follows the pictures to their device, and copies of its user share it.
    """

    def __init__(self, network: nn.Module, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.network = network.requires_grad_(requires_grad=False)
        self.layers = layers
        self._device: torch.device | None = None
        self.eval()

    def train(self, mode: bool = True) -> FrozenEncoder:  # noqa: FBT001, FBT002 - nn.Module's signature
        """Stay in evaluation mode, so that batch normalisation never sees the batch."""
        return super().train(mode=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenEncoder:
        return self

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """Return the chosen feature maps, float32 [B, C, h, w] each, of pictures float [B, 3, H, W] in 0..1.

        Raises ConfigError where the encoder lacks a chosen map or cannot take the pictures.
        """
        if self._device != pictures.device:
            self.to(pictures.device)
            self._device = pictures.device
        found = self._all(pictures)
        if max(self.layers) >= len(found):
            raise ConfigError(f"layers is {list(self.layers)}, but the encoder has the maps 0 to {len(found) - 1}")
        return [found[layer].float() for layer in self.layers]

    def _all(self, pictures: Tensor) -> list[Tensor]:
        raise NotImplementedError


def resnet18_map(layer: int, image_size: int) -> tuple[int, int]:
    """Return channels and side of a ResNet-18's map of square pictures: every stage halves and rounds up."""
    return _WIDTHS[layer], -(-image_size // 2 ** (layer + 1))

"""The model contract: what every representation model offers to training, encoding and evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ..errors import NotReconstructing


@dataclass(frozen=True, slots=True)
class Batch:
    """One training batch: images uint8 [B, 3, H, W] (or [views * B, 3, H, W]); condition int64 [B] or None."""

    images: Tensor
    condition: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """Where in training a forward pass happens. number counts optimiser steps from 0; total is their planned sum."""

    number: int
    total: int


@dataclass(frozen=True, slots=True)
class Losses:
    """A training loss: `total` [] is what is minimised, `parts` are its named, detached members; means over photos."""

    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Latents:
    """What an encoder says of photos: mean float [B, d]; log_var float [B, d] or None; codes int [B, h * w] or None."""

    mean: Tensor
    log_var: Tensor | None = None
    codes: Tensor | None = None


class ModelConfig(BaseModel):
    """Base of the models' configurations; `kind` tells them apart in the union of `models/__init__.py`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str


class Model(nn.Module, ABC):
    """A representation model over square RGB photos of one size.

    DDP hooks only `forward`, so the training loss is `forward`. `encode` is deterministic and scales the uint8 pixels
    itself, so that the exported encoder takes uint8 too.
    """

    views: ClassVar[int] = 1  # 2: the loader gives two augmented views of each photo
    image_size: int
    latent_dim: int
    num_latent_codes: int = 0  # h * w of `Latents.codes`; 0: the model has none
    has_log_var: bool = False

    @abstractmethod
    def forward(self, batch: Batch, step: Step) -> Losses:
        """Return the training loss of a batch."""

    @abstractmethod
    def encode(self, images: Tensor, condition: Tensor | None = None) -> Latents:
        """Return the latents of photos, uint8 [B, 3, H, W], in evaluation mode and without randomness."""

    def decode(self, latents: Latents, condition: Tensor | None = None) -> Tensor:
        """Return pictures float [B, 3, H, W] in 0..1. Raises NotReconstructing where there is no decoder."""
        raise NotReconstructing(f"{type(self).__name__} has no decoder to pixels")

    def after_step(self) -> None:
        """Run after every optimiser step, on every rank: EMA updates, restarts of dead codes."""

    def scalars(self) -> dict[str, float]:
        """Return extra measures of the training state to log (for example codebook perplexity)."""
        return {}


def to_float(images: Tensor) -> Tensor:
    """Return uint8 pixels as float32 in 0..1."""
    return images.to(torch.float32) / 255.0


def full_precision(device_type: str) -> AbstractContextManager[Any]:
    """Return a context without autocast; one that does nothing where none is on, as when an encoder is exported."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def as_dict(config: BaseModel) -> dict[str, Any]:
    """Return a config as plain JSON values."""
    return config.model_dump(mode="json")

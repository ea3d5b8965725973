"""The plain autoencoder: what a VAE's convolutions may begin with, and the model that a VAE must beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from .base import Batch, Latents, Losses, Model, Step
from .bottleneck import Bottleneck, BottleneckConfig, still


class AutoencoderConfig(BottleneckConfig):
    """dropout: share of the encoder's last features that training sets to zero. See BottleneckConfig for the rest."""

    kind: Literal["autoencoder"] = "autoencoder"
    dropout: float = Field(0.25, ge=0, lt=1)


class Autoencoder(Bottleneck):
    """Encoder, dropout, latents without noise, decoder; the loss is the target's."""

    def __init__(self, config: AutoencoderConfig, image_size: int, held: Sequence[Model] = ()) -> None:
        super().__init__(config, image_size, held, heads=1)
        self.config = config

    def forward(self, batch: Batch, step: Step) -> Losses:
        """Return the reconstruction, a mean over photos; in training mode with dropout."""
        inputs = self.front.inputs(batch)
        features = F.dropout(self._features(inputs), self.config.dropout, self.training)
        error, parts = self._loss(self._outputs(self._heads(features, None), None), batch, inputs)
        return Losses(error, parts)

    def _encoded(self, inputs: Tensor, condition: Tensor | None) -> Latents:
        with still(self.encoder):
            features = self._features(inputs)
        return Latents(self._heads(features, None))

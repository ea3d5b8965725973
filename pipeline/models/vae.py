"""The variational autoencoder (Kingma and Welling 2013, arXiv 1312.6114), the KL weighted by beta."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from .base import Model
from .gaussian import GaussianConfig, GaussianModel


class VAEConfig(GaussianConfig):
    """See GaussianConfig and BottleneckConfig for the fields."""

    kind: Literal["vae"] = "vae"


class VAE(GaussianModel):
    """Encoder, Gaussian latents, decoder."""

    def __init__(self, config: VAEConfig, image_size: int, held: Sequence[Model] = ()) -> None:
        super().__init__(config, image_size, held)
        self.config = config

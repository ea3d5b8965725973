"""The variational autoencoder (Kingma and Welling 2013, arXiv 1312.6114), the KL weighted by beta."""

from __future__ import annotations

from typing import Literal

from .gaussian import GaussianConfig, GaussianModel


class VAEConfig(GaussianConfig):
    """See GaussianConfig and BottleneckConfig for the fields."""

    kind: Literal["vae"] = "vae"


class VAE(GaussianModel):
    """Encoder, Gaussian latents, decoder."""

    def __init__(self, config: VAEConfig, image_size: int) -> None:
        super().__init__(config, image_size)
        self.config = config

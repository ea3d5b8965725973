"""The variational autoencoder (Kingma and Welling 2013, arXiv 1312.6114), convolutional, the KL weighted by beta."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..losses import Reconstruction, kl_to_standard_normal, reconstruction_loss, reparameterise
from .backbones import ConvDecoder, ConvEncoder, initialise
from .base import Batch, Latents, Losses, Model, ModelConfig, Step, to_float


class VAEConfig(ModelConfig):
    """latent_dim: numbers a photo becomes. channels: width of each stage, every stage halves the picture's side.

    beta: weight of the KL in nats (Higgins et al. 2017). reconstruction: `bce` or `mse`, both summed over a picture.
    log_var_limit: log-variances are clamped to [-limit, limit].
    """

    kind: Literal["vae"] = "vae"
    latent_dim: int = Field(32, ge=1)
    channels: tuple[int, ...] = Field((16, 32, 64), min_length=1)
    beta: float = Field(1.0, ge=0, allow_inf_nan=False)
    reconstruction: Reconstruction = "bce"
    log_var_limit: float = Field(8.0, gt=0, allow_inf_nan=False)


class VAE(Model):
    """q(z|x) = N(mean, exp(log_var)), p(z) = N(0, I), p(x|z) by `reconstruction`; the loss is -ELBO at beta 1."""

    has_log_var = True

    def __init__(self, config: VAEConfig, image_size: int) -> None:
        super().__init__()
        self.config = config
        self.image_size = image_size
        self.latent_dim = config.latent_dim
        self.encoder = ConvEncoder(image_size, config.channels)
        self.decoder = ConvDecoder(image_size, config.channels)
        self.map_shape = (config.channels[-1], self.encoder.grid, self.encoder.grid)
        cells = config.channels[-1] * self.encoder.grid**2
        self.to_latents = nn.Linear(cells, 2 * config.latent_dim)
        self.from_latents = nn.Sequential(nn.Linear(config.latent_dim, cells), nn.SiLU())
        initialise(self)
        with torch.no_grad():  # q(z|x) starts with variance 1, so that the first KL is small and no exp is large
            self.to_latents.weight[config.latent_dim :].zero_()

    def forward(self, batch: Batch, step: Step) -> Losses:
        """Return reconstruction + beta * KL; parts `reconstruction` and `kl` (nats), both means over photos."""
        pictures = to_float(batch.images)
        mean, log_var = self._gaussian(pictures)
        logits = self._logits(reparameterise(mean, log_var))
        error = reconstruction_loss(self.config.reconstruction, logits, pictures)
        kl = kl_to_standard_normal(mean, log_var)
        total = error + self.config.beta * kl
        return Losses(total, {"reconstruction": error.detach(), "kl": kl.detach()})

    def encode(self, images: Tensor, condition: Tensor | None = None) -> Latents:
        """Return mean and log_var, float32 [B, latent_dim], of photos, uint8 [B, 3, H, W]."""
        mean, log_var = self._gaussian(to_float(images))
        return Latents(mean, log_var)

    def decode(self, latents: Latents, condition: Tensor | None = None) -> Tensor:
        """Return the pictures of `latents.mean`, float [B, 3, H, W] in 0..1."""
        return torch.sigmoid(self._logits(latents.mean))

    def _gaussian(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and clamped log_var of q(z|x), float32 [B, d] each."""
        mean, log_var = self.to_latents(self.encoder(pictures).flatten(1)).float().chunk(2, dim=1)
        limit = self.config.log_var_limit
        return mean, log_var.clamp(-limit, limit)

    def _logits(self, z: Tensor) -> Tensor:
        logits: Tensor = self.decoder(self.from_latents(z).unflatten(1, self.map_shape))
        return logits

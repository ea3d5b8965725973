"""The vector-quantised autoencoder (van den Oord et al. 2017, arXiv 1711.00937), a grid of codes per photo."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..losses import Reconstruction, commitment, reconstruction_loss
from .backbones import ConvDecoder, ConvEncoder, initialise
from .base import Batch, Latents, Losses, Model, ModelConfig, Step, full_precision, to_float
from .quantizers import EMAQuantizer, Quantised


class VQVAEConfig(ModelConfig):
    """num_codes: rows of the codebook. code_dim: their length. channels: width of each stage, every stage halves the
    picture's side, so three stages turn 64 pixels into 8 x 8 codes.

    latent_cells: `Latents.mean` is the map of codes averaged to at most this many cells a side, latent_cells^2 *
    code_dim numbers. commitment_weight: beta of the paper. decay, restart_threshold: see EMAQuantizer. reconstruction:
    `bce` or `mse`, both summed over a picture.
    """

    kind: Literal["vqvae"] = "vqvae"
    num_codes: int = Field(256, ge=2)
    code_dim: int = Field(16, ge=1)
    channels: tuple[int, ...] = Field((16, 32, 64), min_length=1)
    latent_cells: int = Field(4, ge=1)
    commitment_weight: float = Field(0.25, ge=0, allow_inf_nan=False)
    decay: float = Field(0.99, ge=0, lt=1)
    restart_threshold: float = Field(0.1, ge=0, lt=1)
    reconstruction: Reconstruction = "mse"


class VQVAE(Model):
    """Encoder, nearest codes, decoder; the codebook follows by moving averages in `after_step`.

    What is compared between photos (`Latents.mean`) keeps the layout: the quantised map [code_dim, g, g], averaged to
    p x p cells with p = min(g, latent_cells), flattened channel first. The full map would cost an index 16 times the
    memory; one average over the photo would forget where things are.
    """

    def __init__(self, config: VQVAEConfig, image_size: int) -> None:
        super().__init__()
        self.config = config
        self.image_size = image_size
        self.encoder = ConvEncoder(image_size, config.channels)
        self.decoder = ConvDecoder(image_size, config.channels)
        self.grid = self.encoder.grid
        width = config.channels[-1]
        self.to_vectors = nn.Conv2d(width, config.code_dim, 1)
        self.from_vectors = nn.Sequential(nn.Conv2d(config.code_dim, width, 3, padding=1), nn.SiLU())
        initialise(self)
        self.quantizer = EMAQuantizer(
            config.num_codes, config.code_dim, decay=config.decay, restart_threshold=config.restart_threshold
        )
        cells = min(self.grid, config.latent_cells)
        self.latent_dim = cells * cells * config.code_dim
        self.num_latent_codes = self.grid * self.grid
        self.pooling: Tensor
        self.register_buffer("pooling", pooling_matrix(self.grid, cells), persistent=False)

    def forward(self, batch: Batch, step: Step) -> Losses:
        """Return reconstruction + beta * commitment; parts `reconstruction` and `commitment`, means over photos."""
        pictures = to_float(batch.images)
        vectors = self._vectors(pictures)
        quantised: Quantised = self.quantizer(vectors)
        logits = self._logits(quantised.passed)
        error = reconstruction_loss(self.config.reconstruction, logits, pictures)
        held = commitment(vectors, quantised.values)
        total = error + self.config.commitment_weight * held
        return Losses(total, {"reconstruction": error.detach(), "commitment": held.detach()})

    def encode(self, images: Tensor, condition: Tensor | None = None) -> Latents:
        """Return mean, float32 [B, latent_dim], and codes, int64 [B, g * g], of photos, uint8 [B, 3, H, W]."""
        vectors = self._vectors(to_float(images))
        codes = self.quantizer.nearest(vectors.flatten(0, 2)).view(-1, self.num_latent_codes)
        values = self._map(codes).permute(0, 3, 1, 2)
        with full_precision(values.device.type):
            cells = self.pooling @ values @ self.pooling.T  # [B, code_dim, p, p]
        return Latents(cells.flatten(1), codes=codes)

    def decode(self, latents: Latents, condition: Tensor | None = None) -> Tensor:
        """Return the pictures of `latents.codes`, float [B, 3, H, W] in 0..1; the mean alone holds too little.

        Raises ValueError when the latents have no codes.
        """
        if latents.codes is None:
            raise ValueError(
                "a VQ-VAE decodes codes, and these latents have none; pass the latents that encode returned"
            )
        return torch.sigmoid(self._logits(self._map(latents.codes)))

    def after_step(self) -> None:
        """Move the codebook; every rank must call it."""
        self.quantizer.update()

    def scalars(self) -> dict[str, float]:
        """Return the codebook's measures since the last call, over all ranks; see EMAQuantizer.scalars."""
        return self.quantizer.scalars()

    def _map(self, codes: Tensor) -> Tensor:
        """Return the codebook's rows for codes [B, g * g], float32 [B, g, g, code_dim]."""
        return self.quantizer.lookup(codes).view(-1, self.grid, self.grid, self.config.code_dim)

    def _vectors(self, pictures: Tensor) -> Tensor:
        """Return what is quantised, float32 [B, g, g, code_dim]."""
        vectors: Tensor = self.to_vectors(self.encoder(pictures))
        return vectors.float().permute(0, 2, 3, 1)

    def _logits(self, values: Tensor) -> Tensor:
        """Return the logits of pictures of a map [B, g, g, code_dim]."""
        logits: Tensor = self.decoder(self.from_vectors(values.permute(0, 3, 1, 2)))
        return logits


def pooling_matrix(grid: int, cells: int) -> Tensor:
    """Return P, float32 [cells, grid]: P @ map @ P.T is the map averaged to cells x cells, as adaptive pooling does."""
    matrix = torch.zeros(cells, grid)
    for cell in range(cells):
        start, end = cell * grid // cells, -(-(cell + 1) * grid // cells)
        matrix[cell, start:end] = 1.0 / (end - start)
    return matrix

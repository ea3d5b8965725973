"""A residual-quantised autoencoder of vectors (Rajput et al. 2023, "TIGER", arXiv 2305.05065, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..losses.precision import full_precision, widened
from .base import Batch, Latents, Losses, Model, Step
from .quantizers import CodebookQuantizer, EMAConfig, build_quantizer
from .quantizers.paths import straight_through


@dataclass(frozen=True, slots=True)
class RQVAESettings:
    """levels: codes of each level; hidden: width of the encoder's layers, the decoder's in reverse; code_dim: numbers
    of a code; commitment_weight: the paper's beta; restart_threshold: see FollowingQuantizer."""

    levels: tuple[int, ...]
    hidden: tuple[int, ...]
    code_dim: int
    commitment_weight: float = 0.25
    restart_threshold: float = 0.1


class RQVAE(Model):
    """Encoder, one codebook after the other on what those before left over, decoder of the sum of their codes.

    Vectors are read as (vector - shift) * scale, which `measured_by` sets. The codebooks follow by moving averages and
    give dead codes a new beginning, as those of the VQ models; the paper's are moved by their gradient.
    """

    reads: Literal["photos", "codes", "features"] = "features"
    shift: Tensor
    scale: Tensor

    def __init__(self, settings: RQVAESettings, dim: int) -> None:
        super().__init__()
        self.settings = settings
        self.num_features, self.image_size = dim, 0
        self.latent_dim, self.num_latent_codes = settings.code_dim, len(settings.levels)
        self.register_buffer("shift", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        widths = [dim, *settings.hidden, settings.code_dim]
        self.encoder = perceptron(widths)
        self.decoder = perceptron(widths[::-1])
        built = [
            build_quantizer(
                EMAConfig(
                    num_codes=size,
                    code_dim=settings.code_dim,
                    commitment_weight=settings.commitment_weight,
                    restart_threshold=settings.restart_threshold,
                )
            )
            for size in settings.levels
        ]
        self.quantizers = nn.ModuleList(built)

    def measured_by(self, vectors: Tensor) -> None:
        """Set shift and scale by vectors [n, d]: their mean, and one factor for all numbers, so that distances keep."""
        centred = vectors.double() - vectors.double().mean(dim=0)
        spread = centred.square().mean().sqrt()
        self.shift.copy_(vectors.double().mean(dim=0))
        self.scale.fill_(1.0 / max(float(spread), 1e-12))

    def forward(self, batch: Batch, step: Step) -> Losses:
        """Return the squared error of the decoder and the levels' commitments, summed over a vector's numbers, means
        over vectors. Raises InputError for a batch without features."""
        inputs = self._inputs(batch)
        points: Tensor = self.encoder(inputs)
        left, values, commitments = widened(points), torch.zeros_like(widened(points)), points.new_zeros(())
        for level in self.levels():
            quantised = level(left)
            left, values = left - quantised.values, values + quantised.values
            commitments = commitments + quantised.loss
        made = self.decoder(straight_through(widened(points), values))
        with full_precision(inputs.device.type):
            error = self.error(widened(made), inputs)
        return Losses(error + commitments, {"error": error.detach(), "commitment": commitments.detach()})

    def error(self, made: Tensor, inputs: Tensor) -> Tensor:
        """Return the squared distance of what the decoder made to the inputs, [B, d], a mean over vectors, []."""
        return F.mse_loss(made, inputs, reduction="sum") / len(inputs)

    def encode(self, images: Tensor, condition: Tensor | None = None) -> Latents:
        """Return latents of no numbers, float [B, 0]: this model knows vectors, not photos."""
        return Latents(torch.zeros(len(images), 0, device=images.device))

    def encode_batch(self, batch: Batch) -> Latents:
        """Return the sum of the codes' vectors, float [B, code_dim], and codes int64 [B, levels], of features."""
        left = widened(self.encoder(self._inputs(batch)))
        points, codes = left, []
        for level in self.levels():
            codes.append(level.nearest(left))
            left = left - level.lookup(codes[-1])
        return Latents(points - left, codes=torch.stack(codes, dim=1))

    def code_levels(self, codes: Tensor) -> Mapping[str, Tensor]:
        """Return the codes by level, of codes int [B, levels]."""
        return {f"level_{number + 1}": codes[:, number : number + 1] for number in range(self.num_latent_codes)}

    def levels(self) -> Sequence[CodebookQuantizer]:
        """Return the levels' quantizers."""
        return [level for level in self.quantizers if isinstance(level, CodebookQuantizer)]

    def after_step(self) -> None:
        """Move the codebooks; every rank must call it."""
        for level in self.levels():
            level.update()

    def scalars(self) -> dict[str, float]:
        """Return the codebooks' measures by level since the last call, over all ranks; see CodebookMeasures.collect."""
        return {
            f"level_{number}/{name}": value
            for number, level in enumerate(self.levels(), start=1)
            for name, value in level.scalars().items()
        }

    def _inputs(self, batch: Batch) -> Tensor:
        if batch.features is None:
            raise InputError("an RQ-VAE reads vectors and this batch has none; give them as its features")
        return (batch.features - self.shift) * self.scale


def perceptron(widths: Sequence[int]) -> nn.Sequential:
    """Return linear layers of these widths with ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])

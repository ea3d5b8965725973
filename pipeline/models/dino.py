"""DINO on a ResNet (Caron et al. 2021, arXiv 2104.14294): a view's shares of prototypes as a teacher sees the other.

Nothing is told apart from other photos. That all photos get the same shares is kept off by balancing the teacher's
over the batch, or by a centre that follows them; that all shares are even, by the teacher's low temperature. Two views
of one size, without small crops.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ..losses import balanced_shares, centred_shares, distillation
from ..losses.collectives import rows_per_rank, sum_over_ranks
from .base import Batch, Losses, Step
from .following import Following, following
from .two_views import TwoViewsConfig, check_views


class DINOConfig(TwoViewsConfig):
    """prototypes: how many a photo has shares of. centring: `balanced` (Sinkhorn and Knopp, as in DINOv2), which stays
    apart from even shares in small batches too, or `mean`, the paper's, which wants a momentum near 1.
    centre_momentum: share of the mean that stays at a step. momentum: share of the teacher that stays at the first
    step; it rises to 1 along half a cosine. temperature, teacher_temperature: the lower, the more the nearest prototype
    counts; the teacher's is the lower one.

    norm: no batch statistics, as in MoCo. See TwoViewsConfig for the other fields.
    """

    kind: Literal["dino"] = "dino"
    norm: Literal["group", "none"] = "group"
    temperature: float = Field(0.1, gt=0)
    teacher_temperature: float = Field(0.02, gt=0)
    momentum: float = Field(0.99, ge=0, lt=1)
    centring: Literal["balanced", "mean"] = "balanced"
    centre_momentum: float = Field(0.9, ge=0, lt=1)
    prototypes: int = Field(1024, ge=2)


class DINO(Following):
    """Backbone, projector and prototypes, and their copies, the teacher, which follow without gradient."""

    centre: Tensor

    def __init__(self, config: DINOConfig, image_size: int) -> None:
        super().__init__(config, image_size)
        self.config = config
        self.prototypes = Prototypes(config.projector[1], config.prototypes)
        self.key_prototypes = following(self.prototypes)
        self.register_buffer("centre", torch.zeros(config.prototypes))
        self._mean: Tensor | None = None  # of the teacher's logits over all ranks' photos, until the step ends

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return the copies, each with what it follows."""
        return [*super().pairs(), (self.key_prototypes, self.prototypes)]

    def forward(self, batch: Batch, step: Step) -> Losses:
        """Return the cross entropy of two views of each photo, uint8 [2 B, 3, H, W], to the teacher's other; a mean.

        In evaluation mode shares are balanced among the rank's own photos. Raises InputError.
        """
        check_views(batch.images)
        if self.training:
            self.begin(step)
        rows = self._projected(batch.images, self.network, self.projector)
        if self.training:
            self.spread.note(rows)
        with torch.no_grad():
            keys = self._projected(batch.images, self.key_network, self.key_projector)
            wanted = self._wanted(self.key_prototypes(keys))
        halves = zip(self.prototypes(rows).chunk(2), reversed(wanted.chunk(2)), strict=True)
        one, other = (distillation(half, shares, self.config.temperature) for half, shares in halves)
        return Losses((one + other) / 2.0)

    def after_step(self) -> None:
        """Let the teacher follow and its centre move; nothing without a forward pass."""
        self.end(self.config.momentum)
        if self._mean is not None:
            self.centre.lerp_(self._mean, 1.0 - self.config.centre_momentum)
        self._mean = None

    def _wanted(self, logits: Tensor) -> Tensor:
        """Return the teacher's shares [2 B, K] of its logits [2 B, K], and note what the centre has to follow."""
        temperature = self.config.teacher_temperature
        if self.config.centring == "balanced":
            return balanced_shares(logits, temperature, over_ranks=self.training)
        if self.training:
            self._mean = sum_over_ranks(logits.sum(dim=0)) / rows_per_rank(logits).sum()
        return centred_shares(logits, self.centre, temperature)


class Prototypes(nn.Module):
    """Rows [B, d] of length 1 to their cosines with prototypes, [B, K]: weight normalisation with length 1."""

    def __init__(self, width: int, number: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(number, width))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the cosines."""
        return rows @ F.normalize(self.weight, dim=1).T

"""MoCo v3 (Chen et al. 2021, arXiv 2104.02057): no queue; a predictor, and the batch's own keys to be told from."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..losses import info_nce_in_batch
from .backbones import initialise
from .base import Batch, Losses, Step
from .following import Following
from .two_views import TwoViewsConfig, check_views


class MoCoV3Config(TwoViewsConfig):
    """momentum: share of the following network that stays at the first step; it rises to 1 along half a cosine.

    predictor: width of the hidden layer between the projections and what is compared with keys. The more photos a batch
    has, over all workers, the more there is to learn. norm: no batch statistics, as in MoCo. See TwoViewsConfig for the
    other fields.
    """

    kind: Literal["moco_v3"] = "moco_v3"
    norm: Literal["group", "none"] = "group"
    temperature: float = Field(0.2, gt=0)
    momentum: float = Field(0.99, ge=0, lt=1)
    predictor: int = Field(128, ge=1)


class MoCoV3(Following):
    """Backbone, projector and predictor, and copies of the first two that follow without gradient."""

    def __init__(self, config: MoCoV3Config, image_size: int) -> None:
        super().__init__(config, image_size)
        self.config = config
        last = config.projector[1]
        self.predictor = nn.Sequential(nn.Linear(last, config.predictor), nn.ReLU(), nn.Linear(config.predictor, last))
        initialise(self.predictor)

    def forward(self, batch: Batch, step: Step) -> Losses:
        """Return InfoNCE of two views of each photo, uint8 [2 B, 3, H, W], either being the other's key; a sum.

        In evaluation mode among the rank's own photos. Raises InputError.
        """
        check_views(batch.images)
        if self.training:
            self.begin(step)
        rows = self._projected(batch.images, self.network, self.projector)
        if self.training:
            self.spread.note(rows)
        queries: Tensor = self.predictor(rows)
        with torch.no_grad():
            keys = self._projected(batch.images, self.key_network, self.key_projector)
        halves = zip(queries.chunk(2), reversed(keys.chunk(2)), strict=True)
        one, other = (
            info_nce_in_batch(half, key, self.config.temperature, over_ranks=self.training) for half, key in halves
        )
        return Losses(one + other)

    def after_step(self) -> None:
        """Let the copies follow; nothing without a forward pass."""
        self.end(self.config.momentum)

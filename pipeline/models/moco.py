"""MoCo v2 with a symmetric loss (He et al. 2019, arXiv 1911.05722; Chen et al. 2020, arXiv 2003.04297).

Each view has to find its other view, as a slowly following copy of the network sees it, among the keys of earlier
batches: there is as much to tell apart from as the queue is long, whatever the batch.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..errors import ConfigError
from ..losses import info_nce
from ..losses.collectives import gather_rows, rank_and_world
from .base import Batch, Losses, Step
from .following import Following
from .two_views import TwoViewsConfig, check_views


class MoCoConfig(TwoViewsConfig):
    """momentum: share of the following network that stays at a step; at 0.9 and less all photos may become one, as keys
    that follow too fast differ more by their age than by their photo. queue: how many keys a view is told from.

    norm: no batch statistics, which would betray the views that share a batch. See TwoViewsConfig for the other fields.
    """

    kind: Literal["moco"] = "moco"
    norm: Literal["group", "none"] = "group"
    temperature: float = Field(0.1, gt=0)
    momentum: float = Field(0.99, ge=0, lt=1)
    queue: int = Field(4096, ge=2)


class MoCo(Following):
    """Backbone and projector, their copies that follow without gradient, and the queue, the same on every rank.

    The queue begins empty, not with random
    rows as elsewhere: to get away from those all photos move the same way, which delays telling them apart.
    """

    queue: Tensor
    filled: Tensor
    place: Tensor

    def __init__(self, config: MoCoConfig, image_size: int) -> None:
        super().__init__(config, image_size)
        self.config = config
        self.register_buffer("queue", torch.zeros(config.queue, config.projector[1]))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))  # places with a key, the first ones
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))  # of the oldest key
        self._new_keys: Tensor | None = None  # of all ranks, from the forward pass to the end of the step

    def forward(self, batch: Batch, step: Step) -> Losses:
        """Return InfoNCE of two views of each photo, uint8 [2 B, 3, H, W], either being the other's key; a mean.

        Raises InputError, and ConfigError where one step's keys do not fit the queue.
        """
        check_views(batch.images)
        if self.training:
            self.begin(step)
        queries = self._projected(batch.images, self.network, self.projector)
        with torch.no_grad():
            keys = self._projected(batch.images, self.key_network, self.key_projector)
            if self.training:
                self.spread.note(queries)
                self._new_keys = self._of_all_ranks(keys)
        halves = zip(queries.chunk(2), reversed(keys.chunk(2)), strict=True)
        temperature = self.config.temperature
        one, other = (info_nce(half, key, self.queue, temperature, filled=self.filled) for half, key in halves)
        return Losses((one + other) / 2.0)

    @torch.no_grad()
    def after_step(self) -> None:
        """Let the copies follow and the step's keys take the place of the oldest; nothing without a forward pass."""
        if self._new_keys is None:
            return
        self.follow(1.0 - self.config.momentum)
        places = (self.place + torch.arange(len(self._new_keys), device=self.place.device)) % len(self.queue)
        self.queue.index_copy_(0, places, self._new_keys)
        self.filled.copy_((self.filled + len(self._new_keys)).clamp_max(len(self.queue)))
        self.place.copy_((self.place + len(self._new_keys)) % len(self.queue))
        self._new_keys = None

    def _of_all_ranks(self, keys: Tensor) -> Tensor:
        """Return every rank's keys, those of first views in front: the order that one rank with all photos has."""
        gathered = gather_rows(keys)
        if len(gathered) > len(self.queue):
            raise ConfigError(
                f"a step brings {len(gathered)} keys, two of each photo, but model.queue is {len(self.queue)}; raise "
                "it, best to many times as much, or lower train.batch_size"
            )
        world = rank_and_world()[1]
        return gathered.view(world, 2, -1, keys.shape[1]).transpose(0, 1).flatten(0, 2)

"""Weights of a loss's parts by their running means: what is large counts less (`do_running_mean` of seed 001)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .collectives import sum_over_ranks


class RunningMean(nn.Module):
    """Keeps moving averages of named parts and weighs each by 1 - its share of their sum.

    Two parts so come to weigh the same whatever their scale. The averages move in `update`, once after every optimiser
    step and on every rank, by the mean over ranks of what the step's forward passes noted; so the weights of a step
    come from earlier steps and are equal on all ranks. The notes are no buffers: DDP would overwrite them with rank
    0's. decay: share of an average that stays at a step. Raises ConfigError for fewer than two names.
    """

    averages: Tensor

    def __init__(self, names: Sequence[str], *, decay: float = 0.9) -> None:
        super().__init__()
        if len(set(names)) < 2:
            raise ConfigError(f"parts to weigh against each other are {list(names)}; name at least two")
        self.names = tuple(names)
        self.decay = decay
        self.register_buffer("averages", torch.zeros(len(self.names), dtype=torch.float64))
        self._noted: Tensor | None = None  # float64 [names + 1]: sums of this rank's notes, and their number

    def weights(self) -> dict[str, Tensor]:
        """Return the weight [] of every part, float32, detached; they sum to 1 and are equal before the first step."""
        total = self.averages.sum()
        equal = torch.full_like(self.averages, 1.0 / len(self.names))
        shares = torch.where(total > 0, self.averages / total.clamp_min(torch.finfo(torch.float64).tiny), equal)
        weights = (1.0 - shares) / (len(self.names) - 1)
        return dict(zip(self.names, weights.float().unbind(), strict=True))

    @torch.no_grad()
    def note(self, parts: Mapping[str, Tensor]) -> None:
        """Take note of a forward pass's parts, means over the rank's photos; in evaluation mode nothing is noted."""
        if not self.training:
            return
        found = torch.stack([parts[name].detach().double().abs() for name in self.names])
        found = torch.cat([found, found.new_ones(1)])
        self._noted = found if self._noted is None else self._noted + found

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages by what all ranks noted since the last call; every rank must call it."""
        noted = self.averages.new_zeros(len(self.names) + 1) if self._noted is None else self._noted
        self._noted = None
        noted = sum_over_ranks(noted.clone())
        # Without a note anywhere the averages stay; chosen on the device, which need not wait for the answer.
        moved = self.decay * self.averages + (1.0 - self.decay) * noted[:-1] / noted[-1].clamp_min(1.0)
        self.averages.copy_(torch.where(noted[-1] > 0, moved, self.averages))

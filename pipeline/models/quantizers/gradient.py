"""A codebook that the optimiser moves (van den Oord et al. 2017, arXiv 1711.00937, equation 3)."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn

from ...losses.precision import widened
from .following import FollowingOptions, FollowingQuantizer


class GradientQuantizer(FollowingQuantizer):
    """Learns its codes from the codebook term of the loss; beta weighs the commitment term only.

    The codebook is a parameter: DDP averages its gradient over the ranks, which is that of the mean over all photos.
    A code that nothing chooses has no gradient, so average counts, with `decay`, tell which codes begin anew. Options:
    see FollowingQuantizer and CodebookQuantizer.
    """

    def __init__(self, num_codes: int, code_dim: int, **options: Unpack[FollowingOptions]) -> None:
        super().__init__(num_codes, code_dim, **options)
        self.codebook = nn.Parameter(torch.randn(num_codes, code_dim))

    def codebook_rows(self) -> Tensor:
        """Return the codes, float32 [num_codes, code_dim], with a gradient to the codebook."""
        return self.scaled(widened(self.codebook))

    def statistics(self, rows: Tensor, codes: Tensor) -> Tensor:
        """Return per code how many rows chose it, [K, 1]."""
        return rows.new_zeros(self.num_codes, 1).index_add_(0, codes, rows.new_ones(len(rows), 1))

    def move(self, statistics: Tensor) -> None:
        """Move the average counts by a step's counts, [K, 1]; the codes are the optimiser's."""
        self.code_count.lerp_(statistics[:, 0], 1.0 - self.decay)

    def place_where(self, which: Tensor, rows: Tensor, count: Tensor) -> None:
        """Do what `place` does with a row for every code, [K, d], of which those of `which` are taken."""
        self.codebook.copy_(torch.where(which.unsqueeze(1), rows, self.codebook))
        self.code_count.copy_(torch.where(which, count, self.code_count))

    def place(self, which: Tensor, rows: Tensor, count: Tensor) -> None:
        """Let codes, bool [K], begin anew as rows [number, d]; the optimiser's moments of a dead code have faded."""
        self.codebook[which] = rows
        self.code_count[which] = count

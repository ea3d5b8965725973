"""A codebook that follows its vectors by moving averages (van den Oord et al. 2017, arXiv 1711.00937, appendix A.1)."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from ...losses import commitment
from .following import FollowingOptions, FollowingQuantizer


class EMAQuantizer(FollowingQuantizer):
    """Moves the rows of the codebook to the mean of the vectors that chose them; the optimiser knows nothing of it.

    epsilon: Laplace smoothing of the counts. The others: see FollowingQuantizer and CodebookQuantizer. The codebook is
    a buffer; the loss is the commitment alone.
    """

    code_sum: Tensor

    def __init__(
        self, num_codes: int, code_dim: int, *, epsilon: float = 1e-5, **options: Unpack[FollowingOptions]
    ) -> None:
        super().__init__(num_codes, code_dim, **options)
        self.epsilon = epsilon
        start = self.scaled(torch.randn(num_codes, code_dim))
        self.register_buffer("codebook", start)
        # Counts start at one and sums at the codes: a count of zero with any sum would fling the codes far away.
        self.register_buffer("code_sum", start.clone())

    def codebook_rows(self) -> Tensor:
        """Return the codebook, float32 [num_codes, code_dim], without gradient."""
        return self.codebook

    def loss(self, vectors: Tensor, chosen: Tensor) -> Tensor:
        """Return beta * commitment, []; both tensors [B, ..., d]."""
        return self.commitment_weight * commitment(vectors, chosen)

    def statistics(self, rows: Tensor, codes: Tensor) -> Tensor:
        """Return per code how many rows chose it, and their sum; [K, 1 + d]."""
        counted = torch.cat([rows.new_ones(len(rows), 1), rows], dim=1)
        return rows.new_zeros(self.num_codes, 1 + self.code_dim).index_add_(0, codes, counted)

    def move(self, statistics: Tensor) -> None:
        """Move counts and sums by a step's statistics, [K, 1 + d], and the codes to the means they give."""
        self.code_count.lerp_(statistics[:, 0], 1.0 - self.decay)
        self.code_sum.lerp_(statistics[:, 1:], 1.0 - self.decay)
        mass = self.code_count.sum()
        smoothed = (self.code_count + self.epsilon) / (mass + self.num_codes * self.epsilon) * mass
        self.codebook.copy_(self.scaled(self.code_sum / smoothed.unsqueeze(1)))

    def place_where(self, which: Tensor, rows: Tensor, count: Tensor) -> None:
        """Do what `place` does with a row for every code, [K, d], of which those of `which` are taken."""
        wide = which.unsqueeze(1)
        self.codebook.copy_(torch.where(wide, rows, self.codebook))
        self.code_count.copy_(torch.where(which, count, self.code_count))
        self.code_sum.copy_(torch.where(wide, rows * count, self.code_sum))

    def place(self, which: Tensor, rows: Tensor, count: Tensor) -> None:
        """Let codes, bool [K], begin anew as rows [number, d]: code, count and sum say the same."""
        self.codebook[which] = rows
        self.code_count[which] = count
        self.code_sum[which] = rows * count

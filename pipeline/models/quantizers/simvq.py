"""SimVQ (Zhu et al. 2024, arXiv 2411.02038): a fixed basis under one learned linear map is the codebook."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base import full_precision
from .base import CodebookQuantizer, GradientPath


class SimVQQuantizer(CodebookQuantizer):
    """Moves all codes at once, since every chosen code's gradient goes to the one map; so none is left behind to die.

    The basis, [num_codes, code_dim], is drawn once and stays. Only the map has a gradient, which DDP averages over the
    ranks: the codebook is the same on each without any sum of our own. Options: see CodebookQuantizer.
    """

    basis: Tensor

    def __init__(
        self,
        num_codes: int,
        code_dim: int,
        *,
        commitment_weight: float = 0.25,
        normalise: bool = False,
        gradient: GradientPath = "straight_through",
    ) -> None:
        super().__init__(
            num_codes, code_dim, commitment_weight=commitment_weight, normalise=normalise, gradient=gradient
        )
        self.register_buffer("basis", torch.randn(num_codes, code_dim) * code_dim**-0.5)
        self.linear = nn.Linear(code_dim, code_dim, bias=False)

    def codebook_rows(self) -> Tensor:
        """Return the codes, float32 [num_codes, code_dim], with a gradient to the map."""
        with full_precision(self.basis.device.type):
            return self.scaled(self.linear(self.basis))

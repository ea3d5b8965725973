"""Finite scalar quantisation (Mentzer et al. 2023, arXiv 2309.15505): no codebook, every number is rounded."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import ConfigError
from ...losses.precision import widened
from ..base import full_precision
from ..compiling import uncompiled
from .base import Quantised, Quantizer
from .paths import straight_through

FEWEST, MOST = 3, 256  # levels: two begin saturated, see `bounded`; many reach beyond the last one by EDGE
MOST_CODES = 2**20
EDGE = 1e-3  # widens the range a little, so that the outermost levels can be reached


class FSQQuantizer(Quantizer):
    """Bounds each of len(levels) numbers and rounds it to one of its levels; a code is the levels in mixed radix.

    Nothing is learned here, nothing collapses, no rank has to hear of another, and the loss is 0. Values lie in -1..1:
    (level - L // 2) / (L // 2). The gradient passes the rounding unchanged. Raises ConfigError for levels outside
    3..256 and for more than 2^20 codes.
    """

    shift: Tensor
    reach: Tensor
    offset: Tensor
    width: Tensor
    levels: Tensor
    basis: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        if not levels or not all(FEWEST <= level <= MOST for level in levels):
            raise ConfigError(
                f"quantizer.levels is {list(levels)}; name one or more of {FEWEST} to {MOST}, best of 5 and more, for "
                "example [8, 6, 5]"
            )
        if math.prod(levels) > MOST_CODES:
            raise ConfigError(
                f"quantizer.levels is {list(levels)}, which makes {math.prod(levels)} codes; at most {MOST_CODES} are "
                "counted, name fewer or smaller levels"
            )
        super().__init__(math.prod(levels), len(levels))
        number = torch.tensor(levels, dtype=torch.int64)
        reach = (number - 1) * (1 + EDGE) / 2
        offset = torch.where(number % 2 == 0, 0.5, 0.0)
        basis = torch.cumprod(torch.cat([torch.ones_like(number[:1]), number[:-1]]), dim=0)
        constants = {"shift": torch.atanh(offset / reach), "reach": reach, "offset": offset, "width": number // 2}
        for name, value in {**constants, "levels": number, "basis": basis}.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, vectors: Tensor) -> Quantised:
        """Return the nearest level of every number of vectors, [B, ..., code_dim]."""
        with full_precision(vectors.device.type):
            bounded = self.bounded(widened(vectors))
            rounded = bounded.detach().round()
            values = rounded / self.width
            codes = self._number(rounded)
            if self.training:
                self._take_notes(bounded, codes, values)
            passed = straight_through(bounded, rounded) / self.width
            return Quantised(values, codes, passed, values.new_zeros(()))

    def nearest(self, rows: Tensor) -> Tensor:
        """Return the code of every row, float [N, code_dim] to int64 [N]."""
        with full_precision(rows.device.type):
            return self._number(self.bounded(widened(rows.detach())).round())

    def lookup(self, codes: Tensor) -> Tensor:
        """Return the values of codes, int [...] to float32 [..., code_dim]."""
        digits = codes.unsqueeze(-1) // self.basis % self.levels
        return (digits - self.width).to(self.shift.dtype) / self.width

    def scalars(self) -> dict[str, float]:
        """Return the measures of CodebookMeasures.collect; the error is that of the bounded numbers."""
        # Codes on one ray from the centre look alike to a cosine, and none of these is another's duplicate.
        return self.measures.collect(self.codebook_rows()[:1])

    def codebook_rows(self) -> Tensor:
        """Return the values of all codes, float32 [num_codes, code_dim]."""
        return self.lookup(torch.arange(self.num_codes, device=self.levels.device))

    def bounded(self, vectors: Tensor) -> Tensor:
        """Return numbers in -L/2 - EDGE .. L/2 whose rounding is the level, zero staying zero; [..., code_dim].

        The paper's appendix A.1: an even L has one level more below zero than above, hence the shift by half a level.
        """
        return torch.tanh(vectors + self.shift) * self.reach - self.offset

    @uncompiled
    @torch.no_grad()
    def _take_notes(self, bounded: Tensor, codes: Tensor, values: Tensor) -> None:
        # Never compiled: what is kept beyond the step must not lie in memory that a compiled graph uses again.
        self.measures.note(codes.flatten(), (bounded / self.width - values).square().sum())

    def _number(self, rounded: Tensor) -> Tensor:
        return ((rounded.long() + self.width) * self.basis).sum(dim=-1)

"""What every quantizer offers to a model: vectors in, codes and their values out, with a gradient and a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...losses import codebook_loss, commitment
from ...losses.precision import widened
from ..base import full_precision
from ..compiling import uncompiled
from .measures import CodebookMeasures
from .nearest import nearest_code
from .paths import rotate, straight_through

GradientPath = Literal["straight_through", "rotation"]


@dataclass(frozen=True, slots=True)
class Quantised:
    """values: the chosen codes' vectors, float32 [B, ..., d], without gradient. codes: their numbers, int64 [B, ...].

    passed: the same values, through which a gradient goes to the vectors. loss: the quantizer's own terms with their
    weights, summed over a photo's vectors and their numbers, a mean over the B photos, [].
    """

    values: Tensor
    codes: Tensor
    passed: Tensor
    loss: Tensor


def pass_gradient(vectors: Tensor, values: Tensor, kind: GradientPath) -> Tensor:
    """Return the values, [..., d], through which a gradient goes to the vectors as `kind` says."""
    return rotate(vectors, values) if kind == "rotation" else straight_through(vectors, values)


class Quantizer(nn.Module, ABC):
    """Turns vectors into codes, whole numbers below `num_codes`, and codes back into vectors of `code_dim` numbers."""

    def __init__(self, num_codes: int, code_dim: int) -> None:
        super().__init__()
        self.num_codes = num_codes
        self.code_dim = code_dim
        self.measures = CodebookMeasures(num_codes)

    @abstractmethod
    def forward(self, vectors: Tensor) -> Quantised:
        """Return the codes of vectors, float [B, ..., code_dim]; in training mode also take notes for the measures.

        Computes in float32 also under autocast. In evaluation mode no state changes and no rank waits for another.
        """

    @abstractmethod
    def nearest(self, rows: Tensor) -> Tensor:
        """Return the code of every row, float [N, code_dim] to int64 [N], as `forward` chooses it."""

    @abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """Return the vectors of codes, int [...] to float32 [..., code_dim]."""

    @abstractmethod
    def codebook_rows(self) -> Tensor:
        """Return the vectors of all codes in their order, float32 [num_codes, code_dim]."""

    def update(self) -> None:
        """Do what belongs after an optimiser step (moving averages, restarts); every rank must call it."""

    def scalars(self) -> dict[str, float]:
        """Return measures over all steps and ranks since the last call; every rank must call it.

        See CodebookMeasures.collect for the names.
        """
        return self.measures.collect(self.codebook_rows().detach())


class CodebookQuantizer(Quantizer):
    """Chooses the nearest (L2) of the rows of a codebook.

    commitment_weight: beta of the paper, on the commitment term only. normalise: vectors and codes are scaled to
    length one, so that nearest means the largest cosine (ViT-VQGAN, arXiv 2110.04627, section 3.2). gradient: how the
    decoder's gradient passes to the vectors.

    A subclass gives `codebook_rows`; its hooks `begin` and `observe` run in training mode before and after the choice.
    """

    def __init__(
        self,
        num_codes: int,
        code_dim: int,
        *,
        commitment_weight: float = 0.25,
        normalise: bool = False,
        gradient: GradientPath = "straight_through",
    ) -> None:
        super().__init__(num_codes, code_dim)
        self.commitment_weight = commitment_weight
        self.normalise = normalise
        self.gradient = gradient

    def forward(self, vectors: Tensor) -> Quantised:
        """Return the nearest code of every vector, [B, ..., code_dim], of the codebook as it is before the step."""
        with full_precision(vectors.device.type):
            vectors = self.scaled(widened(vectors))
            rows = vectors.detach().reshape(-1, self.code_dim)
            if self.training:
                self.begin(rows)
            codebook = self.codebook_rows()
            codes = nearest_code(rows, codebook)
            chosen = F.embedding(codes, codebook)
            values = chosen.detach()
            if self.training:
                self._take_notes(rows, codes, values)
            chosen, values = chosen.view(vectors.shape), values.view(vectors.shape)
            passed = pass_gradient(vectors, values, self.gradient)
            return Quantised(values, codes.view(vectors.shape[:-1]), passed, self.loss(vectors, chosen))

    def nearest(self, rows: Tensor) -> Tensor:
        """Return the number of the nearest code of every row, float [N, d] to int64 [N]; ties to the smaller number."""
        return nearest_code(self.scaled(widened(rows)), self.codebook_rows())

    def lookup(self, codes: Tensor) -> Tensor:
        """Return the codebook's rows of these numbers, int [...] to float32 [..., code_dim]."""
        return F.embedding(codes, self.codebook_rows())

    def loss(self, vectors: Tensor, chosen: Tensor) -> Tensor:
        """Return codebook term + beta * commitment, [] (arXiv 1711.00937, equation 3); both tensors [B, ..., d].

        The first term moves the codes only, the second the vectors only: beta is on the second (with beta on the first,
        a known mistake, the sum has the same value at equal weights and other gradients).
        """
        return codebook_loss(vectors, chosen) + self.commitment_weight * commitment(vectors, chosen)

    def begin(self, rows: Tensor) -> None:
        """Run in training mode before codes are chosen for rows, float32 [N, d], scaled; the same on every rank."""

    def observe(self, rows: Tensor, codes: Tensor) -> None:
        """Run in training mode after codes, int64 [N], were chosen for rows, float32 [N, d], scaled."""

    def scaled(self, vectors: Tensor) -> Tensor:
        """Return vectors, [..., d], of length one where the quantizer compares directions, else as they are."""
        return F.normalize(vectors, dim=-1) if self.normalise else vectors

    @uncompiled
    @torch.no_grad()
    def _take_notes(self, rows: Tensor, codes: Tensor, values: Tensor) -> None:
        # Never compiled: what is kept beyond the step must not lie in memory that a compiled graph uses again.
        self.measures.note(codes, (rows - values).square().sum())
        self.observe(rows, codes)

"""What every prior offers: the probability of each code given those before it, in raster order."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ...errors import InputError
from ...losses.precision import full_precision
from ..base import Batch, Latents, Losses, Model, Step
from ..conditions import FIRST_CATEGORY, NO_CATEGORY, UNKNOWN_CATEGORY


class PriorConfig(BaseModel):
    """Base of the priors' configurations; `kind` tells them apart.

    width: numbers that stand for a code (the prior's own embedding, not the codebook's) and features of each layer.
    by_category: the prior is told the photos' categories; condition_dropout: share of them that training hides behind
    `<none>`, so that the prior also knows photos without one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: str
    width: int = Field(64, ge=1)
    by_category: bool = False
    condition_dropout: float = Field(0.1, ge=0, lt=1)


class Prior(Model):
    """p(codes) = product over cells i, in raster order, of p(code i | codes before i, category).

    A Model, so that the training loop takes it as it is: `forward` is the loss of a batch's codes. It encodes and
    decodes nothing. A subclass says what follows from the codes' embeddings: `from_vectors`.
    """

    reads: Literal["photos", "codes", "features"] = "codes"

    def __init__(self, config: PriorConfig, num_codes: int, grid: tuple[int, int], labels: tuple[str, ...]) -> None:
        super().__init__()
        self.settings = config
        self.num_codes = num_codes
        self.grid = grid
        self.labels = labels if config.by_category else ()
        self.image_size = self.latent_dim = 0
        self.embedding = nn.Embedding(num_codes, config.width)
        self.categories = nn.Embedding(FIRST_CATEGORY + len(self.labels), config.width) if config.by_category else None

    @abstractmethod
    def from_vectors(self, vectors: Tensor, category: Tensor | None) -> Tensor:
        """Return logits [B, K, h, w] of codes whose embeddings are vectors [B, h, w, width].

        The logits of a cell depend on the vectors of earlier cells alone. category: float [B, width] of a prior
        `by_category`, else None.
        """

    def logits(self, codes: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return logits [B, K, h, w] of every cell's code given those before it; codes int64 [B, h, w].

        condition: rows int64 [B] of `models.conditions.condition_of`, None for none; only a prior `by_category` looks
        at it. Raises InputError for codes of another grid.
        """
        if codes.dim() != 3 or tuple(codes.shape[1:]) != self.grid:
            raise InputError(
                f"codes are {list(codes.shape)}; this prior reads [B, {self.grid[0]}, {self.grid[1]}], as it was built"
            )
        return self.from_vectors(self.embedding(codes), self._category(condition, len(codes)))

    def nats(self, codes: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return -log p of each photo's codes in nats, float32 [B], a sum over its cells; codes int64 [B, h, w]."""
        logits = self.logits(codes, condition)
        with full_precision(logits.device.type):
            return nn.functional.cross_entropy(logits.float(), codes, reduction="none").flatten(1).sum(dim=1)

    def forward(self, batch: Batch, step: Step) -> Losses:
        """Return the nats per code of a batch's codes, a mean over photos. Raises InputError without codes."""
        if batch.codes is None:
            raise InputError("a prior reads codes and this batch has none; train it on latents of a VQ model")
        nats = self.nats(batch.codes, self._dropped(batch.condition)).mean() / (self.grid[0] * self.grid[1])
        return Losses(nats, {"nats_per_code": nats.detach()})

    def encode(self, images: Tensor, condition: Tensor | None = None) -> Latents:
        """Return latents of no numbers, float [B, 0]: a prior knows codes, not photos."""
        return Latents(torch.zeros(len(images), 0, device=images.device))

    def blank(self) -> Batch:
        """Return a batch of one grid of code 0, without a category."""
        blank = super().blank()
        return Batch(blank.images, blank.condition, torch.zeros(1, *self.grid, dtype=torch.int64))

    def _category(self, condition: Tensor | None, rows: int) -> Tensor | None:
        """Return the embeddings of conditions, [B, width]; `<unknown>` for rows beyond all."""
        if self.categories is None:
            return None
        if condition is None:
            return self.categories.weight[NO_CATEGORY].expand(rows, -1)
        beyond = (condition < NO_CATEGORY) | (condition >= self.categories.num_embeddings)
        found: Tensor = self.categories(torch.where(beyond, UNKNOWN_CATEGORY, condition))
        return found

    def _dropped(self, condition: Tensor | None) -> Tensor | None:
        """Return the conditions with some hidden, each photo by itself, in training mode only."""
        if condition is None or self.categories is None or not self.training:
            return condition
        hidden = torch.rand(condition.shape, device=condition.device) < self.settings.condition_dropout
        return torch.where(hidden, NO_CATEGORY, condition)

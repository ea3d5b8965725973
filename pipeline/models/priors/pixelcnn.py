"""The gated PixelCNN (van den Oord et al. 2016, arXiv 1606.05328, figure 2) over grids of codes."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn.functional import pad

from .base import Prior, PriorConfig


class PixelCNNConfig(PriorConfig):
    """layers: gated layers; the first only looks back. kernel: odd side of the window that a layer looks at.

    dropout: share of features that training hides between layers.
    """

    kind: Literal["pixelcnn"] = "pixelcnn"
    layers: int = Field(6, ge=1)
    kernel: int = Field(3, ge=3)
    dropout: float = Field(0.1, ge=0, lt=1)

    @field_validator("kernel")
    @classmethod
    def _is_odd(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise ValueError(f"kernel is {kernel}; a window has its cell in the middle, so write an odd number")
        return kernel


class PixelCNN(Prior):
    """Two stacks: the vertical one sees all rows above, the horizontal one the cells to the left and the vertical one.

    One stack of masked convolutions would be blind to cells above on the right.
    """

    def __init__(self, config: PixelCNNConfig, num_codes: int, grid: tuple[int, int], labels: tuple[str, ...]) -> None:
        super().__init__(config, num_codes, grid, labels)
        told = config.width if config.by_category else 0
        self.layers = nn.ModuleList(
            GatedLayer(
                config.width,
                config.kernel,
                told=told,
                first=number == 0,
                last=number == config.layers - 1,
                dropout=config.dropout,
            )
            for number in range(config.layers)
        )
        self.head = nn.Sequential(
            nn.ReLU(), nn.Conv2d(config.width, config.width, 1), nn.ReLU(), nn.Conv2d(config.width, num_codes, 1)
        )

    def from_vectors(self, vectors: Tensor, category: Tensor | None) -> Tensor:
        """Return logits [B, K, h, w] of codes whose embeddings are vectors [B, h, w, width]."""
        vertical = horizontal = vectors.permute(0, 3, 1, 2)
        seen = torch.zeros_like(vertical)
        for layer in self.layers:
            vertical, horizontal, skipped = layer(vertical, horizontal, category)
            seen = seen + skipped
        logits: Tensor = self.head(seen)
        return logits


class GatedLayer(nn.Module):
    """One layer of both stacks. first: mask A, without the cell itself; else mask B, with it.

    Only the first layer needs mask A: what comes out of it knows earlier cells alone, and so may be looked at whole.
    last: only its share of the output is used, so that it has no weights that nothing would train.
    """

    def __init__(self, width: int, kernel: int, *, told: int, first: bool, last: bool, dropout: float) -> None:
        super().__init__()
        self.strict = first
        reach = kernel // 2
        self.down = nn.Conv2d(width, 2 * width, (reach + 1, kernel))
        self.right = nn.Conv2d(width, 2 * width, (1, reach + 1))
        self.across = nn.Conv2d(2 * width, 2 * width, 1)
        self.out = None if last else nn.Conv2d(width, width, 1)
        self.skip = nn.Conv2d(width, width, 1)
        self.dropout = nn.Dropout(dropout)
        self.category = nn.Linear(told, 4 * width, bias=False) if told else None
        self._reach = reach

    def forward(self, vertical: Tensor, horizontal: Tensor, category: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the next vertical and horizontal maps and this layer's share of the output; all [B, width, h, w]."""
        height, width = vertical.shape[-2:]
        reach, back = self._reach, self._reach + self.strict
        # Cells of the padding before the first row and column; strict: shifted by one, the own cell falls out.
        below = self.down(pad(self.dropout(vertical), (reach, reach, back, 0)))[:, :, :height]
        beside = self.right(pad(self.dropout(horizontal), (back, 0)))[:, :, :, :width] + self.across(below)
        if self.category is not None and category is not None:
            told = self.category(category)[:, :, None, None]
            first, second = told.chunk(2, dim=1)
            below, beside = below + first, beside + second
        made = gated(beside)
        if self.out is not None:
            horizontal = self.out(made) if self.strict else horizontal + self.out(made)
        return gated(below), horizontal, self.skip(made)


def gated(values: Tensor) -> Tensor:
    """Return tanh of the first half of the channels times the sigmoid of the second (equation 2)."""
    value, gate = values.chunk(2, dim=1)
    return torch.tanh(value) * torch.sigmoid(gate)

"""A causal transformer over codes in raster order (Vaswani et al. 2017; pre-norm as in GPT-2)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .base import Prior, PriorConfig


class TransformerConfig(PriorConfig):
    """layers: blocks of attention and two dense layers. heads: of each attention; a divisor of width."""

    kind: Literal["transformer"] = "transformer"
    layers: int = Field(3, ge=1)
    heads: int = Field(4, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_divide(self) -> TransformerConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class CodesTransformer(Prior):
    """Cell i is told from the start's vector and the codes before i; every cell has a learned position."""

    def __init__(
        self, config: TransformerConfig, num_codes: int, grid: tuple[int, int], labels: tuple[str, ...]
    ) -> None:
        super().__init__(config, num_codes, grid, labels)
        width = config.width
        self.start = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.zeros(grid[0] * grid[1], width))
        self.blocks = nn.ModuleList(Block(width, config.heads, config.dropout) for _ in range(config.layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_codes))
        self.apply(_small)
        nn.init.normal_(self.positions, std=0.02)

    def from_vectors(self, vectors: Tensor, category: Tensor | None) -> Tensor:
        """Return logits [B, K, h, w] of codes whose embeddings are vectors [B, h, w, width]."""
        batch, height, width = vectors.shape[:3]
        start = self.start.expand(batch, -1) if category is None else self.start + category
        # One to the right: at place i stands the code before it.
        tokens = torch.cat([start.unsqueeze(1), vectors.flatten(1, 2)[:, :-1]], dim=1) + self.positions
        if category is not None:  # also to every cell: the start is far from the last
            tokens = tokens + category.unsqueeze(1)
        for block in self.blocks:
            tokens = block(tokens)
        logits: Tensor = self.head(tokens)
        return logits.transpose(1, 2).reshape(batch, -1, height, width)


class Block(nn.Module):
    """Attention to earlier places and to the own one, then two dense layers, each added to what came in."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self._heads = heads
        self.dropout = nn.Dropout(dropout)
        self.first_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.mixed = nn.Linear(width, width)
        self.second_norm = nn.LayerNorm(width)
        self.dense = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens [B, n, width] of tokens [B, n, width]."""
        parts = self.queries_keys_values(self.first_norm(tokens)).chunk(3, dim=-1)
        queries, keys, values = (part.unflatten(-1, (self._heads, -1)).transpose(1, 2) for part in parts)
        seen = scaled_dot_product_attention(queries, keys, values, is_causal=True)
        tokens = tokens + self.dropout(self.mixed(seen.transpose(1, 2).flatten(2)))
        out: Tensor = tokens + self.dropout(self.dense(self.second_norm(tokens)))
        return out


def _small(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

"""A small vision transformer (Dosovitskiy et al. 2020, arXiv 2010.11929): patches as tokens, fixed sine positions."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError
from .conv import check_image_size


def patchify(pictures: Tensor, patch: int) -> Tensor:
    """Return pictures [B, C, H, W] as rows of patches [B, H / patch * W / patch, patch * patch * C], channel last."""
    batch, channels, height, width = pictures.shape
    cut = pictures.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def check_patch(image_size: int, patch: int) -> None:
    """Raise ConfigError unless photos of this size are at least 2 x 2 whole patches."""
    check_image_size(image_size)
    if image_size % patch or image_size < 2 * patch:
        raise ConfigError(
            f"model.patch is {patch}, which does not divide photos of {image_size} pixels into at least 2 x 2 patches; "
            "name a divisor, for example 4"
        )


def positions(grid: int, width: int) -> Tensor:
    """Return the positions of grid x grid cells, float32 [grid * grid, width].

    The first half of the width tells the column, the second the row: sines, then cosines, of frequencies from 1 down to
    1 / 10,000 (as MAE's code). Raises ConfigError unless the width is a multiple of 4.
    """
    if width % 4:
        raise ConfigError(f"a transformer's width is {width}; positions in a plane need a multiple of 4")
    frequencies = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # [grid, width / 2]
    column, row = line.repeat(grid, 1), line.repeat_interleave(grid, dim=0)
    return torch.cat([column, row], dim=1).float()


class Block(nn.Module):
    """A transformer's layer, norms first: attention, then two linear layers four times as wide; [B, n, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"a transformer's width is {width}, which its {heads} heads do not divide; change either")
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        # Without a bias: that of the keys would change nothing.
        self.queries_keys_values = nn.Linear(width, 3 * width, bias=False)
        self.attended = nn.Linear(width, width)
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the tokens of the next layer."""
        tokens = tokens + self._attention(self.before_attention(tokens))
        return cast("Tensor", tokens + self.layers(tokens))

    def _attention(self, tokens: Tensor) -> Tensor:
        batch, number, width = tokens.shape
        parts = self.queries_keys_values(tokens).view(batch, number, 3, self.heads, width // self.heads)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        return cast("Tensor", self.attended(mixed.transpose(1, 2).reshape(batch, number, width)))


class ViT(nn.Module):
    """Pictures to tokens: patches through a linear layer, their positions, blocks, one token more for the whole photo.

    grid: patches a side. Raises ConfigError for a size, width or heads that do not fit.
    """

    places: Tensor

    def __init__(self, image_size: int, *, patch: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        check_patch(image_size, patch)
        self.patch = patch
        self.grid = image_size // patch
        self.embed = nn.Linear(3 * patch**2, width)
        self.whole = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.register_buffer("places", positions(self.grid, width), persistent=False)
        initialise_tokens(self)

    def tokens(self, pictures: Tensor) -> Tensor:
        """Return the patches' tokens with their positions, [B, grid * grid, width], of pictures float [B, 3, H, W]."""
        # Pictures in -1..1: a white background is then no larger than what lies on it.
        return cast("Tensor", self.embed(patchify(2.0 * pictures - 1.0, self.patch)) + self.places)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return [B, 1 + n, width], the photo's token first, of any n of a photo's tokens, in any order."""
        values = self._with_whole(tokens)
        for block in self.blocks:
            values = block(values)
        return cast("Tensor", self.norm(values))

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """Return every block's map of tokens, float [B, width, grid, grid]."""
        values, found = self._with_whole(self.tokens(pictures)), []
        for block in self.blocks:
            values = block(values)
            found.append(as_map(values[:, 1:]))
        return found

    def _with_whole(self, tokens: Tensor) -> Tensor:
        return torch.cat([self.whole.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens], dim=1)


def as_map(tokens: Tensor) -> Tensor:
    """Return a photo's tokens [B, g * g, width] as a map [B, width, g, g]."""
    grid = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).reshape(-1, tokens.shape[2], grid, grid)


def initialise_tokens(network: nn.Module) -> None:
    """Draw linear layers by Glorot and Bengio's rule, without biases, and single tokens small, as MAE does."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for parameter in network.parameters(recurse=False):
        nn.init.normal_(parameter, std=0.02)

"""A residual network for small photos (He et al. 2015, arXiv 1512.03385, section 4.2).

A 3 x 3 stem without pooling in place of ImageNet's 7 x 7 with stride 4, after which nothing of 28 pixels would be left.
Group normalisation by default: batch statistics let a contrastive loss recognise which photos share a batch, and would
need all workers.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from .conv import Norm, check_image_size, initialise, norm_layers


class ResNet(nn.Module):
    """Pictures float [B, in_channels, H, W] to a map [B, channels[-1], grid, grid].

    channels: width of each stage; a stage halves the side, rounding up, and has `blocks` blocks. whole_first: the first
    stage keeps the photo's side, as ResNets for CIFAR-10 do, at four times the work. side: H and W of the pictures
    where they are not the photos' own, as of one value a cell. Raises ConfigError for a size that no 2 x 2 map would be
    left of.
    """

    def __init__(
        self,
        image_size: int,
        channels: tuple[int, ...],
        *,
        blocks: int = 1,
        in_channels: int = 3,
        norm: Norm = "group",
        whole_first: bool = False,
        side: int | None = None,
    ) -> None:
        super().__init__()
        check_image_size(image_size)
        self.grid = _grid(image_size if side is None else side, len(channels), whole_first=whole_first)
        self.shape: tuple[int, ...] = (channels[-1], self.grid, self.grid)
        self.stem = nn.Sequential(_convolution(in_channels, channels[0], norm), *norm_layers(norm, channels[0]))
        stages = []
        for number, (before, after) in enumerate(pairwise((channels[0], *channels))):
            first = Block(before, after, norm, stride=1 if whole_first and number == 0 else 2)
            stages.append(nn.Sequential(first, *(Block(after, after, norm) for _ in range(blocks - 1))))
        self.stages = nn.Sequential(*stages)
        initialise(self)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the last stage's map."""
        return self.maps(pictures)[-1]

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """Return every stage's map, finest first, float [B, channels[i], h, w] each."""
        # Convolutions on a CPU, and in half precision on a GPU, are faster with channels last.
        features = torch.relu(self.stem(pictures.contiguous(memory_format=torch.channels_last)))
        found = []
        for stage in self.stages:
            features = stage(features)
            found.append(features)
        return found


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, which is a 1 x 1 convolution where the shape changes.

    Without normalisation their sum is divided by the square root of 2: else the signal would double at every block.
    """

    def __init__(self, before: int, after: int, norm: Norm, *, stride: int = 1) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _convolution(before, after, norm, stride=stride),
            *norm_layers(norm, after),
            nn.ReLU(),
            _convolution(after, after, norm),
            *norm_layers(norm, after),
        )
        self.shortcut: nn.Module = nn.Identity()
        # The same sums, but oneDNN 3.13 writes beyond its memory in the backward pass of a narrow 1 x 1 convolution of
        # stride 2 with channels last, on processors of AVX2 and no more; from 8 channels it does not, and is faster.
        self.cut = stride if before < 8 else 1
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride // self.cut, bias=norm != "batch"), *norm_layers(norm, after)
            )
        self.scale = 0.5**0.5 if norm == "none" else 1.0

    def forward(self, features: Tensor) -> Tensor:
        """Return the block's map."""
        skipped = self.shortcut(features[..., :: self.cut, :: self.cut] if self.cut > 1 else features)
        return torch.relu((self.residual(features) + skipped) * self.scale)


def _convolution(before: int, after: int, norm: Norm, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride, 1, bias=norm != "batch")


def _grid(side: int, stages: int, *, whole_first: bool) -> int:
    """Return the side of the last map. Raises ConfigError when it would be a single cell."""
    grid = -(-side // (1 << stages - whole_first))
    if grid < 2:
        most = (side - 1).bit_length() - 1 + whole_first
        raise ConfigError(
            f"model.channels has {stages} members, which leaves a single cell of the {side} x {side} that go into the "
            f"network; name at most {most}" + ("" if whole_first else f", or {most + 1} with model.whole_first")
        )
    return grid

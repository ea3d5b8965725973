"""Networks over features instead of pictures: one small dense network for every cell of a map."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from ...losses.precision import widened


class CellwiseEncoder(nn.Module):
    """Maps float [B, channels, cells, cells] to [B, hidden[-1], cells, cells]: 1 x 1 convolutions, each with SiLU."""

    def __init__(self, channels: int, cells: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.grid = cells
        self.shape: tuple[int, ...] = (hidden[-1], cells, cells)
        self.layers = nn.Sequential(*_hidden((channels, *hidden)))

    def forward(self, maps: Tensor) -> Tensor:
        """Return the features of maps."""
        result: Tensor = self.layers(maps)
        return result


class CellwiseDecoder(nn.Module):
    """Maps [B, hidden[-1], cells, cells] to outputs float32 [B, channels, cells, cells]; the encoder's mirror image.

    Beside the hidden layers a linear one leads straight to the outputs, so that what a linear decoder could give is
    learnt in the first steps.
    """

    def __init__(self, channels: int, cells: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.in_shape: tuple[int, ...] = (hidden[-1], cells, cells)
        widths = tuple(reversed(hidden))
        self.layers = nn.Sequential(*_hidden(widths), nn.Conv2d(widths[-1], channels, 1))
        self.straight = nn.Conv2d(widths[0], channels, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the outputs."""
        return widened(self.layers(maps)) + widened(self.straight(maps))

    def output_layers(self) -> list[nn.Module]:
        """Return the layers whose sum is the output."""
        return [self.layers[-1], self.straight]


def _hidden(widths: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 1), nn.SiLU()]
    return layers

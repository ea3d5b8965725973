"""Networks for small pictures that see all of a picture at once (seed 001: github.com/snakers4/playing_with_vae).

`fc`: one hidden dense layer. `fc_conv`: the same as a convolution whose kernel is the picture, with widths of its own
on both sides. `fcn`: the convolutional stages, then one convolution over the whole grid, so that the layers to and from
the latents act on a single cell and the network has no dense layer over positions.
"""

from __future__ import annotations

from torch import Tensor, nn

from ...losses.precision import widened
from .conv import ConvDecoder, ConvEncoder, Norm, check_image_size


class DenseEncoder(nn.Module):
    """Pictures float [B, in_channels, H, W] to features [B, hidden] (`fc`)."""

    def __init__(self, image_size: int, hidden: int, *, in_channels: int = 3) -> None:
        super().__init__()
        check_image_size(image_size)
        self.shape: tuple[int, ...] = (hidden,)
        self.layers = nn.Sequential(nn.Linear(in_channels * image_size**2, hidden), nn.SiLU())

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the features of pictures."""
        result: Tensor = self.layers(pictures.flatten(1))
        return result


class DenseDecoder(nn.Module):
    """Features [B, hidden] to outputs float32 [B, out_channels, out_size, out_size] (`fc`)."""

    def __init__(self, hidden: int, *, out_channels: int, out_size: int) -> None:
        super().__init__()
        self.in_shape: tuple[int, ...] = (hidden,)
        self.out_shape = (out_channels, out_size, out_size)
        self.layer = nn.Linear(hidden, out_channels * out_size**2)

    def forward(self, features: Tensor) -> Tensor:
        """Return the outputs."""
        return widened(self.layer(features)).view(-1, *self.out_shape)

    def output_layers(self) -> list[nn.Module]:
        """Return the layers whose sum is the output."""
        return [self.layer]


class WholeEncoder(nn.Module):
    """Pictures float [B, in_channels, H, W] to one cell [B, hidden, 1, 1] by one kernel of their size (`fc_conv`)."""

    def __init__(self, image_size: int, hidden: int, *, in_channels: int = 3) -> None:
        super().__init__()
        check_image_size(image_size)
        self.shape: tuple[int, ...] = (hidden, 1, 1)
        self.layers = nn.Sequential(nn.Conv2d(in_channels, hidden, image_size), nn.SiLU())

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the features of pictures."""
        result: Tensor = self.layers(pictures)
        return result


class WholeDecoder(nn.Module):
    """One cell [B, hidden, 1, 1] to outputs float32 [B, out_channels, out_size, out_size] (`fc_conv`)."""

    def __init__(self, hidden: int, *, out_channels: int, out_size: int) -> None:
        super().__init__()
        self.in_shape: tuple[int, ...] = (hidden, 1, 1)
        self.layer = nn.ConvTranspose2d(hidden, out_channels, out_size)

    def forward(self, features: Tensor) -> Tensor:
        """Return the outputs."""
        return widened(self.layer(features))

    def output_layers(self) -> list[nn.Module]:
        """Return the layers whose sum is the output."""
        return [self.layer]


class CellEncoder(nn.Module):
    """Pictures float [B, in_channels, H, W] to one cell [B, hidden, 1, 1], by convolutions only (`fcn`)."""

    def __init__(
        self, image_size: int, channels: tuple[int, ...], hidden: int, *, in_channels: int = 3, norm: Norm = "none"
    ) -> None:
        super().__init__()
        self.shape: tuple[int, ...] = (hidden, 1, 1)
        self.convolutions = ConvEncoder(image_size, channels, in_channels=in_channels, norm=norm)
        self.to_cell = nn.Sequential(nn.Conv2d(channels[-1], hidden, self.convolutions.grid), nn.SiLU())

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the features of pictures."""
        result: Tensor = self.to_cell(self.convolutions(pictures))
        return result

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """Return every stage's map, finest first; see ConvEncoder."""
        return self.convolutions.maps(pictures)


class CellDecoder(nn.Module):
    """One cell [B, hidden, 1, 1] to outputs float32 [B, out_channels, out_size, out_size] (`fcn`)."""

    def __init__(
        self,
        image_size: int,
        channels: tuple[int, ...],
        hidden: int,
        *,
        out_channels: int,
        out_size: int,
        norm: Norm = "none",
    ) -> None:
        super().__init__()
        self.in_shape: tuple[int, ...] = (hidden, 1, 1)
        convolutions = ConvDecoder(image_size, channels, out_channels=out_channels, out_size=out_size, norm=norm)
        self.from_cell = nn.Sequential(nn.ConvTranspose2d(hidden, channels[-1], convolutions.grid), nn.SiLU())
        self.convolutions = convolutions

    def forward(self, features: Tensor) -> Tensor:
        """Return the outputs."""
        result: Tensor = self.convolutions(self.from_cell(features))
        return result

    def output_layers(self) -> list[nn.Module]:
        """Return the layers whose sum is the output."""
        return self.convolutions.output_layers()

"""A small convolutional encoder and its mirror image, without normalisation unless one is asked for.

No batch normalisation by default: what a photo encodes to must not depend on the photos beside it, nor on the number of
workers. In its place weights start with the variance that keeps a signal's size through every layer (He et al. 2015,
arXiv 1502.01852), without which these networks stand still for their first few hundred steps. `group` (Wu and He 2018,
arXiv 1803.08494) looks at one photo only; `batch` needs statistics over all workers.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError
from ...losses.precision import widened

Norm = Literal["none", "group", "batch"]

SMALLEST = 16
_GROUPS = 8
_KERNEL, _STRIDE, _PADDING = 4, 2, 1


def check_image_size(image_size: int) -> None:
    """Raise ConfigError unless the models can take square photos of this size."""
    if image_size < SMALLEST or image_size % 4:
        raise ConfigError(
            f"images.size is {image_size}; these models need a multiple of 4 of at least {SMALLEST}, "
            "for example 28, 32, 64 or 128"
        )


def map_sizes(image_size: int, stages: int) -> list[int]:
    """Return the side of the picture and of each stage's feature map, largest first: [image_size, ..., grid].

    Each stage halves and rounds down. Raises ConfigError when the size is refused or no 2 x 2 map would be left.
    """
    check_image_size(image_size)
    sizes = [image_size]
    for _ in range(stages):
        sizes.append(sizes[-1] // 2)
    if sizes[-1] < 2:
        most = int(math.log2(image_size)) - 1
        raise ConfigError(
            f"model.channels has {stages} members, which leaves {sizes[-1]} x {sizes[-1]} cells of a photo of "
            f"{image_size} pixels; name at most {most}"
        )
    return sizes


def norm_layers(norm: Norm, channels: int) -> list[nn.Module]:
    """Return the layer that normalises a map of so many channels, or none."""
    if norm == "group":
        return [nn.GroupNorm(math.gcd(_GROUPS, channels), channels)]
    if norm == "batch":
        return [nn.BatchNorm2d(channels)]
    return []


class ConvEncoder(nn.Module):
    """Pictures float [B, in_channels, H, W] to a map [B, channels[-1], grid, grid].

    One 4 x 4 convolution of stride 2 a stage, its normalisation and SiLU.
    """

    def __init__(
        self, image_size: int, channels: tuple[int, ...], *, in_channels: int = 3, norm: Norm = "none"
    ) -> None:
        super().__init__()
        self.grid = map_sizes(image_size, len(channels))[-1]
        self.shape: tuple[int, ...] = (channels[-1], self.grid, self.grid)
        layers: list[nn.Module] = []
        for before, after in pairwise((in_channels, *channels)):
            # Batch normalisation takes the mean away, and any bias with it.
            layers.append(nn.Conv2d(before, after, _KERNEL, _STRIDE, _PADDING, bias=norm != "batch"))
            layers += [*norm_layers(norm, after), nn.SiLU()]
        self.stages = nn.Sequential(*layers)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the feature map of pictures."""
        # Convolutions on a CPU, and in half precision on a GPU, are faster with channels last.
        result: Tensor = self.stages(pictures.contiguous(memory_format=torch.channels_last))
        return result

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """Return every stage's map, finest first, float [B, channels[i], h, w] each."""
        features, found = pictures.contiguous(memory_format=torch.channels_last), []
        for layer in self.stages:
            features = layer(features)
            if isinstance(layer, nn.SiLU):
                found.append(features)
        return found


class ConvDecoder(nn.Module):
    """A map [B, channels[-1], grid, grid] to outputs float32 [B, out_channels, out_size, out_size].

    The mirror image of ConvEncoder, with as many of its stages as out_size needs, and where it needs fewer than all
    another 3 x 3 convolution: a single layer would be a linear decoder, and the latents no better than PCA's. A size
    between two stages is enlarged bilinearly, one below the grid is averaged from it. Beside the stages one linear
    layer paints the map's cells in colour, smoothly enlarged: large areas of colour are then learnt in the first
    epochs, where the stages alone learn brightness long before colour.
    """

    def __init__(
        self,
        image_size: int,
        channels: tuple[int, ...],
        *,
        out_channels: int = 3,
        out_size: int | None = None,
        norm: Norm = "none",
    ) -> None:
        super().__init__()
        self.out_size = image_size if out_size is None else out_size
        sizes = map_sizes(image_size, len(channels))[::-1]
        self.grid = sizes[0]
        self.in_shape: tuple[int, ...] = (channels[-1], self.grid, self.grid)
        steps = [(small, large) for small, large in pairwise(sizes) if large <= self.out_size]
        whole = len(steps) == len(channels)
        widths = [*channels[::-1], out_channels]
        layers: list[nn.Module] = []
        for place, (small, large) in enumerate(steps):
            odd = large - 2 * small  # a row and column that halving had dropped
            last = whole and place == len(steps) - 1
            before, after = widths[place : place + 2]
            bias = last or norm != "batch"
            layers.append(nn.ConvTranspose2d(before, after, _KERNEL, _STRIDE, _PADDING, output_padding=odd, bias=bias))
            layers += [] if last else [*norm_layers(norm, after), nn.SiLU()]
        if not whole:
            layers += [nn.Conv2d(widths[len(steps)], out_channels, 3, padding=1)]
        self.stages = nn.Sequential(*layers)
        self.colours = nn.Conv2d(channels[-1], out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return the outputs: logits of pictures, or whatever the target makes of them."""
        features = features.contiguous(memory_format=torch.channels_last)
        fine = widened(self.stages(features))
        return resized(fine, self.out_size) + resized(widened(self.colours(features)), self.out_size)

    def output_layers(self) -> list[nn.Module]:
        """Return the layers whose sum is the output."""
        return [self.stages[-1], self.colours]


def resized(maps: Tensor, size: int) -> Tensor:
    """Return maps [B, C, h, w] as [B, C, size, size]: enlarged bilinearly, made smaller by averages."""
    if maps.shape[-1] == size:
        return maps
    if maps.shape[-1] > size:
        return F.adaptive_avg_pool2d(maps, size)
    return F.interpolate(maps, size=(size, size), mode="bilinear")


def initialise(network: nn.Module) -> None:
    """Draw the weights of every convolution and linear layer with He's variance 2 / inputs; biases are zero."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            inputs = float(layer.in_features)
        elif isinstance(layer, nn.Conv2d):
            inputs = float(layer.in_channels * math.prod(layer.kernel_size))
        elif isinstance(layer, nn.ConvTranspose2d):
            # Of a kernel's taps only one in stride * stride meets a given output pixel.
            inputs = layer.in_channels * math.prod(layer.kernel_size) / math.prod(layer.stride)
            if layer.stride == (1, 1) and layer.padding == (0, 0):  # a single cell becomes the kernel's area
                inputs = float(layer.in_channels)
        else:
            continue
        nn.init.normal_(layer.weight, std=math.sqrt(2.0 / inputs))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def begin_near_zero(layers: list[nn.Module]) -> None:
    """Let output layers begin with a tenth of He's spread, which is meant for layers that an activation follows.

    For targets that are small numbers, such as oriented gradients: the first steps of a VAE would else go into making
    its outputs smaller, from which its latents did not recover (HOG of Fashion-MNIST, three epochs: k-NN of held-out
    photos 69 %, with this 85 %). The logits of pixels do not need it.
    """
    with torch.no_grad():
        for layer in layers:
            for weights in layer.parameters():
                weights.mul_(0.1)  # biases are zero

"""A small convolutional encoder and its mirror image, without normalisation.

No batch normalisation: what a photo encodes to must not depend on the photos beside it, nor on the number of workers.
In its place weights start with the variance that keeps a signal's size through every layer (He et al. 2015, arXiv
1502.01852), without which these networks stand still for their first few hundred steps.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError

SMALLEST = 16
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


class ConvEncoder(nn.Module):
    """Pictures float [B, 3, H, W] to a map [B, channels[-1], g, g]; one 4 x 4 convolution of stride 2 a stage."""

    def __init__(self, image_size: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.grid = map_sizes(image_size, len(channels))[-1]
        layers: list[nn.Module] = []
        for before, after in pairwise((3, *channels)):
            layers += [nn.Conv2d(before, after, _KERNEL, _STRIDE, _PADDING), nn.SiLU()]
        self.stages = nn.Sequential(*layers)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the feature map of pictures."""
        # Convolutions on a CPU, and in half precision on a GPU, are faster with channels last.
        result: Tensor = self.stages(pictures.contiguous(memory_format=torch.channels_last))
        return result


class ConvDecoder(nn.Module):
    """A map [B, channels[-1], g, g] to logits of pictures, float [B, 3, H, W]; the mirror image of ConvEncoder.

    Beside the stages one linear layer paints the map's cells in colour, smoothly enlarged: large areas of colour are
    then learnt in the first epochs, where the stages alone learn brightness long before colour.
    """

    def __init__(self, image_size: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        sizes = map_sizes(image_size, len(channels))[::-1]
        layers: list[nn.Module] = []
        widths = (*channels[::-1], 3)
        for (before, after), (small, large) in zip(pairwise(widths), pairwise(sizes), strict=True):
            odd = large - 2 * small  # a row and column that halving had dropped
            layers += [nn.ConvTranspose2d(before, after, _KERNEL, _STRIDE, _PADDING, output_padding=odd), nn.SiLU()]
        self.stages = nn.Sequential(*layers[:-1])
        self.colours = nn.Conv2d(channels[-1], 3, 1)
        self.image_size = image_size

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits of pictures; their sigmoid is the picture."""
        features = features.contiguous(memory_format=torch.channels_last)
        coarse = F.interpolate(self.colours(features).float(), size=(self.image_size, self.image_size), mode="bilinear")
        result: Tensor = self.stages(features).float() + coarse
        return result


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
        else:
            continue
        nn.init.normal_(layer.weight, std=math.sqrt(2.0 / inputs))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)

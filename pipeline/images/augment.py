"""Random changes of training photos, on whichever device they are (torch; the evaluation transform has none)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

_ASPECT = 4 / 3  # the widest and, the other way up, the tallest crop, before it is enlarged to the photo's shape
_SATURATION, _HUE, _GREY_SHARE = 0.4, 0.1, 0.2
_BLUR_SHARE, _SHARPEST, _BLURRIEST = 0.5, 0.1, 2.0
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
# Brightness and two numbers of colour of a picture: hues turn in the plane of the latter (FCC NTSC, 1953).
_TO_YIQ = (_LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


class ViewsConfig(BaseModel):
    """How two views of a photo may differ; a model learns to overlook just that.

    min_area: least share of the photo's area that a crop keeps; below 0.3 a logo may be lost. flip: left to right or
    not. brightness, contrast: by up to this share more or less. colour: saturation and hue differ too, and one view in
    five is grey; off, since in a catalogue colour is what customers look for. blur: one view in two is blurred.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    min_area: float = Field(default=0.3, gt=0, le=1)
    flip: bool = True
    brightness: float = Field(default=0.4, ge=0, le=1)
    contrast: float = Field(default=0.4, ge=0, le=1)
    colour: bool = False
    blur: bool = False


def two_views(images: Tensor, config: ViewsConfig) -> Tensor:
    """Return two views of photos, uint8 [B, 3, H, W], as uint8 [2 B, 3, H, W]: one view of each, then the other."""
    return one_view(images.repeat(2, 1, 1, 1), config)


def one_view(images: Tensor, config: ViewsConfig) -> Tensor:
    """Return a random view of each photo, uint8 [B, 3, H, W].

    Every view is drawn for itself, on the photos' device and by its generator, so a training that restores it repeats
    them. What SimCLR does (Chen et al. 2020, arXiv 2002.05709, appendix A), always in this order: crop and flip,
    brightness, contrast, saturation, hue, grey, blur.
    """
    views = images.float() / 255.0
    device = images.device
    # Drawn whether wanted or not: switching one change off leaves the other ones as they were.
    area, aspect, across, down, flip, bright, contrast, saturation, hue, grey, blur, sigma = torch.rand(
        12, len(views), device=device
    )
    views = cropped(views, *crop_boxes(area, aspect, across, down, config.min_area), flip=config.flip & (flip < 0.5))
    if config.brightness:
        views = brightened(views, 1.0 + config.brightness * (2.0 * bright - 1.0))
    if config.contrast:
        views = contrasted(views, 1.0 + config.contrast * (2.0 * contrast - 1.0))
    if config.colour:
        views = saturated(views, 1.0 + _SATURATION * (2.0 * saturation - 1.0))
        views = turned(views, _HUE * (2.0 * hue - 1.0))
        views = saturated(views, (grey >= _GREY_SHARE).float())
    if config.blur:
        strengths = _SHARPEST + (_BLURRIEST - _SHARPEST) * sigma
        views = torch.where((blur < _BLUR_SHARE)[:, None, None, None], blurred(views, strengths), views)
    return (views * 255.0).round_().to(torch.uint8)


def crop_boxes(
    area: Tensor, aspect: Tensor, across: Tensor, down: Tensor, min_area: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return crops as shares of a photo's sides, each [N]: width, height, left, top; from four numbers in 0..1 each.

    The area is even between min_area and 1, the logarithm of width to height even as far as the crop then fits.
    """
    area = min_area + (1.0 - min_area) * area
    most = torch.minimum(area.new_tensor(math.log(_ASPECT)), -area.log())
    root = (most * (aspect - 0.5)).exp()  # of the aspect, which lies between exp(-most) and exp(most)
    width, height = area.sqrt() * root, area.sqrt() / root
    return width, height, (1.0 - width) * across, (1.0 - height) * down


def cropped(pictures: Tensor, width: Tensor, height: Tensor, left: Tensor, top: Tensor, *, flip: Tensor) -> Tensor:
    """Return crops of pictures float [N, C, H, W], enlarged to H x W bilinearly and flipped where `flip` is true."""
    matrices = pictures.new_zeros(len(pictures), 2, 3)
    matrices[:, 0, 0] = torch.where(flip, -width, width)
    matrices[:, 0, 2] = 2.0 * left + width - 1.0
    matrices[:, 1, 1] = height
    matrices[:, 1, 2] = 2.0 * top + height - 1.0
    places = F.affine_grid(matrices, list(pictures.shape), align_corners=False)
    shown: Tensor = F.grid_sample(pictures, places, mode="bilinear", padding_mode="border", align_corners=False)
    return shown


def brightened(pictures: Tensor, factors: Tensor) -> Tensor:
    """Return pictures [N, 3, H, W] times each one's factor [N], in 0..1."""
    return (pictures * factors[:, None, None, None]).clamp(0.0, 1.0)


def contrasted(pictures: Tensor, factors: Tensor) -> Tensor:
    """Return pictures [N, 3, H, W], of each its difference to its own mean brightness times a factor [N], in 0..1."""
    return _blended(pictures, _brightness(pictures).mean(dim=(2, 3), keepdim=True), factors)


def saturated(pictures: Tensor, factors: Tensor) -> Tensor:
    """Return pictures [N, 3, H, W], of each its difference to the same in grey times a factor [N], in 0..1."""
    return _blended(pictures, _brightness(pictures), factors)


def turned(pictures: Tensor, turns: Tensor) -> Tensor:
    """Return pictures [N, 3, H, W], all hues of each turned by that share of a circle [N], in 0..1; greys stay."""
    forth = torch.tensor(_TO_YIQ, dtype=torch.float64, device=pictures.device)
    # Exact about grey: a grey picture has no colour to turn.
    forth[1:] -= forth[1:].mean(dim=1, keepdim=True)
    angles = 2.0 * math.pi * turns.double()
    turn = torch.eye(3, dtype=torch.float64, device=pictures.device).repeat(len(pictures), 1, 1)
    turn[:, 1, 1] = turn[:, 2, 2] = angles.cos()
    turn[:, 2, 1] = angles.sin()
    turn[:, 1, 2] = -turn[:, 2, 1]
    matrices = (torch.linalg.inv(forth) @ turn @ forth).to(pictures.dtype)
    colours: Tensor = matrices @ pictures.flatten(2)
    return colours.view_as(pictures).clamp(0.0, 1.0)


def blurred(pictures: Tensor, sigmas: Tensor) -> Tensor:
    """Return pictures [N, C, H, W], each blurred by a Gaussian of that many pixels [N]; edges are mirrored.

    The window is a tenth of the side, at least 3 pixels and odd.
    """
    count, channels, height, width = pictures.shape
    reach = max(min(height, width) // 20, 1)
    offsets = torch.arange(-reach, reach + 1, dtype=pictures.dtype, device=pictures.device)
    kernels = (-0.5 * (offsets / sigmas[:, None]).square()).softmax(dim=1)
    kernels = kernels.repeat_interleave(channels, dim=0)[:, None]  # [N * C, 1, window]
    rows = F.pad(pictures, (reach,) * 4, mode="reflect").view(1, count * channels, height + 2 * reach, -1)
    rows = F.conv2d(rows, kernels[:, :, :, None], groups=count * channels)
    return F.conv2d(rows, kernels[:, :, None, :], groups=count * channels).view(count, channels, height, width)


def _brightness(pictures: Tensor) -> Tensor:
    return (pictures * pictures.new_tensor(_LUMA)[:, None, None]).sum(dim=1, keepdim=True)


def _blended(pictures: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    return torch.lerp(others.expand_as(pictures), pictures, factors[:, None, None, None]).clamp(0.0, 1.0)


def light(images: Tensor) -> Tensor:
    """Return photos, uint8 [B, C, H, W], each flipped left to right or not and shifted by up to a 16th of its side.

    Shifts are whole pixels, up or down and to a side; what comes into view repeats the edge. Random numbers are those
    of the device's own generator, so a training that restores it repeats them.
    """
    count, channels, height, width = images.shape
    device = images.device
    flipped = torch.rand(count, 1, device=device) < 0.5
    rows = _shifted(count, height, device)
    columns = _shifted(count, width, device)
    columns = torch.where(flipped, width - 1 - columns, columns)
    shown = (rows[:, :, None] * width + columns[:, None, :]).reshape(count, 1, height * width)
    # One gather of flat pixels: ten times quicker on a CPU than indexing by photo, row and column.
    return images.flatten(2).gather(2, shown.expand(-1, channels, -1)).reshape(images.shape)


def _shifted(count: int, length: int, device: torch.device) -> Tensor:
    """Return, for each photo and each place of a side, the place whose pixel is shown there, int64 [B, length]."""
    reach = length // 16
    shift = torch.randint(-reach, reach + 1, (count, 1), device=device)
    return (torch.arange(length, device=device) + shift).clamp(0, length - 1)

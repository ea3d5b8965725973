"""Structural similarity (Wang et al. 2004, "Image quality assessment", equation 13, constants 0.01 and 0.03)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError
from .precision import full_precision, widened

_C1, _C2 = 0.01**2, 0.03**2  # of values in 0..1: the range is fixed, never taken from a batch


def ssim(pictures: Tensor, target: Tensor, *, window: int = 11, sigma: float | None = 1.5) -> Tensor:
    """Return the structural similarity of each photo, float [B], 1 for equal pictures; [B, C, H, W] in 0..1 each.

    The mean over channels and over the windows that lie inside the picture. window: side in pixels, odd. sigma: of the
    Gaussian window, None for a uniform one. Raises ConfigError where the window is even or larger than the picture.
    """
    return ssim_map(pictures, target, window=window, sigma=sigma).mean(dim=(1, 2, 3))


def ssim_map(pictures: Tensor, target: Tensor, *, window: int = 11, sigma: float | None = 1.5) -> Tensor:
    """Return the similarity at every window inside the picture, float [B, C, H - window + 1, W - window + 1]."""
    height, width = pictures.shape[-2:]
    if window % 2 == 0 or window > min(height, width):
        raise ConfigError(
            f"an SSIM window of {window} does not fit pictures of {height} x {width} pixels; name an odd number up to "
            f"{min(height, width)}"
        )
    with full_precision(pictures.device.type):
        first, second = widened(pictures), widened(target)
        rows, columns = _bands(height, window, sigma, first), _bands(width, window, sigma, first)
        # Weighted means as two products with a band matrix: no convolution, which a GPU would do in TF32, too coarse
        # for the difference of squares below.
        made = torch.stack([first, first * first + second * second, first * second])
        mean_1, squares, product = (rows @ made @ columns.T).unbind()
        mean_2 = rows @ second @ columns.T  # apart, so that no gradient is computed where the target needs none
        level = mean_1 * mean_1 + mean_2 * mean_2
        covariance = product - mean_1 * mean_2
        light = (2 * mean_1 * mean_2 + _C1) / (level + _C1)
        return light * (2 * covariance + _C2) / (squares - level + _C2)  # squares - level: the sum of the variances


def ssim_loss(pictures: Tensor, target: Tensor, *, window: int = 11) -> Tensor:
    """Return 1 - SSIM times the number of values of a picture, a mean over photos; [B, C, H, W] in 0..1 to [].

    The factor C * H * W puts it on the scale of `bce` and `mse`, sums over the picture. Without it the loss is at most
    2 beside a KL that is summed over dimensions, and the latents fall silent.
    """
    return target[0].numel() * (1.0 - ssim(pictures, target, window=window)).mean()


def _bands(size: int, window: int, sigma: float | None, like: Tensor) -> Tensor:
    """Return the matrix [size - window + 1, size] whose rows hold the window's weights, which sum to 1."""
    places = torch.arange(window, dtype=torch.float64) - window // 2
    weights = torch.ones_like(places) if sigma is None else torch.exp(-0.5 * (places / sigma).square())
    weights = weights / weights.sum()
    count = size - window + 1
    bands = torch.zeros(count, size, dtype=torch.float64)
    lines = torch.arange(count)[:, None]
    bands[lines, lines + torch.arange(window)] = weights
    return bands.to(device=like.device, dtype=like.dtype)

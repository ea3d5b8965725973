"""How far a decoded picture is from its photo: summed over the picture, averaged over photos."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import widened
from .ssim import ssim_loss

Reconstruction = Literal["bce", "mse", "ssim"]


def bce(logits: Tensor, target: Tensor) -> Tensor:
    """Return the binary cross-entropy of pictures in nats, summed over each picture, averaged over photos.

    logits: the decoder's output before its sigmoid, [B, ...]; target: values in 0..1 of the same shape. Returns [].
    Computed from logits, it stays finite where `F.binary_cross_entropy` of a saturated sigmoid does not.
    """
    total = F.binary_cross_entropy_with_logits(widened(logits), widened(target), reduction="sum")
    return total / target.shape[0]


def mse(pictures: Tensor, target: Tensor) -> Tensor:
    """Return the squared error of pictures, summed over each picture, averaged over photos.

    pictures, target: values in 0..1, [B, ...]. Returns []. Up to a constant this is the negative log-likelihood of a
    Gaussian decoder of variance 1/2, so beside it a KL weighs more than beside `bce`.
    """
    return F.mse_loss(widened(pictures), widened(target), reduction="sum") / target.shape[0]


def reconstruction_loss(kind: Reconstruction, logits: Tensor, target: Tensor, *, ssim_window: int = 11) -> Tensor:
    """Return `bce` of the logits, or `mse` or `ssim_loss` of their sigmoid; [B, C, H, W] to []."""
    if kind == "bce":
        return bce(logits, target)
    pictures = torch.sigmoid(widened(logits))
    if kind == "mse":
        return mse(pictures, target)
    return ssim_loss(pictures, target, window=ssim_window)

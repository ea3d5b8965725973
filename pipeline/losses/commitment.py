"""What draws an encoder and its codebook together (van den Oord et al. 2017, arXiv 1711.00937, equation 3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .precision import widened


def commitment(latents: Tensor, codes: Tensor) -> Tensor:
    """Return the squared distance of latents to their codes, summed over each photo, averaged over photos.

    latents: the encoder's output, [B, ...]; codes: the chosen codebook rows of the same shape. Returns []. The third
    term of equation 3: the gradient reaches the encoder only, whatever updates the codes.
    """
    return F.mse_loss(widened(latents), widened(codes.detach()), reduction="sum") / latents.shape[0]


def codebook_loss(latents: Tensor, codes: Tensor) -> Tensor:
    """Return the same number as `commitment`, [], whose gradient reaches the codes only: the equation's second term."""
    return F.mse_loss(widened(codes), widened(latents.detach()), reduction="sum") / latents.shape[0]

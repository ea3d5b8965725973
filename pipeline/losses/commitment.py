"""What holds an encoder near its codebook (van den Oord et al. 2017, arXiv 1711.00937, equation 3, third term)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def commitment(latents: Tensor, codes: Tensor) -> Tensor:
    """Return the squared distance of latents to their codes, summed over each photo, averaged over photos.

    latents: the encoder's output, [B, ...]; codes: the chosen codebook rows of the same shape. Returns []. The gradient
    reaches the encoder only: the codes are held fixed here, whatever updates them.
    """
    return F.mse_loss(latents.float(), codes.detach().float(), reduction="sum") / latents.shape[0]

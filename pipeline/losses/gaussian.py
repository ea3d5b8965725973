"""Terms of diagonal Gaussians, in nats (Kingma and Welling 2013, arXiv 1312.6114, appendix B)."""

from __future__ import annotations

import torch
from torch import Tensor


def kl_per_dimension(mean: Tensor, log_var: Tensor) -> Tensor:
    """Return KL(N(mean, exp(log_var)) || N(0, 1)) of each photo and dimension, in nats; [B, d] to [B, d]."""
    return 0.5 * (mean.square() + log_var.exp() - 1.0 - log_var)


def kl_to_standard_normal(mean: Tensor, log_var: Tensor) -> Tensor:
    """Return KL(N(mean, exp(log_var)) || N(0, I)) in nats, summed over dimensions, a mean over photos; [B, d] to []."""
    return kl_per_dimension(mean, log_var).sum(dim=1).mean()


def reparameterise(mean: Tensor, log_var: Tensor) -> Tensor:
    """Return a sample of N(mean, exp(log_var)) that is differentiable in both, [B, d]; torch's generator draws it."""
    return mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)

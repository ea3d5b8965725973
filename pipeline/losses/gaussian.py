"""Terms of diagonal Gaussians, in nats (Kingma and Welling 2013, arXiv 1312.6114, appendix B)."""

from __future__ import annotations

import torch
from torch import Tensor

from .collectives import sum_over_ranks
from .precision import widened


def kl_per_dimension(mean: Tensor, log_var: Tensor) -> Tensor:
    """Return KL(N(mean, exp(log_var)) || N(0, 1)) of each photo and dimension, in nats; [B, d] to [B, d]."""
    mean, log_var = widened(mean), widened(log_var)
    return 0.5 * (mean.square() + log_var.exp() - 1.0 - log_var)


def kl_to_standard_normal(mean: Tensor, log_var: Tensor) -> Tensor:
    """Return KL(N(mean, exp(log_var)) || N(0, I)) in nats, summed over dimensions, a mean over photos; [B, d] to []."""
    return kl_per_dimension(mean, log_var).sum(dim=1).mean()


def kl_with_free_bits(mean: Tensor, log_var: Tensor, free_bits: float, *, over_ranks: bool) -> Tensor:
    """Return the KL in nats of which every dimension's first `free_bits` nats cost nothing less; [B, d] to [].

    The sum over dimensions of max(KL_d, free_bits), KL_d the mean over photos (Kingma et al. 2016, arXiv 1606.04934,
    appendix C.8): a dimension below the bound has no gradient, so it is not pressed into silence. With over_ranks the
    mean of all ranks decides which dimensions those are, not each rank's own, and every rank must call this; the value
    and gradient stay those of the rank's own photos, so that their mean over ranks is that of the whole batch. At 0
    nothing is compared and this is `kl_to_standard_normal`.
    """
    per_dimension = kl_per_dimension(mean, log_var).mean(dim=0)
    if free_bits == 0:
        return per_dimension.sum()
    decides = per_dimension.detach()
    if over_ranks:
        # Sums in float64, so that no rounding by the number of ranks puts a dimension on the other side of the bound.
        sums = kl_per_dimension(mean.detach().double(), log_var.detach().double()).sum(dim=0)
        sums = sum_over_ranks(torch.cat([sums, sums.new_full((1,), float(mean.shape[0]))]))
        decides = sums[:-1] / sums[-1]
    free = decides <= free_bits  # not NaN: that must reach the total
    return torch.where(free, free_bits, per_dimension).sum()


def active_units(means: Tensor, threshold: float = 0.01) -> int:
    """Return in how many dimensions the posterior's mean varies over photos by more than `threshold`; [N, d].

    Burda et al. 2015, arXiv 1509.00519, section 5.2. A dimension that says nothing of its photo has the mean 0.
    """
    return int((means.double().var(dim=0, correction=0) > threshold).sum())


def reparameterise(mean: Tensor, log_var: Tensor) -> Tensor:
    """Return a sample of N(mean, exp(log_var)) that is differentiable in both, [B, d]; torch's generator draws it."""
    return mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)

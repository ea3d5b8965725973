"""Losses: pure functions of tensors, one family a file; every reduction is stated and gives a mean over photos."""

from __future__ import annotations

from .commitment import codebook_loss, commitment
from .contrastive import info_nce, info_nce_in_batch, nt_xent, sup_con, triplet
from .distillation import balanced_shares, centred_shares, distillation
from .gaussian import active_units, kl_per_dimension, kl_to_standard_normal, kl_with_free_bits, reparameterise
from .perceptual import feature_distance
from .rebalance import RunningMean
from .reconstruction import Reconstruction, bce, mse, reconstruction_loss
from .relations import relation
from .ssim import ssim, ssim_loss

__all__ = [
    "Reconstruction",
    "RunningMean",
    "active_units",
    "balanced_shares",
    "bce",
    "centred_shares",
    "codebook_loss",
    "commitment",
    "distillation",
    "feature_distance",
    "info_nce",
    "info_nce_in_batch",
    "kl_per_dimension",
    "kl_to_standard_normal",
    "kl_with_free_bits",
    "mse",
    "nt_xent",
    "reconstruction_loss",
    "relation",
    "reparameterise",
    "ssim",
    "ssim_loss",
    "sup_con",
    "triplet",
]

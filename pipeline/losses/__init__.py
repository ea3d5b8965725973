"""Losses: pure functions of tensors, one family a file; every reduction is stated and gives a mean over photos."""

from __future__ import annotations

from .commitment import codebook_loss, commitment
from .gaussian import kl_per_dimension, kl_to_standard_normal, reparameterise
from .perceptual import feature_distance
from .reconstruction import Reconstruction, bce, mse, reconstruction_loss
from .ssim import ssim, ssim_loss

__all__ = [
    "Reconstruction",
    "bce",
    "codebook_loss",
    "commitment",
    "feature_distance",
    "kl_per_dimension",
    "kl_to_standard_normal",
    "mse",
    "reconstruction_loss",
    "reparameterise",
    "ssim",
    "ssim_loss",
]

"""Losses: pure functions of tensors, one family a file; every reduction is stated and gives a mean over photos."""

from __future__ import annotations

from .commitment import commitment
from .gaussian import kl_per_dimension, kl_to_standard_normal, reparameterise
from .reconstruction import Reconstruction, bce, mse, reconstruction_loss

__all__ = [
    "Reconstruction",
    "bce",
    "commitment",
    "kl_per_dimension",
    "kl_to_standard_normal",
    "mse",
    "reconstruction_loss",
    "reparameterise",
]

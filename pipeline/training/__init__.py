"""Training: pixel parts to a bundle, codes to a prior, on Ray Train; the loop also runs without Ray."""

from __future__ import annotations

from .codes import CodeRows, Codes, CodesLoader, read_codes
from .config import OlderThan, PriorTrainConfig, TrainConfig, train_period
from .driver import train_bundle, train_prior
from .loader import PixelLoader, PixelRows
from .loop import Loop
from .progress import TrainProgress

__all__ = [
    "CodeRows",
    "Codes",
    "CodesLoader",
    "Loop",
    "OlderThan",
    "PixelLoader",
    "PixelRows",
    "PriorTrainConfig",
    "TrainConfig",
    "TrainProgress",
    "read_codes",
    "train_bundle",
    "train_period",
    "train_prior",
]

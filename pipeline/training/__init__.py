"""Training: pixel parts to a bundle, on Ray Train; the loader and the loop also run without Ray."""

from __future__ import annotations

from .config import OlderThan, TrainConfig, train_period
from .driver import train_bundle
from .loader import PixelLoader, PixelRows
from .loop import Loop
from .progress import TrainProgress

__all__ = [
    "Loop",
    "OlderThan",
    "PixelLoader",
    "PixelRows",
    "TrainConfig",
    "TrainProgress",
    "train_bundle",
    "train_period",
]

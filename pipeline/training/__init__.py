"""Training: pixel parts to a bundle, on Ray Train; the loader and the loop also run without Ray."""

from __future__ import annotations

from .codes import CodeRows, Codes, CodesLoader, read_codes
from .config import OlderThan, TrainConfig, train_period
from .driver import train_bundle
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
    "TrainConfig",
    "TrainProgress",
    "read_codes",
    "train_bundle",
    "train_period",
]

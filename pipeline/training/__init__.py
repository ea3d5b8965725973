"""Training: pixel parts to a bundle, codes to a prior, on Ray Train; the loop also runs without Ray."""

from __future__ import annotations

from .codes import CodeRows, Codes, CodesLoader, read_codes
from .config import OlderThan, PriorTrainConfig, TrainConfig, train_period
from .driver import train_job
from .loader import PixelLoader, PixelRows
from .loop import Line, Loop
from .prior_job import PriorJob
from .progress import TrainProgress
from .worker import TrainJob

__all__ = [
    "CodeRows",
    "Codes",
    "CodesLoader",
    "Line",
    "Loop",
    "OlderThan",
    "PixelLoader",
    "PixelRows",
    "PriorJob",
    "PriorTrainConfig",
    "TrainConfig",
    "TrainJob",
    "TrainProgress",
    "read_codes",
    "train_job",
    "train_period",
]

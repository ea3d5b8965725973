"""Training: pixel parts to a bundle, codes to a prior, on Ray Train; the loop also runs without Ray."""

from __future__ import annotations

from .codebooks_job import CodebooksJob, train_codebooks
from .codes import Codes, CodesLoader, read_codes
from .config import OlderThan, PriorTrainConfig, TrainConfig, train_period
from .driver import train_job
from .here import train_here
from .loader import PixelLoader
from .loop import Line, Loop
from .part_rows import FeatureRows, PartRows
from .prior_job import PriorJob
from .progress import TrainProgress
from .worker import FIT_PHOTOS, TrainJob

__all__ = [
    "FIT_PHOTOS",
    "CodebooksJob",
    "Codes",
    "CodesLoader",
    "FeatureRows",
    "Line",
    "Loop",
    "OlderThan",
    "PartRows",
    "PixelLoader",
    "PriorJob",
    "PriorTrainConfig",
    "TrainConfig",
    "TrainJob",
    "TrainProgress",
    "read_codes",
    "train_codebooks",
    "train_here",
    "train_job",
    "train_period",
]

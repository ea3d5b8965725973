"""The precision of losses and codebooks: at least float32, whatever autocast says."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def full_precision(device_type: str) -> AbstractContextManager[Any]:
    """Return a context without autocast; one that does nothing where none is on, as when an encoder is exported."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def widened(values: Tensor) -> Tensor:
    """Return values in float32; float64 stays."""
    return values if values.dtype == torch.float64 else values.float()

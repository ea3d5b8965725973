"""Latents as NumPy arrays: what metrics compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LatentArrays:
    """Latents of n photos: mean float32 [n, d]; log_var float32 [n, d] or None; codes int32 [n, h * w] or None."""

    mean: Float32
    log_var: Float32 | None = None
    codes: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        """Return n."""
        return int(self.mean.shape[0])

    def take(self, rows: Any) -> LatentArrays:
        """Return the latents of `rows`: a slice, an integer array of any shape [...], or a mask [n]."""
        return LatentArrays(
            mean=self.mean[rows],
            log_var=None if self.log_var is None else self.log_var[rows],
            codes=None if self.codes is None else self.codes[rows],
        )

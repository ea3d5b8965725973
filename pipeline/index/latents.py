"""Latents as NumPy arrays: what metrics compare."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Unavailable

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Rows = NDArray[np.int64]

HELD_BYTES = 1 << 30
"""A matrix of latents above so many bytes lies in a file without a name, mapped: the kernel takes its pages back when
memory is short, and the file is gone with the array, however the process ends."""
_CHECKED = 1 << 16  # rows looked at at a time: the answers of millions would be as many bytes as they have numbers


@dataclass(frozen=True, slots=True)
class LatentArrays:
    """Latents of n photos: mean float32 [n, d]; log_var float32 [n, d] or None; codes int32 [n, h * w] or None.

    bags: what an index by `codes` knows of photos in the place of their codes, float32 [n, V] of V codes; or None.
    """

    mean: Float32
    log_var: Float32 | None = None
    codes: NDArray[np.int32] | None = None
    bags: Float32 | None = None

    def __len__(self) -> int:
        """Return n."""
        return int(self.mean.shape[0])

    def missing(self, names: Sequence[str]) -> list[str]:
        """Return which of these arrays (mean, log_var, codes) are not here."""
        return [name for name in names if self._held(name) is None]

    def not_finite(self, names: Sequence[str]) -> Rows:
        """Return the rows where one of these arrays holds NaN or infinity."""
        bad = np.zeros(len(self), np.bool_)
        for start in range(0, len(self), _CHECKED):
            block = np.s_[start : start + _CHECKED]
            for name in names:
                bad[block] |= ~np.isfinite(self._held(name)[block]).all(axis=1)
        return np.flatnonzero(bad)

    def take(self, rows: Any) -> LatentArrays:
        """Return the latents of `rows`: a slice, an integer array of any shape [...], or a mask [n]."""
        return LatentArrays(
            mean=self.mean[rows],
            log_var=None if self.log_var is None else self.log_var[rows],
            codes=None if self.codes is None else self.codes[rows],
            bags=None if self.bags is None else self.bags[rows],
        )

    def _held(self, name: str) -> Any:
        return self.bags if name == "codes" and self.codes is None else getattr(self, name)


def latents_matrix(rows: int, width: int, kind: Any = np.float32) -> Any:
    """Return a matrix to be filled, in memory or, above HELD_BYTES, in a mapped file; Unavailable for a full disk."""
    size = rows * width * np.dtype(kind).itemsize
    if size <= HELD_BYTES:
        return np.empty((rows, width), kind)
    with tempfile.TemporaryFile(prefix="latents-") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)  # a page that the disk has no room for would end the process
            held = mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise Unavailable(
                f"{rows:,} rows of latents need {size / 2**30:.1f} GiB of temporary files ({error}); make room in "
                f"{tempfile.gettempdir()}, or set TMPDIR to a folder that has it"
            ) from error
    return np.frombuffer(held, kind).reshape(rows, width)

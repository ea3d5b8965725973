"""What latents use of the room they have: active units and nats of Gaussian models, codes of vector-quantised ones.

What only the quantizer sees while it trains (error, near-duplicates, restarts) it tells itself: `Quantizer.scalars`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..losses.gaussian import active_units, kl_per_dimension

_ROWS = 1 << 14  # rows turned to float64 at a time


def gaussian_measures(mean: NDArray[np.float32], log_var: NDArray[np.float32] | None) -> dict[str, float]:
    """Return `active_units` and, where the model is Gaussian, `kl` in nats a photo; mean and log_var float [n, d].

    A unit is active when its mean varies over photos by more than 0.01 (Burda et al. 2015, arXiv 1509.00519).
    """
    found = {"active_units": float(active_units(torch.from_numpy(np.asarray(mean, np.float32))))}
    if log_var is not None:
        found["kl"] = float(dimension_kl(mean, log_var).sum())
    return found


def dimension_kl(mean: NDArray[np.float32], log_var: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return every dimension's KL to the standard normal in nats, a mean over photos; [n, d] twice to float64 [d].

    A dimension near 0 says nothing of the photo. Raises InputError without photos or for arrays that do not fit.
    """
    if mean.shape != log_var.shape or not len(mean):
        raise InputError(f"means {list(mean.shape)} and log-variances {list(log_var.shape)} do not fit, or are empty")
    total = np.zeros(mean.shape[1], np.float64)
    for start in range(0, len(mean), _ROWS):
        rows = np.s_[start : start + _ROWS]
        wide = torch.from_numpy(np.asarray(mean[rows], np.float64)), torch.from_numpy(np.asarray(log_var[rows], float))
        total += kl_per_dimension(*wide).sum(dim=0).numpy()
    return total / len(mean)


def code_measures(codes: NDArray[np.integer], num_codes: int) -> dict[str, float]:
    """Return `used_codes` and `perplexity`, exp of the entropy of how often a code is used, over all photos.

    codes: integers [n, cells] in 0..num_codes - 1. Over all photos at once: the mean over batches of a batch's
    perplexity grows with the batch. Raises InputError for a code that the codebook does not have.
    """
    flat = np.asarray(codes).reshape(-1)
    if not flat.size or flat.min() < 0 or flat.max() >= num_codes:
        seen = f"{flat.min()}..{flat.max()}" if flat.size else "none"
        raise InputError(f"codes are {seen}; a codebook of {num_codes} has 0..{num_codes - 1}")
    counts = np.bincount(flat, minlength=num_codes).astype(np.float64)
    shares = counts[counts > 0] / counts.sum()
    return {"used_codes": float(len(shares)), "perplexity": float(np.exp(-np.sum(shares * np.log(shares))))}

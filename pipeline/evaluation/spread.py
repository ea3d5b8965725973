"""Do latents use their dimensions, or have they collapsed? Measures without labels."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError

Real = TypeVar("Real", np.float32, np.float64)

_EPSILON = 1e-7  # as in RankMe, for float32 latents


def effective_rank(vectors: ArrayLike, *, centred: bool = False) -> float:
    """Return exp of the entropy of the singular values' shares of vectors float [n, d]: 1 for a line, d for a ball.

    RankMe (Garrido et al. 2023, arXiv 2210.02885, equation 1); there, and so by default, not centred: latents that are
    all near one vector count as collapsed. centred: the rank of their spread around the mean. All-zero vectors have 0.
    """
    matrix = _matrix(vectors)
    if centred:
        matrix = matrix - matrix.mean(axis=0)
    if len(matrix) > matrix.shape[1]:
        matrix = np.asarray(np.linalg.qr(matrix, mode="r"))  # the same singular values, of a square matrix
    singular = np.linalg.svd(matrix, compute_uv=False)
    total = singular.sum()
    if total == 0:
        return 0.0
    shares = singular / total + _EPSILON
    return float(np.exp(-np.sum(shares * np.log(shares))))


def unit_spread(vectors: ArrayLike) -> float:
    """Return the mean over dimensions of the standard deviation of unit-length vectors [n, d], times sqrt(d).

    About 1 for directions that are spread evenly, 0 where all photos have one direction (SimSiam, Chen and He 2021,
    arXiv 2011.10566, section 4.1). Zero vectors have no direction and stay zero.
    """
    matrix = _matrix(vectors)
    return float(unit_rows(matrix).std(axis=0).mean() * np.sqrt(matrix.shape[1]))


def unit_rows(matrix: NDArray[Real]) -> NDArray[Real]:
    """Return the rows of a matrix, float [n, d], at length 1, in its own precision; zero rows stay zero."""
    length = np.linalg.norm(matrix, axis=1, keepdims=True)
    unit: NDArray[Real] = np.divide(matrix, length, out=np.zeros_like(matrix), where=length > 0)
    return unit


def spread_measures(vectors: ArrayLike) -> dict[str, float]:
    """Return `effective_rank`, `effective_rank_centred` and `unit_spread` of vectors [n, d]."""
    return {
        "effective_rank": effective_rank(vectors),
        "effective_rank_centred": effective_rank(vectors, centred=True),
        "unit_spread": unit_spread(vectors),
    }


def _matrix(vectors: ArrayLike) -> NDArray[np.float64]:
    matrix = np.asarray(vectors, np.float64)
    if matrix.ndim != 2 or not matrix.size:
        raise InputError(f"vectors of shape {list(matrix.shape)} are no matrix [n, d] of at least one row")
    return matrix

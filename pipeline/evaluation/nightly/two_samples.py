"""Are two sets of vectors of one distribution? Two answers: a kernel's distance, and a classifier that tries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .intervals import auc_interval

Float64 = NDArray[np.float64]

PERMUTATIONS = 500
_FOLDS = 5
_STEPS = 60


@dataclass(frozen=True, slots=True)
class Mmd:
    """value: the unbiased squared MMD, 0 on average where nothing differs, and then below it as often as above.

    p: the share of PERMUTATIONS seeded relabellings, this one too, whose value is at least as large.
    """

    value: float
    p: float


def mmd(one: Float64, other: Float64, *, paired: bool = False, seed: int = 0) -> Mmd:
    """Return the MMD of vectors [m, d] and [n, d] by a Gaussian kernel of the median distance (Gretton et al. 2012,
    JMLR 13, equation 3 and section 8).

    paired: row i of both is one photo, so that relabellings exchange the two. m, n: at least 2.
    """
    pooled, count = np.concatenate([one, other]), len(one)
    kernel = _kernel(pooled)
    dice = np.random.default_rng(seed)
    first = np.zeros((len(pooled), PERMUTATIONS + 1))
    first[:count, 0] = 1
    if paired:
        flips = dice.integers(0, 2, size=(count, PERMUTATIONS))
        first[:count, 1:], first[count:, 1:] = flips, 1 - flips
    else:
        mixed = dice.permuted(np.tile(np.arange(len(pooled)), (PERMUTATIONS, 1)), axis=1)[:, :count]
        first[mixed.T, np.arange(1, PERMUTATIONS + 1)] = 1
    inside = np.sum(first * (kernel @ first), axis=0)
    touching = kernel.sum(axis=0) @ first
    across, outside = touching - inside, kernel.sum() - 2 * touching + inside
    m, n = count, len(other)
    values = inside / (m * (m - 1)) + outside / (n * (n - 1)) - 2 * across / (m * n)
    return Mmd(float(values[0]), float(np.mean(values >= values[0] - 1e-12)))


def _kernel(rows: Float64) -> Float64:
    """Return the kernel of rows among each other, 0 of each with itself, which the unbiased estimate leaves out."""
    squares = np.sum(rows * rows, axis=1)
    apart = np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0)
    usual = float(np.median(apart[np.triu_indices(len(rows), 1)]))
    kernel: Float64 = np.exp(-apart / (2 * (usual or 1.0)))
    np.fill_diagonal(kernel, 0)
    return kernel


def classifier_auc(
    one: Float64, other: Float64, *, paired: bool = False, seed: int = 0
) -> tuple[float, float, float, Float64]:
    """Return how well `other` [n, d] is told from `one` [m, d], 0.5 for not at all, its interval, and other's scores.

    The area under the ROC curve of a logistic regression (standardised, L2 of weight 1) that scores each of five folds
    from the other four (Lopez-Paz and Oquab 2017, arXiv 1610.06545); the interval is DeLong's, which takes the scores
    as given. paired: row i of both is one photo, which is in one fold with both, or the one would answer for the other.
    """
    dice = np.random.default_rng(seed)
    sides = [dice.permutation(len(one)) % _FOLDS]
    sides.append(sides[0] if paired else dice.permutation(len(other)) % _FOLDS)
    rows, folds = np.concatenate([one, other]), np.concatenate(sides)
    truth = np.repeat([0.0, 1.0], [len(one), len(other)])
    scores = np.empty(len(rows))
    for fold in range(_FOLDS):
        asked = folds == fold
        mean, spread = rows[~asked].mean(axis=0), rows[~asked].std(axis=0)
        scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 1e-6 * max(spread.max(), 1e-300))
        weights = logistic_weights((rows[~asked] - mean) * scale, truth[~asked])
        scores[asked] = (rows[asked] - mean) * scale @ weights[:-1] + weights[-1]
    return *auc_interval(scores[: len(one)], scores[len(one) :]), scores[len(one) :]


def logistic_weights(rows: Float64, truth: Float64, strength: float = 1.0) -> Float64:
    """Return the weights [d] and the intercept, [d + 1], that fit truth [n] of 0 and 1: as scikit-learn's, C = 1."""
    # scipy is there wherever a release is made (scikit-learn brings it); whoever reads one need not have it.
    from scipy.optimize import minimize

    signs = 2 * truth - 1

    def loss(weights: Float64) -> tuple[float, Float64]:
        margins = signs * (rows @ weights[:-1] + weights[-1])
        pulls = -signs * np.exp(-np.logaddexp(0, margins))  # -sign / (1 + e^margin)
        gradient = np.append(pulls @ rows + strength * weights[:-1], pulls.sum())
        return float(np.logaddexp(0, -margins).sum() + strength / 2 * weights[:-1] @ weights[:-1]), gradient

    found = minimize(loss, np.zeros(rows.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": _STEPS})
    return np.asarray(found.x, np.float64)

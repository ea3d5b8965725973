"""Linear probe: how much of a label a straight cut through frozen latents tells (Alain and Bengio 2016, 1610.01644)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError, InputError

STRENGTHS = (0.01, 0.1, 1.0, 10.0)
_VALIDATION = 0.2
_STEPS = 200
_SHARE_OF_VARIANCE = 1e-6  # a dimension below this share of the widest one's is rounding, not a feature


@dataclass(frozen=True, slots=True)
class Probe:
    """accuracy in 0..1 over the asked rows; correct: bool [m], for intervals; c: the inverse regularisation chosen.

    converged: whether the optimiser finished. Where it did not the accuracy is of its last step.
    """

    accuracy: float
    correct: NDArray[np.bool_]
    c: float
    converged: bool


def linear_probe(
    known: ArrayLike,
    known_labels: ArrayLike,
    asked: ArrayLike,
    labels: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    strengths: Sequence[float] = STRENGTHS,
    steps: int = _STEPS,
    seed: int = 0,
) -> Probe:
    """Return how well logistic regression on known latents float [n, d] names the labels of asked ones float [m, d].

    Latents are standardised by the known rows; the inverse strength C is the one with the best accuracy on a seeded
    fifth of the known rows (the smaller of equal ones), never on the asked rows; then all known rows are fitted.
    groups [n]: contributors or items of the known rows; none is on both sides of that choice. steps: of L-BFGS a fit.
    Raises InputError where the known rows hold fewer than two labels.
    """
    rows, others = np.asarray(known, np.float64), np.asarray(asked, np.float64)
    names, truth = np.asarray(known_labels), np.asarray(labels)
    check_fit(rows, names, others, truth)
    if not strengths:
        raise ConfigError("no strengths are given; name at least one value of C")
    if len(np.unique(names)) < 2:
        raise InputError(f"the known rows hold {len(np.unique(names))} label; a probe tells at least two apart")
    rows, others = in_row_space(*standardised(rows, others))
    chosen = float(strengths[0])
    if len(strengths) > 1:
        held = held_out(len(rows), groups, seed=seed)
        if len(np.unique(names[~held])) < 2:
            raise InputError(
                f"{len(rows)} known rows leave {int((~held).sum())} of one label to fit; give more rows or groups"
            )
        scores = []
        for strength in strengths:
            fitted, _ = _fitted(rows[~held], names[~held], strength, steps)
            scores.append(np.mean(fitted.predict(rows[held]) == names[held]))
        chosen = float(strengths[int(np.argmax(scores))])
    fitted, converged = _fitted(rows, names, chosen, steps)
    correct = np.asarray(fitted.predict(others) == truth, np.bool_)
    return Probe(float(correct.mean()), correct, chosen, converged)


def standardised(
    known: NDArray[np.float64], asked: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both sides [n, d] and [m, d] with the known rows' mean 0 and spread 1; dead dimensions become 0."""
    mean, spread = known.mean(axis=0), known.std(axis=0)
    alive = spread > _SHARE_OF_VARIANCE * max(float(spread.max()), np.finfo(np.float64).tiny)
    scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=alive)
    return (known - mean) * scale, (asked - mean) * scale


def in_row_space(
    known: NDArray[np.float64], asked: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both sides [n, d] and [m, d] along axes that span the known rows, [n, r] and [m, r] with r <= min(n, d).

    A linear model with an L2 penalty has its weights in that span, so what it says of any row stays the same, and of
    wide latents it is found in a fraction of the time.
    """
    if known.shape[1] <= known.shape[0]:
        return known, asked
    with one_thread():
        axes = np.linalg.svd(known, full_matrices=False)[2].T
    return known @ axes, asked @ axes


def one_thread() -> AbstractContextManager[Any]:
    """Return a context of one BLAS and OpenMP thread.

    Thousands of small steps do not gain by more, and on a busy machine threads that wait for each other took fifteen
    times as long.
    """
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(limits=1)
    return limits


def held_out(count: int, groups: ArrayLike | None, *, share: float = _VALIDATION, seed: int = 0) -> NDArray[np.bool_]:
    """Return which of `count` rows, or of their groups whole, are the seeded `share` that is kept for validation.

    At least one and never all. Raises InputError where that cannot be.
    """
    owners = np.arange(count) if groups is None else np.asarray(groups)
    if len(owners) != count:
        raise InputError(f"{len(owners)} groups and {count} rows do not fit; give one a row")
    values, numbers = np.unique(owners, return_inverse=True)
    if len(values) < 2:
        raise InputError(f"{count} rows of {len(values)} groups cannot be divided; give at least two groups")
    wanted = min(len(values) - 1, max(1, round(share * len(values))))
    chosen = np.random.default_rng(seed).permutation(len(values))[:wanted]
    held: NDArray[np.bool_] = np.isin(numbers, chosen)
    return held


def check_fit(known: NDArray[Any], names: NDArray[Any], asked: NDArray[Any], truth: NDArray[Any]) -> None:
    """Raise InputError unless latents [n, d] with labels [n] and latents [m, d] with labels [m] fit together."""
    fit = known.ndim == asked.ndim == 2 and known.shape[1] == asked.shape[1]
    if not fit or len(known) != len(names) or len(asked) != len(truth) or not len(asked):
        raise InputError(
            f"known latents {list(known.shape)} with {len(names)} labels and asked ones {list(asked.shape)} with "
            f"{len(truth)} labels do not fit, or nothing is asked"
        )


def _fitted(rows: NDArray[np.float64], names: NDArray[Any], strength: float, steps: int) -> tuple[Any, bool]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with one_thread(), warnings.catch_warnings():
        # It is no error for a measure: the caller is told by `converged`.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=strength, max_iter=steps).fit(rows, names)
    return model, bool(np.all(model.n_iter_ < steps))

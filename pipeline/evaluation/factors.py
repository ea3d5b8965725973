"""Factor probe: which of the things that make a picture can be read from its latents by a straight line?

Made for the rendered catalogue, whose category, colour, pattern, angle, shade and width are known exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from .probe import check_fit, held_out, in_row_space, linear_probe, one_thread, standardised

FACTORS = ("category", "colour", "pattern", "angle", "shade", "width")
_ASKED = 0.25
_STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)


@dataclass(frozen=True, slots=True)
class FactorScore:
    """score: accuracy in 0..1 of names, or R2 of numbers (1 all of it, 0 none; below 0 the line does harm).

    chance: what guessing scores, the most frequent name's share, or 0 of numbers.
    """

    factor: str
    measure: Literal["accuracy", "r2"]
    score: float
    chance: float


def factor_probe(
    vectors: ArrayLike,
    factors: Mapping[str, Sequence[object]],
    *,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> list[FactorScore]:
    """Return how well each factor [n] is read from latents float [n, d], in the order given.

    Text is named by `linear_probe`; numbers are predicted by ridge regression on standardised latents, the strength
    chosen by leave-one-out on the known rows. A seeded quarter of the rows is asked, whole groups [n] where they are
    given (an item's photos, a contributor's items). Raises InputError for a factor without variety or with gaps.
    """
    matrix = np.asarray(vectors, np.float64)
    if matrix.ndim != 2:
        raise InputError(f"vectors of shape {list(matrix.shape)} are no matrix [n, d]")
    asked = held_out(len(matrix), groups, share=_ASKED, seed=seed)
    owners = None if groups is None else np.asarray(groups)[~asked]
    scores = []
    for name, given in factors.items():
        values = np.asarray(given)
        if len(values) != len(matrix):
            raise InputError(f"factor {name!r} has {len(values)} values and there are {len(matrix)} rows")
        if values.dtype.kind == "U":
            probe = linear_probe(matrix[~asked], values[~asked], matrix[asked], values[asked], groups=owners, seed=seed)
            names, counts = np.unique(values[~asked], return_counts=True)
            chance = float(np.mean(values[asked] == names[np.argmax(counts)]))
            scores.append(FactorScore(name, "accuracy", probe.accuracy, chance))
        elif values.dtype.kind in "fiu" and np.all(np.isfinite(values)):
            score = ridge_r2(matrix[~asked], values[~asked], matrix[asked], values[asked])
            scores.append(FactorScore(name, "r2", score, 0.0))
        else:
            raise InputError(f"factor {name!r} is neither text nor finite numbers; leave out rows with gaps")
    return scores


def ridge_r2(known: ArrayLike, values: ArrayLike, asked: ArrayLike, truth: ArrayLike) -> float:
    """Return R2 on asked latents float [m, d] of ridge regression fitted on known ones [n, d] with values [n].

    Hoerl and Kennard 1970; 1 minus squared error over that of the known rows' mean. Raises InputError where the values
    do not vary.
    """
    from sklearn.linear_model import RidgeCV

    rows, others = np.asarray(known, np.float64), np.asarray(asked, np.float64)
    wanted, right = np.asarray(values, np.float64), np.asarray(truth, np.float64)
    check_fit(rows, wanted, others, right)
    rows, others = in_row_space(*standardised(rows, others))
    guess = np.square(right - wanted.mean()).sum()
    if wanted.std() == 0 or guess == 0:
        raise InputError(f"all {len(wanted)} known values are {wanted[0]:g}, or all asked ones are their mean")
    with one_thread():
        drawn: NDArray[np.float64] = RidgeCV(alphas=_STRENGTHS).fit(rows, wanted).predict(others)
    return float(1.0 - np.square(right - drawn).sum() / guess)

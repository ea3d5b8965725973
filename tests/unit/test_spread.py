"""Effective rank and spread of directions, against spectra that are known."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.evaluation.spread import effective_rank, spread_measures, unit_spread


def with_spectrum(singular: list[float], rows: int = 200, dim: int = 16) -> np.ndarray:
    rng = np.random.default_rng(0)
    left = np.linalg.qr(rng.normal(size=(rows, len(singular))))[0]
    right = np.linalg.qr(rng.normal(size=(dim, len(singular))))[0]
    return np.asarray(left * singular @ right.T)


@pytest.mark.parametrize(
    "singular", [[1.0], [3.0] * 5, [5.0, 2.0, 1.0, 0.1], list(np.geomspace(10, 0.01, 16))], ids=lambda s: str(len(s))
)
def test_rank_is_the_exponential_of_the_spectrums_entropy(singular: list[float]) -> None:
    shares = np.array(singular) / sum(singular)
    wanted = np.exp(-np.sum(shares * np.log(shares)))
    assert effective_rank(with_spectrum(singular)) == pytest.approx(wanted, rel=1e-4)
    assert effective_rank(with_spectrum(singular, rows=16)[:, :]) == pytest.approx(wanted, rel=1e-4)
    # Negative control: the squares (variances) give a lower rank unless all are equal.
    squared = shares**2 / np.sum(shares**2)
    if len(set(singular)) > 1:
        assert np.exp(-np.sum(squared * np.log(squared))) < wanted * 0.95


def test_more_dimensions_than_rows() -> None:
    assert effective_rank(with_spectrum([1.0] * 4, rows=6, dim=40)) == pytest.approx(4, rel=1e-4)


def test_a_common_offset_counts_as_collapse_unless_centred() -> None:
    ball = np.random.default_rng(1).normal(size=(4000, 8))
    shifted = ball + np.eye(8)[0] * 100
    assert effective_rank(ball) > 7.9
    assert effective_rank(shifted) < 2.5
    assert effective_rank(shifted, centred=True) > 7.9


def test_directions_evenly_spread_are_one_and_collapsed_ones_zero() -> None:
    rng = np.random.default_rng(2)
    ball = rng.normal(size=(5000, 32))
    assert unit_spread(ball) == pytest.approx(1.0, abs=0.01)
    assert unit_spread(ball * rng.uniform(0.1, 100, (5000, 1))) == pytest.approx(1.0, abs=0.01)
    collapsed = np.ones((100, 32)) * rng.uniform(1, 5, (100, 1))  # lengths differ, the direction is one
    assert unit_spread(collapsed) < 1e-6
    assert collapsed.std() > 0.5, "negative control: without unit length it looks alive"
    assert unit_spread(np.zeros((3, 2))) == 0.0
    assert effective_rank(np.zeros((3, 2))) == 0.0


def test_measures_by_name_and_what_is_refused() -> None:
    assert set(spread_measures(np.eye(3))) == {"effective_rank", "effective_rank_centred", "unit_spread"}
    with pytest.raises(InputError, match="no matrix"):
        effective_rank(np.ones(3))
    with pytest.raises(InputError, match="at least one row"):
        unit_spread(np.ones((0, 3)))

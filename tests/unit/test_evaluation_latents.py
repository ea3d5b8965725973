"""What latents use of their room, against torch.distributions and counts written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from pipeline.errors import InputError
from pipeline.evaluation.latents import code_measures, dimension_kl, gaussian_measures


def collapsed(count: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and log_var of eight dimensions of which three say something of the photo."""
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(count, 8)) * np.array([2.0, 1.0, 0.5, 0.05, 0.01, 0, 0, 0])
    mean[:, 5:] += np.array([0.0, 3.0, -1.0])  # a constant is no information
    log_var = np.full((count, 8), -0.01)
    log_var[:, :3] = -2.0
    return mean.astype(np.float32), log_var.astype(np.float32)


def test_kl_of_each_dimension_is_torchs() -> None:
    mean, log_var = collapsed()
    wide = torch.from_numpy(mean).double(), torch.from_numpy(log_var).double()
    given = Normal(wide[0], (0.5 * wide[1]).exp())
    wanted = kl_divergence(given, Normal(torch.zeros(()).double(), torch.ones(()).double())).mean(dim=0)
    found = dimension_kl(mean, log_var)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-9)
    assert gaussian_measures(mean, log_var)["kl"] == pytest.approx(float(wanted.sum()), rel=1e-9)
    # Negative control: log-variance taken for a standard deviation's logarithm.
    wrong = 0.5 * (wide[0] ** 2 + (2 * wide[1]).exp() - 1 - 2 * wide[1]).mean(dim=0)
    assert not np.allclose(found, wrong.numpy(), rtol=1e-2)


def test_active_units_are_those_whose_mean_moves() -> None:
    mean, log_var = collapsed()
    measures = gaussian_measures(mean, log_var)
    assert measures["active_units"] == 3
    # Negative controls: a second moment counts the two constants too, and the KL sees them as busy.
    assert int((np.square(mean).mean(axis=0) > 0.01).sum()) == 5
    assert int((dimension_kl(mean, log_var) > 0.01).sum()) == 5
    assert "kl" not in gaussian_measures(mean, None)


def test_perplexity_is_of_all_photos_at_once() -> None:
    rng = np.random.default_rng(1)
    shares = rng.dirichlet(np.ones(64))
    codes = rng.choice(64, size=(4000, 49), p=shares).astype(np.int32)
    counts = np.bincount(codes.ravel(), minlength=100) / codes.size
    entropy = -sum(share * math.log(share) for share in counts if share)
    found = code_measures(codes, 100)
    assert found["perplexity"] == pytest.approx(math.exp(entropy), rel=1e-12)
    assert found["used_codes"] == np.count_nonzero(counts)
    # Negative control: the mean of batches' perplexities depends on the batch.
    small = np.mean([code_measures(row[None], 100)["perplexity"] for row in codes[:200]])
    assert small < 0.8 * found["perplexity"]


@pytest.mark.parametrize(("codes", "used", "perplexity"), [([[5, 5], [5, 5]], 1, 1.0), ([[0, 1], [2, 3]], 4, 4.0)])
def test_perplexity_lies_between_one_and_the_codes_used(codes: list[list[int]], used: int, perplexity: float) -> None:
    assert code_measures(np.array(codes), 8) == {"used_codes": used, "perplexity": pytest.approx(perplexity)}


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match=r"codes are 0\.\.8; a codebook of 8 has 0\.\.7"):
        code_measures(np.array([[0, 8]]), 8)
    with pytest.raises(InputError, match="codes are none"):
        code_measures(np.empty((0, 4), np.int32), 8)
    with pytest.raises(InputError, match=r"means \[3, 2\] and log-variances \[3, 1\] do not fit"):
        dimension_kl(np.zeros((3, 2), np.float32), np.zeros((3, 1), np.float32))

"""Distillation: against formulas written out in NumPy, and lightly's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightly.loss import DINOLoss
from lightly.loss.swav_loss import sinkhorn as lightlys
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.losses import balanced_shares, centred_shares, distillation


def rows(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_softmax(values: np.ndarray) -> np.ndarray:
    shifted = values - values.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def sinkhorn(logits: np.ndarray, temperature: float, rounds: int = 3) -> np.ndarray:
    """Return listing 1 of arXiv 2006.09882, in plain numbers in place of logarithms."""
    q = np.exp(logits / temperature).T
    q /= q.sum()
    for _ in range(rounds):
        q /= q.sum(axis=1, keepdims=True) * q.shape[0]
        q /= q.sum(axis=0, keepdims=True) * q.shape[1]
    return (q * q.shape[1]).T


def test_distillation_is_its_formula_and_the_teacher_has_no_gradient() -> None:
    student, teacher, centre = rows(6, 9, 2), rows(6, 9, 3), rows(1, 9, 4)[0]
    wanted = np.exp(log_softmax((teacher - centre).numpy() / 0.04))
    expected = -(wanted * log_softmax(student.numpy() / 0.1)).sum(axis=1).mean()
    student.requires_grad_()
    teacher.requires_grad_()
    found = distillation(student, centred_shares(teacher, centre, 0.04), 0.1)
    assert float(found.detach()) == pytest.approx(expected, abs=1e-12)
    found.backward()
    assert teacher.grad is None
    # The gradient of a cross entropy: shares less wanted shares, over the temperature and the photos.
    shares = np.exp(log_softmax(student.detach().numpy() / 0.1))
    assert student.grad is not None
    np.testing.assert_allclose(student.grad.numpy(), (shares - wanted) / 0.1 / 6, atol=1e-12)
    with torch.no_grad():
        uncentred = distillation(student, centred_shares(teacher, torch.zeros(9), 0.04), 0.1)
    assert float(uncentred) != pytest.approx(expected)


def test_distillation_is_lightlys() -> None:
    oracle = DINOLoss(output_dim=9, teacher_temp=0.04, warmup_teacher_temp=0.04, student_temp=0.1)
    student, teacher = [rows(6, 9, seed).float() for seed in (0, 1)], [rows(6, 9, seed).float() for seed in (2, 3)]
    theirs = oracle([*teacher], [*student], epoch=0)
    wanted = [centred_shares(view, torch.zeros(9), 0.04) for view in teacher]
    ours = (distillation(student[0], wanted[1], 0.1) + distillation(student[1], wanted[0], 0.1)) / 2
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_balanced_shares_are_their_formula(temperature: float) -> None:
    logits = rows(12, 5, 0).tanh()
    found = balanced_shares(logits, temperature, over_ranks=False)
    np.testing.assert_allclose(found.numpy(), sinkhorn(logits.numpy(), temperature), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.float(), lightlys(logits.float(), iterations=3, epsilon=temperature), atol=1e-6)
    assert not found.requires_grad


def test_balanced_shares_use_every_prototype_where_plain_ones_use_one() -> None:
    logits = rows(60, 4, 1) * 0.1 + torch.tensor([1.0, 0.0, 0.0, 0.0])  # all photos like the first prototype best
    balanced = balanced_shares(logits, 0.2, over_ranks=False)
    np.testing.assert_allclose(balanced.sum(dim=1).numpy(), np.ones(60), atol=1e-12)
    np.testing.assert_allclose(balanced.mean(dim=0).numpy(), np.full(4, 0.25), atol=0.01)
    plain = centred_shares(logits, torch.zeros(4), 0.2)
    assert float(plain.mean(dim=0)[0]) > 0.9  # the control


def test_balanced_shares_are_numbers_where_exponentials_are_not() -> None:
    logits = rows(8, 5, 2).tanh()
    with np.errstate(all="ignore"):
        assert not np.isfinite(sinkhorn(logits.numpy(), 1e-3)).all()  # the control
    found = balanced_shares(logits, 1e-3, over_ranks=False)
    assert bool(found.isfinite().all())
    assert float(found.sum()) == pytest.approx(8)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="one shape"):
        distillation(rows(3, 2, 0), rows(4, 2, 0), 0.2)
    with pytest.raises(ConfigError, match="temperature is 0"):
        distillation(rows(3, 2, 0), rows(3, 2, 0), 0)
    with pytest.raises(ConfigError, match=r"temperature is -0\.1"):
        balanced_shares(rows(3, 2, 0), -0.1, over_ranks=False)
    with pytest.raises(ConfigError, match="temperature is 0"):
        centred_shares(rows(3, 2, 0), torch.zeros(2), 0)

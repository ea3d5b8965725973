"""Weights by running means: closed forms with constant and with changing losses."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.losses import RunningMean


def values(*numbers: float) -> dict[str, torch.Tensor]:
    return {
        name: torch.tensor(number) for name, number in zip(("reconstruction", "kl", "third"), numbers, strict=False)
    }


def given(weights: dict[str, torch.Tensor]) -> list[float]:
    return [weight.item() for weight in weights.values()]


def test_constant_losses_come_to_weigh_the_same() -> None:
    balance = RunningMean(["reconstruction", "kl"])
    assert given(balance.weights()) == [0.5, 0.5]
    for _ in range(3):
        balance.note(values(300.0, 100.0))
        balance.update()
        weights = balance.weights()
        assert given(weights) == pytest.approx([0.25, 0.75], abs=1e-7)
        assert 300 * weights["reconstruction"].item() == pytest.approx(100 * weights["kl"].item())


def test_three_parts_sum_to_one() -> None:
    balance = RunningMean(["reconstruction", "kl", "third"])
    balance.note(values(6.0, 3.0, 1.0))
    balance.update()
    assert given(balance.weights()) == pytest.approx([0.4 / 2, 0.7 / 2, 0.9 / 2], abs=1e-7)


def test_the_averages_are_exponential_over_steps_and_plain_within_one() -> None:
    balance = RunningMean(["reconstruction", "kl"], decay=0.8)
    expected = torch.zeros(2, dtype=torch.float64)
    for step in range(5):
        parts = [values(10.0 + step, 1.0), values(20.0, 3.0 * step)]  # two micro-batches
        for part in parts:
            balance.note(part)
        balance.update()
        expected = 0.8 * expected + 0.2 * torch.tensor([15.0 + step / 2, 0.5 + 1.5 * step], dtype=torch.float64)
    torch.testing.assert_close(balance.averages, expected)
    kept = balance.averages.clone()
    balance.update()
    assert torch.equal(balance.averages, kept)  # nothing was noted
    again = RunningMean(["reconstruction", "kl"], decay=0.8)
    again.load_state_dict(balance.state_dict())
    assert given(again.weights()) == given(balance.weights())


def test_evaluation_notes_nothing_and_weights_have_no_gradient() -> None:
    balance = RunningMean(["reconstruction", "kl"])
    balance.eval()
    balance.note(values(1.0, 100.0))
    balance.update()
    assert given(balance.weights()) == [0.5, 0.5]
    balance.train()
    loss = torch.tensor(3.0, requires_grad=True)
    balance.note({"reconstruction": loss, "kl": loss * 2})
    balance.update()
    assert not any(weight.requires_grad for weight in balance.weights().values())
    assert [weight.dtype for weight in balance.weights().values()] == [torch.float32] * 2


def test_a_part_that_is_zero_takes_all_the_weight() -> None:
    balance = RunningMean(["reconstruction", "kl"])
    balance.note(values(5.0, 0.0))
    balance.update()
    assert given(balance.weights()) == [0.0, 1.0]


def test_one_name_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least two"):
        RunningMean(["kl"])

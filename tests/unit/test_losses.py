"""Losses against torch.distributions and torch's own functions, in float64; each reduction is checked by doubling."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Independent, Normal, kl_divergence

from pipeline.losses import (
    active_units,
    bce,
    commitment,
    kl_per_dimension,
    kl_to_standard_normal,
    kl_with_free_bits,
    mse,
    reconstruction_loss,
    reparameterise,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_kl_equals_torch_distributions() -> None:
    mean, log_var = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    posterior = Normal(mean, torch.exp(0.5 * log_var))
    each = kl_divergence(posterior, Normal(torch.zeros_like(mean), torch.ones_like(mean)))
    whole = kl_divergence(
        Independent(posterior, 1), Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    )
    torch.testing.assert_close(kl_per_dimension(mean, log_var), each, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(kl_to_standard_normal(mean, log_var), whole.mean(), rtol=1e-12, atol=1e-12)
    assert kl_to_standard_normal(torch.zeros(2, 3), torch.zeros(2, 3)).item() == 0.0


def test_free_bits_cost_nothing_less_and_press_no_dimension() -> None:
    mean = torch.randn(64, 4, dtype=torch.float64) * torch.tensor([0.0, 0.2, 1.0, 2.0])
    log_var = torch.zeros(64, 4, dtype=torch.float64)
    mean.requires_grad_()
    found = kl_with_free_bits(mean, log_var, 0.25, over_ranks=True)
    prior = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    each = kl_divergence(Normal(mean, torch.exp(0.5 * log_var)), prior).mean(dim=0)
    assert (each < 0.25).tolist() == [True, True, False, False]
    torch.testing.assert_close(found, each.clamp_min(0.25).sum(), rtol=1e-12, atol=0)
    found.backward()
    assert mean.grad is not None
    assert torch.equal(mean.grad[:, :2], torch.zeros(64, 2, dtype=torch.float64))
    torch.testing.assert_close(mean.grad[:, 2:], mean.detach()[:, 2:] / 64, rtol=1e-12, atol=0)
    # The control: the bound per photo, not per batch mean, costs more and hides photos from the gradient.
    per_photo = kl_per_dimension(mean, log_var).clamp_min(0.25).mean(dim=0).sum()
    assert per_photo > found + 0.05


def test_no_free_bits_is_the_kl_and_what_is_not_a_number_stays_so() -> None:
    mean, log_var = torch.randn(7, 5), torch.randn(7, 5)
    plain = kl_to_standard_normal(mean, log_var)
    torch.testing.assert_close(kl_with_free_bits(mean, log_var, 0.0, over_ranks=True), plain)
    for over_ranks in (True, False):
        torch.testing.assert_close(kl_with_free_bits(mean, log_var, 1e-9, over_ranks=over_ranks), plain)
        broken = kl_with_free_bits(torch.full((2, 3), float("nan")), torch.zeros(2, 3), 0.5, over_ranks=over_ranks)
        assert broken.isnan()


def test_active_units_are_those_whose_mean_varies() -> None:
    spread = torch.tensor([0.0, 0.05, 0.09, 0.11, 1.0])
    sign = torch.tensor([1.0, -1.0]).repeat(50)[:, None]
    assert active_units(5.0 + sign * spread) == 2  # variances 0, 0.0025, 0.0081, 0.0121, 1
    assert active_units(5.0 + sign * spread, threshold=0.005) == 3
    assert active_units(torch.randn(1, 5)) == 0


def test_bce_equals_torch_on_the_sigmoid() -> None:
    logits, target = torch.randn(3, 3, 8, 8), torch.rand(3, 3, 8, 8)
    expected = F.binary_cross_entropy(torch.sigmoid(logits.double()), target.double(), reduction="sum") / 3
    torch.testing.assert_close(bce(logits, target).double(), expected, rtol=1e-6, atol=0)


def test_bce_stays_finite_where_the_sigmoid_saturates() -> None:
    logits = torch.full((1, 3, 4, 4), 200.0, requires_grad=True)
    loss = bce(logits, torch.zeros(1, 3, 4, 4))
    loss.backward()
    torch.testing.assert_close(loss.item(), 200.0 * 48)
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.ones_like(logits))
    clamped = F.binary_cross_entropy(torch.sigmoid(logits.detach()), torch.zeros(1, 3, 4, 4), reduction="sum")
    assert clamped.item() == 100.0 * 48  # the control: torch clamps the logarithm there, and its gradient is lost


def test_mse_and_the_choice_by_name() -> None:
    logits, target = torch.randn(4, 3, 8, 8), torch.rand(4, 3, 8, 8)
    pictures = torch.sigmoid(logits)
    torch.testing.assert_close(mse(pictures, target), F.mse_loss(pictures, target) * 3 * 8 * 8)
    torch.testing.assert_close(reconstruction_loss("mse", logits, target), mse(pictures, target))
    torch.testing.assert_close(reconstruction_loss("bce", logits, target), bce(logits, target))


def test_commitment_is_a_sum_per_photo_and_reaches_the_encoder_only() -> None:
    latents = torch.randn(6, 4, 4, 3, requires_grad=True)
    codes = torch.randn(6, 4, 4, 3, requires_grad=True)
    loss = commitment(latents, codes)
    torch.testing.assert_close(loss, F.mse_loss(latents, codes) * 4 * 4 * 3)
    loss.backward()
    assert latents.grad is not None
    torch.testing.assert_close(latents.grad, 2 * (latents - codes).detach() / 6)
    assert codes.grad is None


@pytest.mark.parametrize("loss", [bce, mse, commitment, kl_to_standard_normal])
def test_a_doubled_batch_has_the_same_loss(loss) -> None:
    first, second = torch.randn(5, 12), torch.rand(5, 12)
    doubled = loss(torch.cat([first, first]), torch.cat([second, second]))
    torch.testing.assert_close(doubled, loss(first, second), rtol=1e-6, atol=1e-6)


def test_losses_compute_in_float32_of_half_precision_inputs() -> None:
    values = torch.randn(2, 3, 16, 16, dtype=torch.bfloat16)
    for loss in (bce, mse, commitment):
        assert loss(values, torch.rand(2, 3, 16, 16)).dtype == torch.float32
    flat = values.flatten(1)
    assert kl_to_standard_normal(flat, flat).dtype == torch.float32
    assert kl_with_free_bits(flat, flat, 0.5, over_ranks=True).dtype == torch.float32


def test_reparameterise_has_the_asked_moments_and_gradients() -> None:
    mean, log_var = torch.full((200_000, 2), 3.0), torch.full((200_000, 2), -1.0)
    sample = reparameterise(mean, log_var)
    torch.testing.assert_close(sample.mean(0), torch.full((2,), 3.0), rtol=0, atol=0.01)
    torch.testing.assert_close(sample.var(0).log(), torch.full((2,), -1.0), rtol=0, atol=0.02)

    mean, log_var = torch.zeros(4, 2, requires_grad=True), torch.zeros(4, 2, requires_grad=True)
    torch.manual_seed(1)
    reparameterise(mean, log_var).sum().backward()
    torch.manual_seed(1)
    noise = torch.randn(4, 2)
    assert mean.grad is not None
    assert log_var.grad is not None
    assert torch.equal(mean.grad, torch.ones(4, 2))
    torch.testing.assert_close(log_var.grad, 0.5 * noise)

"""The linear VAE against its closed form: which dimensions it uses and what error it is left with.

A linear VAE with the decoder variance s2 is probabilistic PCA (Lucas et al. 2019, arXiv 1911.02469). With the KL
weighted by beta a direction of variance L is used where L > beta * s2, and its squared error is then beta * s2: the
whole error is the sum of min(L, beta * s2), for the expectation over the posterior's noise.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from pipeline.losses import active_units, kl_per_dimension, kl_to_standard_normal, reparameterise
from pipeline.models.gaussian import gaussian_of

EIGENVALUES = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.25, 0.06])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def data() -> Tensor:
    """Return rows float32 [2000, 6] of mean zero whose covariance has exactly these eigenvalues, in a turned basis."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2000, 6, generator=generator, dtype=torch.float64)
    rows = torch.linalg.qr(rows - rows.mean(0))[0] * 2000**0.5
    turned = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    return (rows * EIGENVALUES.double().sqrt() @ turned).float()


def trained(beta: float, variance: float) -> tuple[Tensor, Tensor, float]:
    """Return the latents' means [2000, 6], the KL of each dimension [6] in nats and the squared error of a sample."""
    torch.manual_seed(1)
    rows = data()
    encoder, decoder = nn.Linear(6, 12), nn.Linear(6, 6)
    with torch.no_grad():
        encoder.weight[6:].zero_()  # as GaussianModel starts
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 4e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 500)
    for _ in range(500):
        optimiser.zero_grad()
        mean, log_var = gaussian_of(encoder(rows), 8.0)
        error = (decoder(reparameterise(mean, log_var)) - rows).square().sum(1).mean()
        total = error / (2 * variance) + beta * kl_to_standard_normal(mean, log_var)
        total.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        mean, log_var = gaussian_of(encoder(rows), 8.0)
        samples = [(decoder(reparameterise(mean, log_var)) - rows).square().sum(1).mean() for _ in range(20)]
        return mean, kl_per_dimension(mean, log_var).mean(0), float(torch.stack(samples).mean())


@pytest.mark.parametrize(("beta", "variance"), [(1.0, 0.1), (1.0, 0.7), (4.0, 0.35), (2.0, 1.5)])
@pytest.mark.slow
def test_used_dimensions_and_error_are_the_closed_form_s(beta: float, variance: float) -> None:
    means, kl, error = trained(beta, variance)
    used = int((EIGENVALUES / variance > beta).sum())
    assert int((kl > 0.01).sum()) == used
    assert active_units(means) == used
    assert error == pytest.approx(float(EIGENVALUES.clamp(max=beta * variance).sum()), rel=0.015)


@pytest.mark.slow
def test_a_loss_averaged_over_values_uses_fewer_dimensions() -> None:
    # The known wrong version: a mean over the 6 values beside a summed KL is a beta six times as large.
    _, kl, error = trained(1.0, 0.1 * 6)
    assert int((kl > 0.01).sum()) == int((EIGENVALUES > 0.6).sum()) != int((EIGENVALUES > 0.1).sum())
    assert error > 1.5 * float(EIGENVALUES.clamp(max=0.1).sum())

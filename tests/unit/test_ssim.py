"""SSIM against scikit-image's interior map and against its formula; as a loss it trains beside a KL."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity
from torch import nn

from pipeline.errors import ConfigError
from pipeline.losses import kl_to_standard_normal, reconstruction_loss, reparameterise, ssim, ssim_loss
from pipeline.losses.ssim import ssim_map


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def pair(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a smooth picture and a noisy copy, in 0..1."""
    smooth = F.interpolate(torch.rand(*shape[:2], 5, 5, dtype=dtype), size=shape[2:], mode="bicubic").clamp(0, 1)
    return smooth, (0.8 * smooth + 0.1 + 0.1 * torch.randn(shape, dtype=dtype)).clamp(0, 1)


def oracle(one: torch.Tensor, two: torch.Tensor, *, window: int, gaussian: bool) -> np.ndarray:
    _, full = structural_similarity(
        one.permute(1, 2, 0).numpy(),
        two.permute(1, 2, 0).numpy(),
        win_size=window,
        gaussian_weights=gaussian,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
        channel_axis=-1,
        full=True,
    )
    crop = window // 2
    return full[crop:-crop, crop:-crop].transpose(2, 0, 1)


@pytest.mark.parametrize(("window", "sigma"), [(11, 1.5), (7, None)])
@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (2, 1, 33, 40)])
def test_the_interior_map_equals_scikit_image(window: int, sigma: float | None, shape: tuple[int, ...]) -> None:
    one, two = pair(*shape)
    found = ssim_map(one, two, window=window, sigma=sigma)
    each = ssim(one, two, window=window, sigma=sigma)
    for photo in range(shape[0]):
        expected = oracle(one[photo], two[photo], window=window, gaussian=sigma is not None)
        np.testing.assert_allclose(found[photo].numpy(), expected, rtol=0, atol=1e-12)
        assert each[photo].item() == pytest.approx(expected.mean(), abs=1e-12)
    assert 0.05 < each.min() < each.max() < 0.95  # the pictures are neither equal nor unrelated
    single = ssim(one.float(), two.float(), window=window, sigma=sigma)
    torch.testing.assert_close(single.double(), each, rtol=0, atol=1e-5)


def test_a_window_of_five_equals_the_formula() -> None:
    one, two = pair(1, 1, 12, 12)
    places = torch.arange(5, dtype=torch.float64) - 2
    weights = torch.exp(-(places[:, None] ** 2 + places[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    found = ssim_map(one, two, window=5)[0, 0]
    for row, column in [(0, 0), (3, 7), (7, 7)]:
        x, y = (p[0, 0, row : row + 5, column : column + 5] for p in (one, two))
        mx, my = (weights * x).sum(), (weights * y).sum()
        vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
        covariance = (weights * (x - mx) * (y - my)).sum()
        expected = (2 * mx * my + 1e-4) * (2 * covariance + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
        torch.testing.assert_close(found[row, column], expected, rtol=1e-10, atol=1e-12)


def test_equal_pictures_have_one_and_the_loss_is_zero_there() -> None:
    one, two = pair(3, 3, 20, 20, dtype=torch.float32)
    assert torch.equal(ssim(one, one), torch.ones(3))
    assert ssim_loss(one, one).item() == 0.0
    torch.testing.assert_close(ssim(one, two), ssim(two, one))
    torch.testing.assert_close(ssim_loss(one, two), 3 * 20 * 20 * (1 - ssim(one, two).mean()))
    doubled = ssim_loss(torch.cat([one, one]), torch.cat([two, two]))
    torch.testing.assert_close(doubled, ssim_loss(one, two))


def test_white_pictures_are_told_apart_in_float32() -> None:
    """The difference of squares loses digits where pictures are bright; less than the constants, so it does no harm."""
    one = (0.99 + 0.01 * torch.rand(1, 1, 28, 28)).double()
    two = (0.99 + 0.01 * torch.rand(1, 1, 28, 28)).double()
    torch.testing.assert_close(ssim(one.float(), two.float()).double(), ssim(one, two), rtol=0, atol=2e-3)


def ssim_of_inferred_range(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """The control: the range taken from the batch, as torchmetrics does when none is given."""
    spread = max(float(one.max() - one.min()), float(two.max() - two.min()))
    return ssim(one / spread, two / spread)


def test_a_photo_has_the_same_value_whatever_is_beside_it() -> None:
    pale = (0.5 + 0.02 * torch.rand(1, 3, 20, 20), 0.5 + 0.02 * torch.rand(1, 3, 20, 20))
    loud = (torch.rand(1, 3, 20, 20), torch.rand(1, 3, 20, 20))
    both = tuple(torch.cat([a, b]) for a, b in zip(pale, loud, strict=True))
    torch.testing.assert_close(ssim(*both)[0], ssim(*pale)[0], rtol=0, atol=1e-5)
    alone, beside = ssim_of_inferred_range(*pale)[0], ssim_of_inferred_range(*both)[0]
    assert (alone - beside).abs() > 0.5
    assert ssim(*pale)[0] > 0.8  # the same grey to the eye


def test_it_computes_in_float32_under_autocast() -> None:
    one, two = pair(2, 3, 20, 20, dtype=torch.float32)
    expected = ssim_loss(one, two)
    with torch.autocast("cpu", torch.bfloat16):
        found = ssim_loss(one, two)
    assert torch.equal(found, expected)
    assert ssim_loss(one.bfloat16(), two).dtype == torch.float32


def test_gradients_are_those_of_finite_differences() -> None:
    one, two = pair(1, 1, 13, 13)
    assert torch.autograd.gradcheck(lambda made: ssim_loss(made, two), (one.requires_grad_(),), atol=1e-6)


@pytest.mark.parametrize("window", [10, 13])
def test_windows_that_do_not_fit_are_refused(window: int) -> None:
    with pytest.raises(ConfigError, match=f"window of {window}"):
        ssim(torch.rand(1, 1, 12, 12), torch.rand(1, 1, 12, 12), window=window)


def trained(*, scaled: bool) -> tuple[float, float, float]:
    """Train a small linear VAE on blobs; return SSIM before and after, and the KL after, in nats."""
    torch.manual_seed(0)
    centres, grid = 3 + 10 * torch.rand(256, 2), torch.arange(16.0)
    rows, columns = ((grid - centres[:, i, None]).square() for i in range(2))
    photos = torch.exp(-(rows[:, :, None] + columns[:, None, :]) / 12).unsqueeze(1)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(256, 64), nn.SiLU(), nn.Linear(64, 8))
    decoder = nn.Sequential(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 256), nn.Unflatten(1, (1, 16, 16)))
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 3e-3)
    history: list[float] = []
    for _ in range(250):
        mean, log_var = encoder(photos).chunk(2, dim=1)
        logits = decoder(reparameterise(mean, log_var))
        similar = ssim(torch.sigmoid(logits), photos, window=5).mean()
        error = reconstruction_loss("ssim", logits, photos, ssim_window=5) if scaled else 1 - similar
        kl = kl_to_standard_normal(mean, log_var)
        optimiser.zero_grad()
        (error + kl).backward()
        optimiser.step()
        history.append(similar.item())
    return history[0], history[-1], kl.item()


@pytest.mark.slow
def test_scaled_by_the_picture_it_trains_beside_a_kl() -> None:
    before, after, kl = trained(scaled=True)
    assert after > before + 0.4
    assert after > 0.7
    assert kl > 2.0
    _, unscaled, silent = trained(scaled=False)  # the control, seed 001's "SSIM does not train": no scale
    assert silent < 0.1
    assert unscaled < after - 0.2

"""The distance of feature maps: against its formula, and what a perceptual distance is for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pipeline.errors import ConfigError
from pipeline.losses import feature_distance
from pipeline.models.backbones.hog import hog


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def two_layers(photos: int) -> list[torch.Tensor]:
    return [torch.randn(photos, 5, 4, 4), torch.randn(photos, 7, 2, 2)]


def test_it_equals_the_formula() -> None:
    one, two = two_layers(3), two_layers(3)
    expected = 0.0
    for photo in range(3):
        for a, b in zip(one, two, strict=True):
            side = a.shape[-1]
            for row in range(side):
                for column in range(side):
                    x, y = (m[photo, :, row, column].double() for m in (a, b))
                    expected += ((x / x.norm() - y / y.norm()) ** 2).sum().item() / side**2 / 3
    assert feature_distance(one, two).item() == pytest.approx(expected, rel=1e-5)


def test_identity_symmetry_and_scale() -> None:
    one, two = two_layers(3), two_layers(3)
    assert feature_distance(one, one).item() == 0.0
    torch.testing.assert_close(feature_distance(one, two), feature_distance(two, one))
    louder = [10 * layer for layer in one]
    torch.testing.assert_close(feature_distance(louder, two), feature_distance(one, two), rtol=1e-4, atol=0)
    opposite = feature_distance([10 * layer for layer in one], [-10 * layer for layer in one])
    torch.testing.assert_close(opposite.item(), 8.0, rtol=1e-4, atol=0)  # 4 a layer
    doubled = feature_distance([torch.cat([a, a]) for a in one], [torch.cat([b, b]) for b in two])
    torch.testing.assert_close(doubled, feature_distance(one, two))


def test_positions_without_features_have_a_finite_gradient() -> None:
    one = torch.zeros(1, 4, 2, 2, requires_grad=True)
    feature_distance([one], [torch.ones(1, 4, 2, 2)]).backward()
    assert one.grad is not None
    assert torch.isfinite(one.grad).all()


def test_it_computes_in_float32_under_autocast() -> None:
    one, two = two_layers(2), two_layers(2)
    expected = feature_distance(one, two)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(feature_distance(one, two), expected)
    assert feature_distance([m.bfloat16() for m in one], two).dtype == torch.float32


def test_a_shift_costs_less_than_noise_of_the_same_squared_error() -> None:
    """With oriented gradients in 8-pixel cells as features: random weights see no such difference, trained ones do."""
    photos = F.interpolate(torch.rand(8, 3, 6, 6), size=(64, 64), mode="bicubic").clamp(0, 1)
    shifted = photos.roll(1, dims=3)
    error = (shifted - photos).square().mean(dim=(1, 2, 3), keepdim=True)
    noise = torch.randn_like(photos)
    noisy = photos + noise * (error / noise.square().mean(dim=(1, 2, 3), keepdim=True)).sqrt()
    torch.testing.assert_close(F.mse_loss(noisy, photos), F.mse_loss(shifted, photos))
    own, of_shift, of_noise = (hog(p, 8) for p in (photos, shifted, noisy))
    assert feature_distance([of_shift], [own]) < 0.3 * feature_distance([of_noise], [own])


def test_maps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="one encoder"):
        feature_distance(two_layers(2), two_layers(2)[:1])
    with pytest.raises(ConfigError, match="one encoder"):
        feature_distance([], [])

"""The VAE: what every option does to loss and gradient, against plain formulas."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from pipeline.errors import ConfigError, NotReconstructing
from pipeline.losses import active_units
from pipeline.models import Batch, Latents, Step, build_model
from pipeline.models.backbones import Network
from pipeline.models.targets import HogTarget, PixelTarget
from pipeline.models.vae import VAE, VAEConfig

SMALL = {"channels": (8, 8), "latent_dim": 6}
STEP = Step(0, 10)
NETWORKS: list[Network] = ["conv", "fc", "fc_conv", "fcn"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(size: int = 16, seed: int = 0, **fields: Any) -> VAE:
    torch.manual_seed(seed)
    model = build_model(VAEConfig(**{**SMALL, **fields}), image_size=size)
    assert isinstance(model, VAE)
    return model


def photos(number: int = 8, size: int = 16, seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, (number, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def shapes(number: int, size: int = 16, seed: int = 0) -> Tensor:
    """Return photos that a few latents can hold: a rectangle each, of its own place, size and brightness."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.full((number, 3, size, size), 230, dtype=torch.uint8)
    for row in range(number):
        top, left = torch.randint(0, size // 2, (2,), generator=generator).tolist()
        height, width = torch.randint(size // 4, size // 2 + 1, (2,), generator=generator).tolist()
        value = int(torch.randint(0, 180, (1,), generator=generator))
        images[row, :, top : top + height, left : left + width] = value
    return images


def train(model: VAE, images: Tensor, steps: int, rate: float = 2e-3) -> list[dict[str, float]]:
    model.train()
    optimiser = torch.optim.Adam(model.parameters(), rate)
    curve = []
    for number in range(steps):
        optimiser.zero_grad()
        losses = model(Batch(images), Step(number, steps))
        losses.total.backward()
        optimiser.step()
        model.after_step()
        curve.append({"total": losses.total.item(), **{name: part.item() for name, part in losses.parts.items()}})
    return curve


def awake(**fields: Any) -> VAE:
    """Return a model whose KL differs between dimensions: the first say something, the last nothing."""
    model = make(**fields)
    with torch.no_grad():
        scale = torch.tensor([2.0, 1.0, 0.3, 0.0, 0.0, 0.0])
        model.to_latents.weight[:6] *= scale[:, None]
    return model


def kl_oracle(model: VAE, images: Tensor) -> Tensor:
    """Return the KL of each photo and dimension by torch.distributions, [B, d]."""
    latents = model.encode(images)
    assert latents.log_var is not None
    found = Normal(latents.mean, (0.5 * latents.log_var).exp())
    return kl_divergence(found, Normal(torch.zeros_like(latents.mean), torch.ones_like(latents.mean)))


def test_the_default_loss_is_the_negative_elbo(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = make(), photos()
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    losses = model(Batch(images), STEP)
    latents = model.encode(images)
    assert latents.log_var is not None
    found = Independent(Normal(latents.mean, (0.5 * latents.log_var).exp()), 1)
    standard = Independent(Normal(torch.zeros(8, 6), torch.ones(8, 6)), 1)
    kl = kl_divergence(found, standard).mean()
    pixels = images.float() / 255
    made = model.decode(latents).clamp(1e-7, 1 - 1e-7)
    nats = torch.nn.functional.binary_cross_entropy(made, pixels, reduction="sum") / 8
    torch.testing.assert_close(losses.parts["kl"], kl, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses.total, nats + kl, rtol=1e-5, atol=1e-3)


def test_beta_and_the_image_s_weight_multiply_their_terms() -> None:
    images = photos()
    parts = {}
    for beta, weight in ((1.0, 1.0), (4.0, 1.0), (0.0, 2.5)):
        model = awake(beta=beta, image_weight=weight)
        torch.manual_seed(1)
        losses = model(Batch(images), STEP)
        parts[beta] = losses.parts
        expected = weight * losses.parts["reconstruction"] + beta * losses.parts["kl"]
        torch.testing.assert_close(losses.total.detach(), expected)
    assert parts[1.0] == parts[4.0]


def test_the_kl_s_weight_rises_with_the_step_and_is_whole_in_evaluation() -> None:
    config = VAEConfig(beta=3.0, kl_warmup=0.2)
    found = [config.beta_at(Step(number, 50)) for number in range(50)]
    assert found[:11] == pytest.approx([0.3 * number for number in range(11)])
    assert set(found[10:]) == {3.0}
    assert VAEConfig(beta=3.0).beta_at(Step(0, 50)) == 3.0
    assert VAEConfig(beta=3.0, kl_warmup=1.0).beta_at(Step(49, 50)) == pytest.approx(3.0 * 0.98)

    model, images = awake(beta=3.0, kl_warmup=0.2), photos()
    for number, weight in ((0, 0.0), (5, 1.5), (30, 3.0)):
        losses = model(Batch(images), Step(number, 50))
        expected = losses.parts["reconstruction"] + weight * losses.parts["kl"]
        torch.testing.assert_close(losses.total.detach(), expected)
    losses = model.eval()(Batch(images), Step(0, 50))
    torch.testing.assert_close(losses.total.detach(), losses.parts["reconstruction"] + 3.0 * losses.parts["kl"])


def test_free_bits_charge_the_batch_mean_of_each_dimension() -> None:
    model, images = awake(free_bits=0.4), photos()
    losses = model(Batch(images), STEP)
    per_dimension = kl_oracle(model, images).mean(0)
    assert 1 <= (per_dimension > 0.4).sum() <= 5
    paid = losses.total.detach() - losses.parts["reconstruction"]
    torch.testing.assert_close(paid, per_dimension.clamp(min=0.4).sum(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(losses.parts["kl"], per_dimension.sum())
    # The wrong version, a bound for every photo, charges something else here.
    assert (kl_oracle(model, images).clamp(min=0.4).mean(0).sum() - paid).abs() > 0.01


def test_a_free_dimension_has_no_gradient_from_the_kl() -> None:
    images = photos()
    for free_bits, silent in ((0.4, True), (0.0, False)):
        model = awake(free_bits=free_bits, image_weight=0.0)
        with torch.no_grad():
            model.to_latents.bias[5] = 0.1  # KL 0.005 nats
        model(Batch(images), STEP).total.backward()
        gradient = model.to_latents.bias.grad
        assert gradient is not None
        assert (gradient[5] == 0) == silent
        assert gradient[0] != 0


def test_log_variances_are_clamped_and_the_loss_stays_finite() -> None:
    model, images = make(log_var_limit=3.0), photos()
    with torch.no_grad():
        model.to_latents.bias[6:] = torch.tensor([500.0, -500.0, 2.0, -2.0, 3.5, 0.0])
    latents = model.encode(images)
    assert latents.log_var is not None
    expected = torch.tensor([3.0, -3.0, 2.0, -2.0, 3.0, 0.0]).expand(8, -1)
    torch.testing.assert_close(latents.log_var, expected)
    assert torch.isfinite(model(Batch(images), STEP).total)
    unclamped = make(log_var_limit=1e9)
    with torch.no_grad():
        unclamped.to_latents.bias[6:] = 500.0
    assert not torch.isfinite(unclamped(Batch(images), STEP).total)


@pytest.mark.slow
def test_a_large_beta_puts_units_to_sleep_and_active_units_say_so() -> None:
    images = shapes(32)
    counts = {}
    for beta in (0.1, 1000.0):
        model = make(beta=beta)
        train(model, images, 60, 5e-3)
        counts[beta] = active_units(model.eval().encode(images).mean.detach())
    assert counts[0.1] == 6
    assert counts[1000.0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("network", NETWORKS)
def test_without_its_latents_a_model_knows_nothing_of_the_photo(network: Network, grey: bool) -> None:
    # A skip connection would bring the photo past the latents; see the control below.
    images = shapes(16)
    model = make(network=network, grey=grey, beta=0.01, hidden=(64, 64), target=PixelTarget(loss="mse"))
    curve = train(model, images, 160, 5e-3)
    assert curve[-1]["reconstruction"] < 0.6 * curve[0]["reconstruction"]
    model.eval()
    latents = model.encode(images)
    pictures = images.float() / 255
    whole = (model.decode(latents) - pictures).square().mean()
    mean_picture = (pictures.mean(0) - pictures).square().mean()
    ablated = model.decode(Latents(torch.zeros_like(latents.mean)))
    assert torch.equal(ablated, ablated[:1].expand_as(ablated))
    assert (ablated - pictures).square().mean() >= mean_picture > 1.3 * whole


def test_the_ablation_finds_a_skip_connection() -> None:
    class Skipping(VAE):
        """The known wrong version: the decoder gets the first feature map too."""

        def reconstruct(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
            zeroed = Latents(torch.zeros(len(images), self.latent_dim))
            return self.decode(zeroed) + 0.1 * self.maps(images.float() / 255)[0].mean((1, 2, 3), keepdim=True)

    torch.manual_seed(0)
    made = Skipping(VAEConfig(**SMALL), 16).reconstruct(shapes(4))
    assert not torch.equal(made, made[:1].expand_as(made))


def test_rebalancing_weighs_both_terms_by_one_less_their_share() -> None:
    model, images = awake(rebalance=True), photos()
    first = model(Batch(images), STEP)
    torch.testing.assert_close(
        first.total.detach(), 0.5 * (first.parts["reconstruction"] + first.parts["kl"]), rtol=1e-5, atol=1e-4
    )
    model.after_step()
    second = model(Batch(images), Step(1, 10))
    image, kl = first.parts["reconstruction"].item(), first.parts["kl"].item()
    expected = kl / (image + kl) * second.parts["reconstruction"] + image / (image + kl) * second.parts["kl"]
    torch.testing.assert_close(second.total.detach(), expected, rtol=1e-5, atol=1e-3)


def test_evaluation_does_not_move_the_running_means() -> None:
    model, images = awake(rebalance=True), photos()
    model(Batch(images), STEP)
    model.after_step()
    assert model.balance.averages.min() > 0  # type: ignore[union-attr]
    model.eval()(Batch(images), STEP)
    before = model.balance.averages.clone()  # type: ignore[union-attr]
    model.after_step()
    assert torch.equal(model.balance.averages, before)  # type: ignore[union-attr]


class TestPerImageNormalisation:
    FIELDS: ClassVar[dict[str, Any]] = {"per_image_normalisation": True, "target": PixelTarget(loss="mse")}

    def test_the_loss_is_of_pictures_without_mean_and_spread(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, images = make(**self.FIELDS), photos()
        monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
        losses = model(Batch(images), STEP)
        pictures = images.double() / 255
        mean = pictures.mean((1, 2, 3), keepdim=True)
        spread = pictures.std((1, 2, 3), keepdim=True, correction=0)
        z = model.encode(images).mean
        outputs = model.decoder(model.from_latents(z).unflatten(1, model.decoder.in_shape)).double()
        expected = ((pictures - mean) / spread - outputs).square().sum((1, 2, 3)).mean()
        torch.testing.assert_close(losses.parts["reconstruction"].double(), expected, rtol=1e-4, atol=1e-3)

    def test_brightness_and_contrast_do_not_reach_the_latents(self) -> None:
        model = make(**self.FIELDS)
        images = photos() // 2
        brighter = images + 90
        torch.testing.assert_close(model.encode(brighter).mean, model.encode(images).mean, rtol=1e-4, atol=1e-4)
        plain = make(target=PixelTarget(loss="mse"))
        assert (plain.encode(brighter).mean - plain.encode(images).mean).abs().max() > 0.05

    def test_reconstructions_get_each_photo_s_own_brightness_back(self) -> None:
        model, images = make(**self.FIELDS), shapes(8)
        images[:4] //= 3
        train(model, images, 60, 5e-3)
        made = model.eval().reconstruct(images)
        pictures = images.float() / 255
        assert made.shape == pictures.shape
        assert made.min() >= 0
        assert made.max() <= 1
        torch.testing.assert_close(made.mean((1, 2, 3)), pictures.mean((1, 2, 3)), rtol=0, atol=0.05)
        # The wrong version, one brightness for all photos, misses.
        blind = model.decode(model.encode(images))
        assert (blind.mean((1, 2, 3)) - pictures.mean((1, 2, 3))).abs().max() > 0.1

    @pytest.mark.parametrize("grey", [False, True])
    def test_a_photo_of_one_colour_is_finite(self, grey: bool) -> None:
        model = make(grey=grey, **self.FIELDS)
        images = torch.full((2, 3, 16, 16), 77, dtype=torch.uint8)
        losses = model(Batch(images), STEP)
        losses.total.backward()
        assert torch.isfinite(losses.total)
        made = model.reconstruct(images)
        assert made.shape == (2, 3, 16, 16)
        torch.testing.assert_close(made, torch.full_like(made, 77 / 255), rtol=0, atol=0.05)

    def test_it_wants_squared_errors(self) -> None:
        with pytest.raises(ValidationError, match="kind: pixels, loss: mse"):
            VAEConfig(per_image_normalisation=True)
        with pytest.raises(ValidationError, match="kind: pixels, loss: mse"):
            VAEConfig(per_image_normalisation=True, target=HogTarget())


@pytest.mark.parametrize("network", NETWORKS)
def test_grey_models_see_brightness_alone_and_draw_three_equal_channels(network: Network) -> None:
    model = make(grey=True, network=network, hidden=(16, 16))
    images = photos()
    made = model.reconstruct(images)
    assert made.shape == (8, 3, 16, 16)
    assert torch.equal(made, made[:, :1].expand_as(made))
    first = next(p for name, p in model.named_parameters() if name.startswith("encoder") and name.endswith("weight"))
    assert first.shape[1] in (1, 256)
    losses = model(Batch(images), STEP)
    assert losses.parts["reconstruction"] < 16 * 16 * 2  # nats of 256 values, not of 768


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_reconstructs_hog_and_says_that_it_draws_no_pictures(network: Network, grey: bool) -> None:
    model = make(network=network, grey=grey, target=HogTarget(), hidden=(32, 32))
    curve = train(model, shapes(8), 15)
    assert curve[-1]["total"] < curve[0]["total"]
    with pytest.raises(NotReconstructing, match="hog"):
        model.reconstruct(shapes(2))


@pytest.mark.parametrize("loss", ["bce", "mse", "ssim"])
def test_every_loss_of_pixels_trains(loss: str) -> None:
    model = make(target={"kind": "pixels", "loss": loss, "ssim_window": 5})
    curve = train(model, shapes(8), 40, 5e-3)
    assert curve[-1]["reconstruction"] < 0.9 * curve[0]["reconstruction"]
    assert all(math.isfinite(step["total"]) for step in curve)


def test_dense_networks_have_no_maps_and_a_target_without_encoder_takes_none() -> None:
    for network in ("fc", "fc_conv"):
        with pytest.raises(ConfigError, match="network conv or fcn"):
            make(network=network).maps(torch.rand(1, 3, 16, 16))
    with pytest.raises(ConfigError, match="no frozen encoder"):
        make().use_frozen(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields", [{"beta": -1}, {"kl_warmup": 1.5}, {"free_bits": -0.1}, {"channels": ()}, {"hidden": (0, 4)}, {"gan": 1}]
)
def test_fields_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        VAEConfig(**fields)


@pytest.mark.slow
def test_latents_are_smooth_and_draws_lie_near_the_photos() -> None:
    """Decoded in twenty steps from one photo's mean to another's, no step is a jump; noise decodes to such photos."""
    images = shapes(256)
    model = make(beta=1.0)
    train(model, images, 400, rate=5e-3)
    model.eval()
    with torch.no_grad():
        mean = model.encode(images).mean
        shares = torch.linspace(0, 1, 21)[:, None, None]
        path = (1 - shares) * mean[:40] + shares * mean[40:80]
        drawn = torch.stack([model.decode(Latents(rows)) for rows in path])
        steps = (drawn[1:] - drawn[:-1]).square().flatten(2).mean(dim=2)  # [20, 40], MSE
        whole = (drawn[-1] - drawn[0]).square().flatten(1).mean(dim=1)
        assert whole.mean() > 0.01  # there is a way to go
        largest = (steps.max(dim=0).values / whole).mean()
        assert largest < 0.1
        # The control: nearest photos in place of the decoder jump.
        nearest = images[torch.cdist(path.flatten(0, 1), mean).argmin(dim=1)].float().view(21, 40, -1) / 255
        jumps = (nearest[1:] - nearest[:-1]).square().mean(dim=2).max(dim=0).values
        ends = (nearest[-1] - nearest[0]).square().mean(dim=1)
        assert (jumps / ends).mean() > 4 * largest

        def to_photos(pictures: Tensor) -> float:
            others = images.float().flatten(1) / 255
            return float(torch.cdist(pictures.flatten(1), others).min(dim=1).values.square().mean() / others.shape[1])

        torch.manual_seed(1)
        found = to_photos(model.decode(Latents(torch.randn(100, mean.shape[1]))))
        far = to_photos(model.decode(Latents(10 * torch.randn(100, mean.shape[1]))))
        grey = to_photos(torch.full((1, 3, 16, 16), 0.5))
    # The controls: where the prior puts nothing, and a picture of nothing.
    assert found < 0.6 * far
    assert found < 0.6 * grey

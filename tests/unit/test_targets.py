"""Targets: what they compare with, their scale, and that a frozen encoder leaves no trace in the model."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from pipeline.errors import ConfigError, NotReconstructing
from pipeline.losses import bce, feature_distance, mse, ssim_loss
from pipeline.models.backbones.hog import hog
from pipeline.models.base import to_grey
from pipeline.models.frozen import FrozenConfig, FrozenEncoder
from pipeline.models.targets import (
    FeatureTarget,
    HogTarget,
    PerceptualConfig,
    PixelTarget,
    Target,
    TargetConfig,
    build_target,
)

BUNDLE = FrozenConfig(model_id="0" * 64, layers=(0,))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


class TwoMaps(FrozenEncoder):
    """A frozen encoder with random weights: [B, 5, H / 2, W / 2] and [B, 6, H / 4, W / 4]."""

    def __init__(self, layers: tuple[int, ...] = (0,)) -> None:
        super().__init__(nn.ModuleList([nn.Conv2d(3, 5, 3, 2, 1), nn.Conv2d(5, 6, 3, 2, 1)]), layers)

    def _all(self, pictures: Tensor) -> list[Tensor]:
        first = self.network[0](pictures)
        return [first, self.network[1](F.silu(first))]


def every_target() -> list[Target]:
    made = [
        build_target(PixelTarget(loss=loss, perceptual=perceptual), 16)
        for loss in ("bce", "mse", "ssim")
        for perceptual in (None, PerceptualConfig(weight=0.3, encoder=BUNDLE))
    ]
    made += [build_target(PixelTarget(), 16, grey=True), build_target(HogTarget(), 16)]
    made += [build_target(FeatureTarget(encoder=BUNDLE, channels=5, size=8), 16)]
    for target in made:
        config = target.config
        assert isinstance(config, PixelTarget | HogTarget | FeatureTarget)
        if config.frozen() is not None:
            target.use_frozen(TwoMaps())
    return made


@pytest.mark.parametrize("number", range(9))
def test_every_target_is_a_mean_over_photos_with_parts_and_without_state(number: int) -> None:
    target = every_target()[number]
    outputs = torch.randn(3, target.channels, target.size, target.size, requires_grad=True)
    pictures = torch.rand(3, 3, 16, 16)
    total, parts = target.loss(outputs, pictures)
    assert total.shape == ()
    assert "reconstruction" in parts
    torch.testing.assert_close(torch.stack(list(parts.values())).sum(), total.detach())
    assert not any(part.requires_grad for part in parts.values())
    total.backward()
    assert outputs.grad is not None
    assert outputs.grad.abs().max() > 0
    doubled, _ = target.loss(torch.cat([outputs, outputs]), torch.cat([pictures, pictures]))
    torch.testing.assert_close(doubled, total)
    assert not list(target.parameters())
    assert not target.state_dict()
    assert [type(module) for module in target.modules()] == [type(target)]  # the encoder is no submodule
    with torch.autocast("cpu", torch.bfloat16):
        single, _ = target.loss(outputs.bfloat16(), pictures)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, total, rtol=0.02, atol=0)


def test_pixels_by_each_loss() -> None:
    logits, pictures = torch.randn(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    made = torch.sigmoid(logits)
    for loss, expected in (("bce", bce(logits, pictures)), ("mse", mse(made, pictures))):
        assert torch.equal(build_target(PixelTarget(loss=loss), 16).loss(logits, pictures)[0], expected)
    five = build_target(PixelTarget(loss="ssim", ssim_window=5), 16)
    assert torch.equal(five.loss(logits, pictures)[0], ssim_loss(made, pictures, window=5))
    assert torch.equal(five.picture(logits), made)


def test_grey_pixels_are_of_the_brightness() -> None:
    target = build_target(PixelTarget(loss="mse"), 16, grey=True)
    assert (target.channels, target.size) == (1, 16)
    logits, grey = torch.randn(2, 1, 16, 16), torch.rand(2, 1, 16, 16)
    assert torch.equal(target.loss(logits, grey.expand(-1, 3, -1, -1))[0], mse(torch.sigmoid(logits), grey))
    assert target.picture(logits).shape == (2, 3, 16, 16)
    colour = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    pillow = np.asarray(Image.fromarray(colour[0].permute(1, 2, 0).numpy()).convert("L"))
    np.testing.assert_allclose(to_grey(colour / 255.0)[0, 0].numpy() * 255, pillow, rtol=0, atol=0.51)


def test_the_perceptual_term_is_weighted_on_the_scale_of_a_picture_and_trains_the_decoder_only() -> None:
    encoder = TwoMaps((0, 1))
    config = PixelTarget(perceptual=PerceptualConfig(weight=0.3, encoder=BUNDLE))
    assert config.frozen() == BUNDLE
    target = build_target(config, 16)
    logits, pictures = torch.randn(2, 3, 16, 16, requires_grad=True), torch.rand(2, 3, 16, 16)
    with pytest.raises(ConfigError, match="use_frozen"):
        target.loss(logits, pictures)
    target.use_frozen(encoder)
    total, parts = target.loss(logits, pictures)
    expected = 0.3 * 3 * 16 * 16 * feature_distance(encoder.maps(torch.sigmoid(logits)), encoder.maps(pictures))
    torch.testing.assert_close(parts["perceptual"], expected.detach())
    total.backward()
    assert all(weight.grad is None for weight in encoder.parameters())
    _, parts = target.loss(torch.logit(pictures.double(), eps=1e-9).float(), pictures)
    assert parts["perceptual"] < 1e-3  # the same photo
    assert copy.deepcopy(target)._frozen[0] is encoder


def test_hog_is_zero_at_its_own_histograms_and_weighted() -> None:
    target = build_target(HogTarget(cell=4, bins=9), 28)
    assert (target.channels, target.size) == (9, 7)
    pictures = torch.rand(2, 3, 28, 28)
    assert target.loss(hog(pictures, 4, 9), pictures)[0].item() == 0.0
    off = hog(pictures, 4, 9) + 0.1
    torch.testing.assert_close(target.loss(off, pictures)[0].item(), 30 * 0.01 * 9 * 49, rtol=1e-4, atol=0)
    # Up to a constant the loss is the negative logarithm of a Gaussian's density with sigma^2 = 1 / (2 * weight).
    gaussian = torch.distributions.Normal(hog(pictures, 4, 9).double(), (1 / 60) ** 0.5)
    nats = [-gaussian.log_prob(hog(pictures, 4, 9).double() + step).sum() / 2 for step in (0.1, 0.0)]
    torch.testing.assert_close(target.loss(off, pictures)[0].double(), nats[0] - nats[1], rtol=1e-4, atol=0)
    with pytest.raises(NotReconstructing, match="pixels"):
        target.picture(off)
    grey = build_target(HogTarget(), 28, grey=True)
    assert grey.loss(hog(to_grey(pictures)), pictures)[0].item() == 0.0
    assert grey.loss(hog(pictures), pictures)[0].item() > 1.0


def test_features_are_standardised_at_every_position() -> None:
    encoder = TwoMaps((1,))
    target = build_target(FeatureTarget(encoder=BUNDLE, channels=6, size=4, weight=2.0), 16)
    target.use_frozen(encoder)
    pictures = torch.rand(2, 3, 16, 16)
    wanted = encoder.maps(pictures)[0].permute(0, 2, 3, 1).numpy()
    centred = wanted - wanted.mean(-1, keepdims=True)
    standard = torch.from_numpy(centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)).permute(0, 3, 1, 2)
    assert target.loss(standard, pictures)[0].item() < 1e-6
    torch.testing.assert_close(target.loss(standard + 0.5, pictures)[0].item(), 2 * 0.25 * 6 * 16, rtol=1e-4, atol=0)


def test_features_of_a_resnet_have_known_shapes_and_a_wrong_encoder_is_told_the_right_ones() -> None:
    config = FeatureTarget(encoder=FrozenConfig(weights="resnet18.pth", layers=(2,)))
    target = build_target(config, 64)
    assert (target.channels, target.size) == (128, 8)
    with pytest.raises(ConfigError, match="channels=5 size=32"):
        target.use_frozen(TwoMaps((0,)))


def test_targets_that_need_no_encoder_refuse_one() -> None:
    for config in (PixelTarget(), HogTarget()):
        assert config.frozen() is None
        with pytest.raises(ConfigError, match="no frozen encoder"):
            build_target(config, 16).use_frozen(TwoMaps())


class Holder(BaseModel):
    target: TargetConfig = PixelTarget()


def test_configurations_are_told_apart_by_kind_and_survive_json() -> None:
    for config in (
        PixelTarget(loss="ssim", ssim_window=5, perceptual=PerceptualConfig(encoder=BUNDLE)),
        HogTarget(cell=8),
        FeatureTarget(encoder=BUNDLE, channels=6, size=4),
    ):
        holder = Holder(target=config)
        assert Holder.model_validate_json(holder.model_dump_json()) == holder
    assert Holder.model_validate({"target": {"kind": "hog"}}).target == HogTarget(weight=30.0)
    for wrong in (
        {"kind": "edges"},
        {"kind": "pixels", "ssim_window": 10},
        {"kind": "hog", "weight": 0},
        {"kind": "features", "encoder": {"weights": "a.pth"}},  # two layers
        {"kind": "features", "encoder": {"model_id": "0" * 64, "layers": [1]}},  # its shape is not known
    ):
        with pytest.raises(ValidationError):
            Holder.model_validate({"target": wrong})


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"target\.cell is 8"):
        build_target(HogTarget(cell=8), 28)
    with pytest.raises(ConfigError, match="ssim_window is 31"):
        build_target(PixelTarget(loss="ssim", ssim_window=31), 16)

"""The plain autoencoder, its dropout, and what a VAE takes over from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models import Batch, Model, Step, build_model
from pipeline.models.autoencoder import AutoencoderConfig
from pipeline.models.cvae import CVAEConfig
from pipeline.models.pretraining import copy_convolutions
from pipeline.models.targets import HogTarget
from pipeline.models.vae import VAEConfig

SMALL: dict[str, Any] = {"channels": (8, 16), "latent_dim": 6}
STEP = Step(0, 10)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(seed: int = 0, **fields: Any) -> Model:
    torch.manual_seed(seed)
    return build_model(AutoencoderConfig(**{**SMALL, **fields}), image_size=16)


def photos(number: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (number, 3, 16, 16), dtype=torch.uint8, generator=generator)


def test_dropout_is_on_in_training_and_off_in_evaluation() -> None:
    model, images = make(), photos()
    losses = {model(Batch(images), STEP).total.item() for _ in range(4)}
    assert len(losses) == 4
    model.eval()
    losses = {model(Batch(images), STEP).total.item() for _ in range(4)}
    assert len(losses) == 1
    certain = make(dropout=0.0)
    assert certain(Batch(images), STEP).total.item() in losses


def test_dropout_zeroes_a_quarter_of_the_features_and_keeps_their_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = make(), []
    hook = model.to_latents.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))  # type: ignore[union-attr]
    images = photos(64)
    torch.manual_seed(0)
    model(Batch(images), STEP)
    model.encode(images)  # without dropout, in training mode too
    hook.remove()
    dropped, whole = seen
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert (whole == 0).float().mean().item() < 0.001
    torch.testing.assert_close(dropped[dropped != 0], whole[dropped != 0] / 0.75)


def test_the_loss_is_the_reconstruction_alone() -> None:
    model, images = make().eval(), photos()
    losses = model(Batch(images), STEP)
    made = model.reconstruct(images).clamp(1e-7, 1 - 1e-7)
    nats = nn.functional.binary_cross_entropy(made, images.float() / 255, reduction="sum") / 8
    torch.testing.assert_close(losses.total, nats, rtol=1e-5, atol=1e-3)
    assert set(losses.parts) == {"reconstruction"}
    assert model.encode(images).log_var is None


def convolutions_of(model: Model) -> set[str]:
    return {
        f"{prefix}.{name}"
        for prefix, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
        for name in layer.state_dict()
    }


@pytest.mark.parametrize("config", [VAEConfig(**SMALL), CVAEConfig(**SMALL)])
def test_a_vae_takes_over_exactly_the_convolutions(config: VAEConfig | CVAEConfig) -> None:
    source = make(seed=1)
    torch.manual_seed(2)
    model = build_model(config, image_size=16, labels=("bags",))
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    learnt = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    copied = copy_convolutions(model, source)
    assert set(copied) == convolutions_of(model) == convolutions_of(source)
    assert {name.split(".")[0] for name in copied} == {"encoder", "decoder"}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, learnt[name] if name in copied else fresh[name]), name
        if name not in copied and name in learnt and name.endswith("weight"):
            assert tensor.shape != learnt[name].shape or not torch.equal(tensor, learnt[name]), name
    assert "to_latents.weight" not in copied
    assert all(torch.equal(tensor, learnt[name]) for name, tensor in source.state_dict().items())
    # A copy, not the same memory: training the VAE leaves the source as it is.
    model(Batch(photos()), STEP).total.backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    assert all(torch.equal(tensor, learnt[name]) for name, tensor in source.state_dict().items())


def test_normalisations_come_with_their_convolutions() -> None:
    for norm in ("group", "batch"):
        source = make(norm=norm)
        source(Batch(photos()), STEP)
        torch.manual_seed(3)
        model = build_model(VAEConfig(norm=norm, **SMALL), image_size=16)
        copied = copy_convolutions(model, source)
        assert "encoder.stages.1.weight" in copied
        assert ("encoder.stages.1.running_mean" in copied) == (norm == "batch")
        for name in copied:
            assert torch.equal(model.state_dict()[name], source.state_dict()[name])


def test_what_fits_is_taken_and_nothing_fitting_is_an_error() -> None:
    source = make(target=HogTarget())  # its decoder ends in other widths
    model = build_model(VAEConfig(**SMALL), image_size=16)
    copied = copy_convolutions(model, source)
    assert copied
    assert all(name.startswith("encoder.") for name in copied)
    for other in ({"channels": (5, 7)}, {"network": "fc"}):
        with pytest.raises(ConfigError, match=r"no convolution.*same network and channels"):
            copy_convolutions(build_model(VAEConfig(**{**SMALL, **other}), image_size=16), source)


def test_pretrained_convolutions_begin_below_fresh_ones() -> None:
    images = photos(4) // 8
    images[:, :, 4:12, 4:12] += 200  # the same bright square on every photo
    source = make(dropout=0.0)
    optimiser = torch.optim.Adam(source.parameters(), 5e-3)
    for number in range(60):
        optimiser.zero_grad()
        source(Batch(images), Step(number, 60)).total.backward()
        optimiser.step()

    def loss_after(steps: int, *, pretrained: bool) -> float:
        torch.manual_seed(0)
        model = build_model(VAEConfig(**SMALL), image_size=16)
        if pretrained:
            copy_convolutions(model, source)
        adam = torch.optim.Adam(model.parameters(), 2e-3)
        for number in range(steps):
            adam.zero_grad()
            total = model(Batch(images), Step(number, steps)).total
            total.backward()
            adam.step()
        return float(total.item())

    assert loss_after(10, pretrained=True) < loss_after(10, pretrained=False)

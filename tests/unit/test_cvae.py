"""The conditional VAE: what a category does, and that a missing or an unseen one never fails."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.models import Batch, Latents, Model, Step, build_model
from pipeline.models.conditions import condition_of
from pipeline.models.cvae import CVAE, CVAEConfig
from pipeline.models.targets import PixelTarget
from pipeline.models.vae import VAEConfig

LABELS = ("bags", "hats", "shoes")
STEP = Step(0, 10)
FIELDS: dict[str, Any] = {"channels": (8, 16), "latent_dim": 4, "beta": 4.0, "target": PixelTarget(loss="mse")}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(labels: tuple[str, ...] = LABELS, **fields: Any) -> CVAE:
    torch.manual_seed(0)
    config = CVAEConfig(**{"channels": (8, 16), "latent_dim": 4, "condition_dim": 5, **fields})
    model = build_model(config, image_size=16, labels=labels)
    assert isinstance(model, CVAE)
    return model


def photos(number: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (number, 3, 16, 16), dtype=torch.uint8, generator=generator)


def drawn(number: int = 48) -> tuple[Tensor, Tensor]:
    """Return photos and their conditions: the category is a square in one of three corners, and what else differs
    between photos is a stripe of any brightness below."""
    generator = torch.Generator().manual_seed(0)
    images = torch.full((number, 3, 16, 16), 230, dtype=torch.uint8)
    brightness = torch.randint(0, 230, (number,), generator=generator)
    for row in range(number):
        corner = row % 3
        images[row, :, 1:6, 5 * corner : 5 * corner + 5] = 20
        images[row, :, 10:15, 2:14] = int(brightness[row])
    return images, torch.arange(number) % 3 + 2


def train(model: Model, images: Tensor, condition: Tensor | None, steps: int, rate: float = 5e-3) -> None:
    model.train()
    optimiser = torch.optim.Adam(model.parameters(), rate)
    for number in range(steps):
        optimiser.zero_grad()
        model(Batch(images, condition), Step(number, steps)).total.backward()
        optimiser.step()


@pytest.fixture(scope="module")
def told() -> CVAE:
    torch.set_num_threads(1)
    model = make(**FIELDS)
    train(model, *drawn(), 250)
    model.eval()
    return model


@pytest.mark.slow
def test_swapping_the_category_changes_the_picture_and_keeps_the_latents(told: CVAE) -> None:
    model = told
    images, condition = drawn()
    latents = model.encode(images, condition)
    kept = latents.mean.clone()
    squares = [slice(5 * corner, 5 * corner + 5) for corner in range(3)]
    for wanted in range(3):
        swapped = model.decode(latents, torch.full_like(condition, wanted + 2))
        darkness = torch.stack([1 - swapped[:, :, 1:6, square].mean((1, 2, 3)) for square in squares], 1)
        assert (darkness.argmax(1) == wanted).float().mean() > 0.95  # the square goes where the category says
    assert torch.equal(latents.mean, kept)
    # The stripe, which the latents hold, stays what it was.
    own, other = model.decode(latents, condition), model.decode(latents, condition.roll(1))
    stripes = [made[:, :, 11:14, 3:13].mean((1, 2, 3)) for made in (own, other)]
    assert torch.corrcoef(torch.stack(stripes))[0, 1] > 0.8


def probe(model: Model, images: Tensor, condition: Tensor | None, classes: Tensor) -> float:
    """Return how well the nearest class mean tells the category from the latents of other photos, 0..1."""
    means = model.eval().encode(images, condition).mean.detach()
    means = means - means.mean(0)
    half = len(means) // 2
    centres = torch.stack([means[:half][classes[:half] == one].mean(0) for one in classes.unique()])
    found = torch.cdist(means[half:], centres).argmin(1) + 2
    return (found == classes[half:]).float().mean().item()


@pytest.mark.slow
def test_latents_told_the_category_hold_less_of_it_than_a_vae_s(told: CVAE) -> None:
    images, condition = drawn()
    torch.manual_seed(0)
    untold = build_model(VAEConfig(**FIELDS), image_size=16)
    train(untold, images, None, 250)
    assert probe(untold, images, None, condition) > 0.9
    assert probe(told, images, condition, condition) < 0.85
    # The latents are spared the nats that name one of three categories.
    with_condition = told(Batch(images, condition), STEP)
    without = untold.eval()(Batch(images), STEP)
    assert without.parts["kl"] - with_condition.parts["kl"] > 0.9 * math.log(3)
    assert with_condition.total < without.total


def test_a_category_is_seen_by_the_encoder_and_by_the_decoder() -> None:
    model, images = make().eval(), photos()
    bags, hats = torch.full((8,), 2), torch.full((8,), 3)
    assert (model.encode(images, bags).mean - model.encode(images, hats).mean).abs().max() > 1e-3
    z = Latents(torch.zeros(8, 4))
    assert (model.decode(z, bags) - model.decode(z, hats)).abs().max() > 1e-3


@pytest.mark.parametrize("labels", [(), ("bags",), LABELS])
def test_a_missing_or_unseen_category_never_fails(labels: tuple[str, ...]) -> None:
    model, images = make(labels).eval(), photos(4)
    assert model.categories.num_embeddings == 2 + len(labels)
    none, unknown = torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64)
    for made, row in (
        (model.encode(images).mean, none),
        (model.encode(images, condition_of(labels, [None] * 4)).mean, none),
        (model.encode(images, condition_of(labels, ["never met"] * 4)).mean, unknown),
        (model.encode(images, torch.tensor([2 + len(labels), 10**6, -1, -(2**62)])).mean, unknown),
    ):
        torch.testing.assert_close(made, model.encode(images, row).mean, rtol=0, atol=0)
    latents = model.encode(images)
    torch.testing.assert_close(model.decode(latents), model.decode(latents, none), rtol=0, atol=0)
    torch.testing.assert_close(model.decode(latents, none + 77), model.decode(latents, unknown), rtol=0, atol=0)
    for training in (True, False):
        model.train(training)
        for condition in (None, none, unknown, none + 77):
            assert torch.isfinite(model(Batch(images, condition), STEP).total)


def test_condition_dropout_teaches_the_rows_of_none_and_unknown() -> None:
    images, condition = drawn(64)
    for fields, learnt in (
        ({}, [True, True]),
        ({"unknown_dropout": 0.0}, [True, False]),
        ({"condition_dropout": 0.0, "unknown_dropout": 0.0}, [False, False]),
    ):
        model = make(**fields)
        before = model.categories.weight.detach().clone()
        train(model, images, condition, 10)
        moved = (model.categories.weight.detach() - before).abs().sum(1) > 0
        assert moved.tolist() == [*learnt, True, True, True]


def test_the_shares_that_are_dropped_and_whom_it_spares() -> None:
    model = make(condition_dropout=0.2, unknown_dropout=0.1)
    torch.manual_seed(0)
    condition = torch.randint(2, 5, (20_000,))
    told = model.dropped(condition)
    assert told is not None
    assert (told == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert (told == 1).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(told[told > 1], condition[told > 1])
    assert torch.equal(model.dropped(torch.zeros(1000, dtype=torch.int64)), torch.zeros(1000, dtype=torch.int64))
    assert model.dropped(None) is None
    assert torch.equal(model.eval().dropped(condition), condition)


def test_a_condition_belongs_to_its_own_photo() -> None:
    model, images = make().eval(), photos(6)
    condition = torch.tensor([0, 1, 2, 3, 4, 2])
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    whole = model.encode(images, condition).mean
    torch.testing.assert_close(model.encode(images[order], condition[order]).mean, whole[order], rtol=1e-5, atol=1e-5)
    told = model.reconstruct(images, condition)
    latents = model.encode(images, condition)
    torch.testing.assert_close(told, model.decode(latents, condition), rtol=0, atol=0)


@pytest.mark.parametrize("network", ["conv", "fc", "fc_conv", "fcn"])
def test_every_network_takes_conditions(network: str) -> None:
    model = make(network=network, hidden=(32, 32))
    condition = torch.tensor([0, 1, 2, 3, 4, 9, 2, 3])
    model(Batch(photos(), condition), STEP).total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.reconstruct(photos(), condition).shape == (8, 3, 16, 16)


def test_dropouts_that_leave_no_category_are_refused() -> None:
    with pytest.raises(ValidationError, match="below 1"):
        CVAEConfig(condition_dropout=0.6, unknown_dropout=0.4)

"""Validation against brute force over all photos at once; it leaves no trace in the training's random numbers."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from pipeline.errors import CodebooksError, NotReconstructing
from pipeline.losses.gaussian import active_units
from pipeline.models import MODELS, build_model
from pipeline.models.base import Batch, Latents, Losses, Model, Step, to_float
from pipeline.training.ranks import Ranks
from pipeline.training.validation import Validation, validate

SIZE, PHOTOS, DIM = 16, 23, 6
LABELS = ("hat", "shoe")


class Blurring(Model):
    """Gaussian latents, codes, a reconstruction that is off by a little, noise in its loss."""

    has_log_var = True
    num_latent_codes = 4

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image_size, self.latent_dim = SIZE, DIM
        self.project = nn.Linear(3 * SIZE * SIZE, DIM)
        self.drop = nn.Dropout(0.5)
        with torch.no_grad():
            # Two dimensions stay silent; an offset of 1000 would drown a variance computed in float32.
            self.project.weight[:2] = 0
            self.project.bias += 1000

    def forward(self, batch: Batch, step: Step) -> Losses:
        assert not torch.is_grad_enabled()
        error = self.drop(to_float(batch.images)).flatten(1).sum(1).mean()
        noise = torch.randn(()) * 0 + np.random.random() * 0 + random.random() * 0
        return Losses(error + step.number, {"brightness": error + noise})

    def encode(self, images: Tensor, condition: Tensor | None = None) -> Latents:
        mean = self.project(to_float(images).flatten(1))
        return Latents(mean, torch.zeros_like(mean), images[:, 0, :2, :2].flatten(1).long() // 8)

    def reconstruct(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        assert not self.training
        return (to_float(images) * 0.9 + 0.02 * images[:, :1, :1, :1] / 255).clamp(0, 1)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def photos() -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (PHOTOS, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    return Batch(images, torch.randint(0, 4, (PHOTOS,), generator=generator))


def batches(sizes: Sequence[int] = (10, 10, 3)) -> list[Batch]:
    everything = photos()
    pairs = zip(everything.images.split(list(sizes)), everything.condition.split(list(sizes)), strict=True)
    return [Batch(*pair) for pair in pairs]


def measured(model: Model, given: Sequence[Batch]) -> Validation:
    return validate(model, given, Ranks(), step=Step(9, 10), seed=3, labels=LABELS)


def test_measures_are_those_of_all_photos_at_once():
    model, everything = Blurring(), photos()
    found = measured(model, batches()).measures
    pictures = to_float(everything.images)
    with torch.no_grad():
        latents, made = model.encode(everything.images), model.eval().reconstruct(everything.images)
    brightness = pictures.sum((1, 2, 3)).mean().item()
    assert found["validation/brightness"] == pytest.approx(brightness, rel=1e-6)
    assert found["validation/total"] == pytest.approx(brightness + 9, rel=1e-6)
    errors = (made - pictures).double().square().mean((1, 2, 3))
    assert found["validation/mse"] == pytest.approx(errors.mean().item(), rel=1e-6)
    assert found["validation/active_units"] == active_units(latents.mean) == DIM - 2
    _, counts = np.unique(latents.codes.numpy(), return_counts=True)
    shares = counts / counts.sum()
    assert found["validation/used_codes"] == len(counts)
    assert found["validation/perplexity"] == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-9)
    one_by_one = measured(model, batches([1] * PHOTOS)).measures
    assert one_by_one == pytest.approx(dict(found), rel=1e-6)


def test_similarity_is_that_of_scikit_image():
    model, everything = Blurring().eval(), photos()
    made = model.reconstruct(everything.images).double().numpy()
    values = []
    for picture, target in zip(made, to_float(everything.images).double().numpy(), strict=True):
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
        _, shown = structural_similarity(picture, target, channel_axis=0, full=True, **options)
        values.append(shown[:, 5:-5, 5:-5].mean())
    found = measured(model, batches()).measures["validation/ssim"]
    assert found == pytest.approx(float(np.mean(values)), abs=1e-5)


def test_a_mean_of_batch_means_is_another_number():
    """Negative control: batches of 10, 10 and 3 photos, each weighing the same."""
    given = batches()
    wrong = float(np.mean([to_float(batch.images).sum((1, 2, 3)).mean() for batch in given]))
    assert measured(Blurring(), given).measures["validation/brightness"] != pytest.approx(wrong, rel=1e-4)


def test_categories_have_names_and_the_worst_is_first():
    model, everything = Blurring().eval(), photos()
    found = measured(model, batches())
    errors = (model.reconstruct(everything.images) - to_float(everything.images)).double().square().mean((1, 2, 3))
    names = ["<none>", "<unknown>", *LABELS]
    expected = {name: errors[everything.condition == row].mean().item() for row, name in enumerate(names)}
    assert dict(found.categories) == pytest.approx(expected, rel=1e-6)
    values = list(found.categories.values())
    assert values == sorted(values, reverse=True)
    assert found.measures["validation/worst_category_mse"] == values[0]
    assert found.measures["validation/best_category_mse"] == values[-1]
    unnamed = validate(model, batches(), Ranks(), step=Step(0, 1), seed=0)
    assert set(unnamed.categories) == {"<none>", "<unknown>", "row 2", "row 3"}
    without = measured(model, [Batch(batch.images) for batch in batches()])
    assert without.categories == {}
    assert "validation/worst_category_mse" not in without.measures


def test_pictures_show_originals_above_reconstructions():
    model, everything = Blurring().eval(), photos()
    pictures = measured(model, batches()).pictures
    assert (pictures.dtype, tuple(pictures.shape)) == (torch.uint8, (3, 2 * SIZE, 8 * SIZE))
    assert torch.equal(pictures[:, :SIZE, SIZE : 2 * SIZE], everything.images[1])
    made = (model.reconstruct(everything.images[1:2])[0] * 255).round().to(torch.uint8)
    assert torch.equal(pictures[:, SIZE:, SIZE : 2 * SIZE], made)


def draws() -> list[float]:
    return [torch.randn(()).item(), float(np.random.random()), random.random()]


@pytest.mark.parametrize("training", [True, False])
def test_random_numbers_and_mode_are_as_before(training: bool):
    model = Blurring().train(training)
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    undisturbed = draws()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    measured(model, batches())
    assert draws() == undisturbed
    assert model.training is training


def test_without_restoring_them_they_differ(monkeypatch: pytest.MonkeyPatch):
    """Negative control: the model does draw."""
    monkeypatch.setattr("pipeline.training.validation.restore_random", lambda state, device: None)
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    undisturbed = draws()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    measured(Blurring(), batches())
    assert draws() != undisturbed


def test_the_noise_is_the_same_in_every_epoch():
    class Noisy(Blurring):
        def forward(self, batch: Batch, step: Step) -> Losses:
            return Losses(torch.randn(()))

    model = Noisy()
    first = measured(model, batches()).measures["validation/total"]
    torch.randn(10)
    assert measured(model, batches()).measures["validation/total"] == first


def test_a_model_without_a_decoder_has_no_picture_measures():
    class Blind(Blurring):
        has_log_var = False

        def encode(self, images: Tensor, condition: Tensor | None = None) -> Latents:
            return Latents(self.project(to_float(images).flatten(1)))

        def reconstruct(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
            raise NotReconstructing("Blind has no decoder to pixels")

    found = measured(Blind(), batches())
    assert set(found.measures) == {"validation/total", "validation/brightness"}
    assert found.pictures is None


@pytest.mark.parametrize("place", ["loss", "latents"])
def test_what_is_no_number_stops(place: str):
    model = Blurring().train()
    if place == "latents":
        with torch.no_grad():
            model.project.bias[3] = float("nan")
    else:
        model.forward = lambda batch, step: Losses(torch.tensor(float("nan")))
    with pytest.raises(CodebooksError, match="is not a number") as raised:
        measured(model, batches())
    assert "validation/total" in str(raised.value)
    assert model.training


@pytest.mark.parametrize("kind", sorted(kind for kind, (_, model) in MODELS.items() if model.trains))
def test_every_model_is_measured(kind: str):
    torch.manual_seed(0)
    small = {"channels": [4, 8]} if "channels" in MODELS[kind][0].model_fields else {}
    if kind == "distilled":
        small |= {"teacher": "a" * 64, "numbers": 4, "cells": 1}
    config = MODELS[kind][0].model_validate({"kind": kind, **small})
    model = build_model(config, image_size=SIZE, labels=LABELS)
    if model.prepares:
        model.prepare(with_features(batches()))
    if (wanted := config.frozen()) is not None:
        pytest.skip(f"{kind} needs {wanted}")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = measured(model, with_features(batches()) if model.num_features else batches())
    assert "validation/total" in found.measures
    draws = type(model).decode is not Model.decode
    assert ({"validation/mse", "validation/ssim"} <= set(found.measures)) == draws
    assert ("validation/active_units" in found.measures) == model.has_log_var
    levels = {"vqvae": [""], "vqvae2": ["top/", "bottom/"]}.get(kind, [])
    counted = {name for name in found.measures if name.endswith(("used_codes", "perplexity"))}
    assert counted == {f"validation/{level}{name}" for level in levels for name in ("used_codes", "perplexity")}
    assert set(found.categories) == ({"<none>", "<unknown>", *LABELS} if draws else set())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.scalars() == {}  # what a training notes of its own steps is not touched


def with_features(given):
    """Return batches with what a teacher might say of the photos: four numbers of each."""
    return [replace(batch, features=batch.images.flatten(1)[:, :4].float()) for batch in given]


def test_no_photo_is_no_measure():
    found = measured(Blurring(), [])
    assert (found.measures, found.categories, found.pictures) == ({}, {}, None)

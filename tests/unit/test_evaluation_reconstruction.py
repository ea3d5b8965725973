"""Reconstruction measures against NumPy, SciPy and scikit-image; per category, where a mean over photos is blind."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, laplace
from skimage.metrics import structural_similarity
from torch import Tensor

from pipeline.errors import InputError, NotReconstructing
from pipeline.evaluation.reconstruction import (
    PhotoErrors,
    category_errors,
    photo_errors,
    reconstruct_errors,
    reconstruction_measures,
)
from pipeline.models.base import Batch, Latents, Losses, Model, Step
from pipeline.models.conditions import condition_of


def photos(count: int = 6, size: int = 24) -> np.ndarray:
    """Return photos with edges and texture, float64 [n, size, size, 3] in 0..1."""
    rng = np.random.default_rng(0)
    blocks = rng.uniform(0, 1, (count, size // 4, size // 4, 3)).repeat(4, 1).repeat(4, 2)
    return (0.7 * blocks + 0.3 * rng.uniform(0, 1, blocks.shape)).astype(np.float64)


def tensor(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy())


def blurred(pictures: np.ndarray, sigma: float = 1.0) -> np.ndarray:
    return np.stack([gaussian_filter(photo, (sigma, sigma, 0)) for photo in pictures])


def test_errors_are_those_of_other_libraries() -> None:
    original = photos()
    drawn = blurred(original)
    found = photo_errors(tensor(original), tensor(drawn))
    np.testing.assert_allclose(found.mse, np.square(original - drawn).mean(axis=(1, 2, 3)), rtol=1e-12)
    for row, (photo, other) in enumerate(zip(original, drawn, strict=True)):
        _, full = structural_similarity(
            photo,
            other,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
            channel_axis=-1,
            full=True,
        )
        assert found.ssim[row] == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-9)
        for values, wanted in ((found.detail, photo), (found.drawn_detail, other)):
            edges = laplace(wanted @ np.array([0.299, 0.587, 0.114]))[1:-1, 1:-1]
            assert values[row] == pytest.approx(edges.var(), rel=1e-9)
    # Negative control: similarity with the range of each batch instead of 1.
    narrow = structural_similarity(original[0], drawn[0], data_range=float(np.ptp(original[0]) / 4), channel_axis=-1)
    assert abs(narrow - found.ssim[0]) > 0.01


def test_high_frequency_falls_with_blur_and_rises_with_noise() -> None:
    original = photos()

    def ratio(drawn: np.ndarray) -> float:
        return reconstruction_measures(photo_errors(tensor(original), tensor(drawn)))["high_frequency"]

    shares = [ratio(blurred(original, sigma)) for sigma in (0.5, 1.0, 2.0)]
    assert ratio(original) == pytest.approx(1)
    assert 0.9 > shares[0] > shares[1] > shares[2] > 0
    assert ratio(original + np.random.default_rng(1).normal(0, 0.1, original.shape)) > 1.05
    # Negative control: the error alone prefers grey to the photo moved by a block, which is as sharp as it was.
    moved, grey = np.roll(original, 4, axis=2), np.full_like(original, original.mean())
    assert np.square(moved - original).mean() > np.square(grey - original).mean()
    assert ratio(moved) > 0.9
    assert ratio(grey) == 0


def test_a_flat_photo_does_not_decide_the_ratio() -> None:
    original = photos()
    original[0] = 0.5
    drawn = blurred(original)
    drawn[0] = 0.5 + np.random.default_rng(2).normal(0, 1e-3, drawn[0].shape)
    errors = photo_errors(tensor(original), tensor(drawn))
    assert reconstruction_measures(errors)["high_frequency"] < 0.5
    with np.errstate(divide="ignore"):
        assert not np.mean(errors.drawn_detail / errors.detail) < 10  # the known wrong version: a mean of ratios
    flat = tensor(np.full_like(original, 0.5))
    assert reconstruction_measures(photo_errors(flat, flat))["high_frequency"] == 0


def test_the_mean_hides_the_worst_category() -> None:
    names: list[str | None] = ["shirt"] * 90 + ["boot"] * 9 + [None]
    error = np.concatenate([np.full(90, 0.01), np.full(9, 0.2), [5.0]])
    errors = PhotoErrors(error, 1 - error, np.ones(100), np.ones(100))
    worst, best = category_errors(errors, names)
    assert (worst.category, worst.photos, best.category, best.photos) == ("boot", 9, "shirt", 90)
    assert (worst.mse, best.mse) == pytest.approx((0.2, 0.01))
    assert (worst.ssim, best.ssim) == pytest.approx((0.8, 0.99))
    hidden = reconstruction_measures(PhotoErrors(*(getattr(errors, name)[:99] for name in PhotoErrors.__slots__)))
    assert hidden["mse"] < 0.15 * worst.mse
    with pytest.raises(InputError, match="100 photos and 3 categories"):
        category_errors(errors, ["a", "b", "c"])


class Drawing(Model):
    """A model without training that draws what `draw` makes of a photo and its condition."""

    def __init__(self, draw: Callable[[Tensor, Tensor | None], Tensor]) -> None:
        super().__init__()
        self.image_size, self.latent_dim, self.draw = 24, 1, draw
        self.given: list[int] = []

    def forward(self, batch: Batch, step: Step) -> Losses:
        raise AssertionError("a measure does not train")

    def encode(self, images: Tensor, condition: Tensor | None = None) -> Latents:
        assert not self.training
        self.given.append(len(images))
        return Latents(images.float().flatten(1) / 255)

    def decode(self, latents: Latents, condition: Tensor | None = None) -> Tensor:
        return self.draw(latents.mean.view(-1, 3, 24, 24), condition)


def test_a_model_is_asked_in_batches_and_in_evaluation_mode() -> None:
    pixels = (photos(7) * 255).astype(np.uint8)
    model = Drawing(lambda pictures, _: pictures * 0.5)
    errors = reconstruct_errors(model.train(), pixels, batch_size=3)
    wanted = np.square(pixels / 255.0 * 0.5).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(errors.mse, wanted, rtol=1e-5)
    assert model.given == [3, 3, 1]
    whole = reconstruct_errors(model, pixels, batch_size=7)
    np.testing.assert_allclose(whole.ssim, errors.ssim, rtol=1e-6)


def test_conditions_go_to_their_photos() -> None:
    pixels = (photos(5) * 255).astype(np.uint8)
    rows = condition_of(["boot", "shirt"], ["shirt", "boot", None, "hat", "shirt"]).numpy()

    def draw(pictures: Tensor, condition: Tensor | None) -> Tensor:
        assert condition is not None
        return pictures + condition.view(-1, 1, 1, 1) / 10

    errors = reconstruct_errors(Drawing(draw), pixels, conditions=rows, batch_size=2)
    np.testing.assert_allclose(errors.mse, np.square(np.array([3, 2, 0, 1, 3]) / 10), rtol=1e-4, atol=1e-9)


def test_what_has_no_pictures_is_refused() -> None:
    class Blind(Drawing):
        def decode(self, latents: Latents, condition: Tensor | None = None) -> Tensor:
            return Model.decode(self, latents, condition)

    pixels = (photos(2) * 255).astype(np.uint8)
    with pytest.raises(NotReconstructing, match="Blind has no decoder"):
        reconstruct_errors(Blind(lambda pictures, _: pictures), pixels)
    with pytest.raises(InputError, match="no photos to reconstruct"):
        reconstruct_errors(Drawing(lambda pictures, _: pictures), pixels[:0])
    with pytest.raises(InputError, match="not of one shape"):
        photo_errors(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 9, 9))

"""The spaces that cost no training: shapes, what they are fitted on, and what they are fitted to."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from pipeline.evaluation.baselines import (
    hog_features,
    model_latents,
    pixel_features,
    principal_components,
    untrained_model,
)
from pipeline.evaluation.spaces import (
    baseline_spaces,
    has_umap,
    model_space,
    thumbnails,
    untrained_space,
)
from pipeline.models import AnyModelConfig, build_model

VAE = {"kind": "vae", "latent_dim": 6, "channels": (8, 16)}


def config(**values: Any) -> Any:
    return TypeAdapter(AnyModelConfig).validate_python(values)


def photos(count: int, size: int = 32, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3))
    return np.kron(coarse, np.ones((1, size // 8, size // 8, 1))).astype(np.uint8)


@pytest.fixture
def without_umap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)


@pytest.mark.usefixtures("without_umap")
def test_every_baseline_has_the_dimensions_it_names() -> None:
    known, asked = photos(90), photos(7, seed=1)
    spaces = {space.name: space for space in baseline_spaces(known, seed=0, untrained=config(**VAE))}
    expected = {"raw pixels": 32 * 32 * 3, "PCA-10": 10, "PCA-64": 64, "HOG + PCA-10": 10, "HOG + PCA-64": 64,
                "random weights": 6}  # fmt: skip
    assert {name: space.dims for name, space in spaces.items()} == expected
    for space in spaces.values():
        found = space.encode(asked)
        assert found.shape == (7, space.dims)
        assert found.dtype == np.float32
        # A photo's latents do not depend on the photos beside it.
        np.testing.assert_allclose(found[:3], space.encode(asked[:3]), atol=1e-4)
    axes = principal_components(pixel_features(known), 10)
    np.testing.assert_allclose(spaces["PCA-10"].encode(asked), axes.project(pixel_features(asked)), atol=1e-3)
    axes = principal_components(hog_features(known, cell=4), 64)
    np.testing.assert_allclose(spaces["HOG + PCA-64"].encode(asked), axes.project(hog_features(asked)), atol=1e-3)
    np.testing.assert_array_equal(
        spaces["random weights"].encode(asked), model_latents(untrained_model(config(**VAE), 32), asked)
    )


@pytest.mark.usefixtures("without_umap")
def test_fitting_sees_the_known_photos_alone() -> None:
    """The same known photos and other asked ones: the same axes. Negative control: asked photos among the known."""
    known, asked = photos(80), photos(5, seed=1)
    first = {space.name: space for space in baseline_spaces(known, seed=0)}
    before = {name: space.encode(known) for name, space in first.items()}
    for space in first.values():
        space.encode(asked)
    again = {space.name: space.encode(known) for space in baseline_spaces(known, seed=0)}
    leaked = {space.name: space.encode(known) for space in baseline_spaces(np.concatenate([known, asked]), seed=0)}
    for name, values in before.items():
        assert np.array_equal(values, first[name].encode(known)), name
        assert np.array_equal(values, again[name]), name
        assert name == "raw pixels" or np.abs(values - leaked[name]).max() > 1e-2, name


@pytest.mark.usefixtures("without_umap")
def test_few_photos_give_fewer_components_and_the_name_says_so() -> None:
    names = [space.name for space in baseline_spaces(photos(30), seed=0)]
    assert names == ["raw pixels", "PCA-10", "PCA-29", "HOG + PCA-10", "HOG + PCA-29"]


@pytest.mark.usefixtures("without_umap")
def test_grey_photos_are_one_value_a_pixel() -> None:
    grey = np.repeat(photos(20)[..., :1], 3, axis=3)
    first = next(iter(baseline_spaces(grey, seed=0)))
    assert first.dims == 32 * 32
    assert np.array_equal(first.encode(grey), pixel_features(grey, grey=True))


@pytest.mark.usefixtures("without_umap")
def test_what_is_not_trained_has_no_random_weights() -> None:
    fused = config(kind="fusion", members=["a" * 64, "b" * 64], read_out={"dims": 8},
                   parts=[{"model": VAE}, {"model": {"kind": "descriptor", "read_out": {"dims": None}}}])  # fmt: skip
    for untrained in (fused, config(kind="descriptor"), config(kind="pretrained")):
        names = {space.name for space in baseline_spaces(photos(90), seed=0, untrained=untrained)}
        assert names == {"raw pixels", "PCA-10", "PCA-64", "HOG + PCA-10", "HOG + PCA-64"}


def test_thumbnails_are_means_of_blocks() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 21, 21, 3), np.uint8)
    small = thumbnails(pixels, side=8)
    assert small.shape == (3, 7, 7, 3)
    expected = np.round(pixels[1, 3:6, 6:9].reshape(9, 3).mean(axis=0))
    assert small[1, 1, 2].tolist() == expected.tolist()
    assert thumbnails(pixels, side=21) is pixels
    assert thumbnails(pixels, side=20).shape == (3, 10, 10, 3)


def test_a_read_out_that_is_fitted_is_fitted_on_the_known_photos() -> None:
    fitted = config(kind="simclr", read_out={"pool": "map", "cells": 2, "dims": 5, "whiten": True})
    known = photos(60)
    space = untrained_space(fitted, known, seed=1)
    latents = space.encode(known)
    assert latents.shape == (60, 5) == (60, space.dims)
    np.testing.assert_allclose(latents.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(latents.std(axis=0), 1, rtol=0.05)
    # Negative control: other known photos, another read-out.
    assert not np.allclose(untrained_space(fitted, photos(60, seed=3), seed=1).encode(known), latents, atol=1e-2)


def test_a_conditional_model_is_told_no_category() -> None:
    model = build_model(
        config(kind="cvae", latent_dim=4, channels=(8, 16)), image_size=32, labels=("bag", "hat")
    ).eval()
    space = model_space("ours", model)
    assert (space.name, space.dims) == ("ours", 4)
    pixels = photos(3)
    assert space.encode(pixels).shape == (3, 4)
    asked: list[Any] = []
    encode = model.encode
    model.encode = lambda images, condition=None: asked.append(condition) or encode(images, condition)  # type: ignore[method-assign,assignment]
    space.encode(pixels)
    assert asked == [None]


def test_umap_is_there_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in, since the package is an extra: fitted on known photos, and asked for the others'."""
    fitted: list[np.ndarray] = []

    class Standin:
        def __init__(self, **settings: Any) -> None:
            self.settings = settings

        def fit(self, rows: np.ndarray) -> Standin:
            fitted.append(rows)
            return self

        def transform(self, rows: np.ndarray) -> np.ndarray:
            return rows[:, :10].astype(np.float64)

    module = ModuleType("umap")
    module.__spec__ = ModuleSpec("umap", None)
    module.UMAP = Standin  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "umap", module)
    assert has_umap()
    known, asked = photos(40), photos(4, seed=1)
    spaces = {space.name: space for space in baseline_spaces(known, seed=0)}
    assert len(fitted) == 1
    assert np.array_equal(fitted[0], pixel_features(known))
    assert np.array_equal(spaces["UMAP-10"].encode(asked), pixel_features(asked)[:, :10])
    monkeypatch.setitem(sys.modules, "umap", None)
    assert not has_umap()
    assert "UMAP-10" not in [space.name for space in baseline_spaces(known, seed=0)]

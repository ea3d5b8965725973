"""The model contract, over every model of the table, some with other options, and several sizes."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from pipeline.errors import ConfigError, NotReconstructing
from pipeline.models import (
    MODELS,
    AnyModelConfig,
    Batch,
    Latents,
    Losses,
    Model,
    ModelConfig,
    Step,
    build_model,
    load_bundle,
    save_bundle,
)
from pipeline.models.conditions import condition_of
from pipeline.models.export import output_names, run_encoder
from pipeline.storage import open_store

KINDS = sorted(MODELS)
GRADIENTS = {"input": "gradients", "whole_first": True}
TO_FEATURES = {"kind": "features", "teacher": "a" * 64, "channels": 3, "size": 2}
HELD_TEACHER = {"kind": "descriptor", "features": "pixels", "read_out": {"dims": 12}}
HELD = {"model": HELD_TEACHER, "transforms": [], "image_size": 16, "numbers": 12, "cells": 1}
OF_FEATURES = {
    "sees": {"kind": "features", "teacher": "a" * 64, "hidden": [16, 8], "held": HELD},
    "target": {"kind": "features", "channels": 12, "size": 1},
}
FEW_CODES = {"kind": "ema", "num_codes": 4, "code_dim": 3}
# Every kind as it is by default, and with options that change what goes in or what is read out.
CONFIGS: dict[str, dict[str, Any]] = {kind: {"kind": kind} for kind in KINDS} | {
    "simclr_gradients": {"kind": "simclr", **GRADIENTS},
    # A fusion names bundles; this one has what the training fills in.
    "fusion": {
        "kind": "fusion",
        "members": ["a" * 64, "b" * 64],
        "read_out": {"dims": 12},
        "parts": [
            {"model": {"kind": "vae", "latent_dim": 4, "channels": [8, 16]}},
            {"model": {"kind": "descriptor", "cell": 8, "read_out": {"dims": None}}},
        ],
    },
    "moco_gradients": {"kind": "moco", **GRADIENTS, "grey": True},
    # What the training fills in of a teacher whose features are 2 x 2 cells of 3 numbers.
    "distilled": {"kind": "distilled", "teacher": "a" * 64, "numbers": 12, "cells": 2},
    # Fitted to such features.
    "ridge": {
        "kind": "ridge",
        "teacher": "a" * 64,
        "numbers": 12,
        "sees": {"kind": "descriptor", "read_out": {"dims": 20}},
    },
    "vae_to_features": {"kind": "vae", "target": TO_FEATURES},
    "mae_to_features": {"kind": "mae", "target": {**TO_FEATURES, "loss": "cosine", "scale": "each_photo"}},
    "vqvae2_to_features": {"kind": "vqvae2", "target": TO_FEATURES},
    "cvae_of_features": {"kind": "cvae", **OF_FEATURES},
    "autoencoder_of_features": {"kind": "autoencoder", **OF_FEATURES},
    # Few codes: of many, begun among 24 vectors, there are copies, and rounding chooses among these.
    "vqvae_of_features": {"kind": "vqvae", "codes": "parts", "parts": 4, "quantizer": FEW_CODES, **OF_FEATURES},
}
# Conditional models run twice: without conditions, and told one of every sort a row.
CASES = [
    (name, told)
    for name, values in CONFIGS.items()
    for told in ([False, True] if MODELS[values["kind"]][0].conditional else [False])
]
TRAINED = [(name, told) for name, told in CASES if MODELS[CONFIGS[name]["kind"]][1].trains]
COMPARING = {"simclr", "moco_v3", "dino", "distilled"}  # whose losses are about more than single photos
QUEUEING = {"moco"}
SIZES = [28, 36]
ALL_SIZES = [*SIZES, *(pytest.param(size, marks=pytest.mark.slow) for size in (32, 64))]
# One model of each sort of network: an export costs seconds, and no network is written twice; what a decoder gives back
# is in no export.
BACKBONES = ["vae", "simclr", "mae", "descriptor", "vqvae"]
STEP = Step(0, 10)
LABELS = ("bags", "hats", "shoes")
SORTS = [*condition_of(LABELS, [None, "a category nobody knew", *LABELS]).tolist(), 2 + len(LABELS), 99, -1]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config_of(name: str, size: int = 16) -> ModelConfig:
    """Return the config of a case; a teacher that is held sees photos of `size` pixels."""
    values = CONFIGS[name]
    if values.get("sees", {}).get("kind") == "features":
        values = {**values, "sees": {**values["sees"], "held": {**HELD, "image_size": size}}}
    return MODELS[values["kind"]][0].model_validate(values)


def build(name: str, size: int, seed: int = 0) -> Model:
    """Return a new model, ready to be trained, or fitted where it does not train."""
    torch.manual_seed(seed)
    config = config_of(name, size)
    model = build_model(config, image_size=size, labels=LABELS if config.conditional else ())
    if (front := getattr(model, "front", None)) is not None and front.teacher is not None:
        front.teacher.fit([Batch(photos(size, 40, seed=100))])
    if model.prepares:
        model.prepare([Batch(photos(size, 40, seed=100), features=features_of(photos(size, 40, seed=100)))])
    if not model.trains and model.fits:  # ready once it is fitted
        given = [photos(size, 40, seed=100), photos(size, 40, seed=101)]
        model.eval().fit([batch_of(model, images, None) for images in given])
    return model


@functools.cache
def built(name: str, size: int, seed: int) -> tuple[Model, torch.Tensor]:
    return build(name, size, seed), torch.get_rng_state()


def make(name: str, size: int, seed: int = 0) -> Model:
    """Return a copy of a model that was built once, with torch's generator as building leaves it."""
    model, state = built(name, size, seed)
    torch.set_rng_state(state)
    return copy.deepcopy(model)


@functools.cache
def after_two_steps(name: str, size: int, told: bool) -> Model:
    model = make(name, size)
    train(model, photos(size), 2, told)
    return model


def conditions(told: bool, number: int) -> torch.Tensor | None:
    """Return rows of the table: none, unknown, every label, and rows that the table does not have."""
    return torch.tensor([SORTS[row % len(SORTS)] for row in range(number)]) if told else None


def batch_of(model: Model, images: torch.Tensor, condition: torch.Tensor | None) -> Batch:
    """Return the batch of photos; their second views, where the model wants them, are their mirror images."""
    if model.num_features:
        seen = images if model.reads == "photos" else torch.empty(len(images), 3, 0, 0, dtype=torch.uint8)
        return Batch(seen, condition, features=features_of(images))
    return Batch(torch.cat([images, images.flip(3)]) if model.views == 2 else images, condition)


def features_of(images: torch.Tensor) -> torch.Tensor:
    """Return what a teacher might say of photos: the mean colours of their quarters, float32 [B, 12]."""
    return torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)


def rows_of(condition: torch.Tensor | None, rows: slice) -> torch.Tensor | None:
    return None if condition is None else condition[rows]


def photos(size: int, number: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (number, 3, size, size), dtype=torch.uint8, generator=generator)


def train(model: Model, images: torch.Tensor, steps: int, told: bool) -> list[float]:
    if not model.trains:
        return []
    model.train()
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    curve = []
    for number in range(steps):
        optimiser.zero_grad()
        losses = model(batch_of(model, images, conditions(told, len(images))), Step(number, steps))
        losses.total.backward()
        optimiser.step()
        model.after_step()
        curve.append(losses.total.item())
    return curve


def drawn(model: Model, latents: Latents, condition: torch.Tensor | None) -> torch.Tensor | None:
    """Return the pictures of latents, or None of a model that draws none."""
    try:
        return model.decode(latents, condition)
    except NotReconstructing:
        return None


def same(first: Latents, second: Latents, tolerance: float = 0.0) -> None:
    torch.testing.assert_close(first.mean, second.mean, rtol=tolerance, atol=tolerance)
    assert (first.log_var is None) == (second.log_var is None)
    if first.log_var is not None and second.log_var is not None:
        torch.testing.assert_close(first.log_var, second.log_var, rtol=tolerance, atol=tolerance)
    assert (first.codes is None) == (second.codes is None)
    if first.codes is not None and second.codes is not None:
        assert torch.equal(first.codes, second.codes)


@pytest.mark.parametrize("size", ALL_SIZES)
@pytest.mark.parametrize(("name", "told"), CASES)
class TestModel:
    def test_shapes_types_and_ranges(self, name: str, told: bool, size: int) -> None:
        model = make(name, size)
        if model.trains:
            losses = model(batch_of(model, photos(size), conditions(told, 6)), STEP)
            assert isinstance(losses, Losses)
            assert losses.total.shape == ()
            assert torch.isfinite(losses.total)
            for part in losses.parts.values():
                assert part.shape == ()
                assert torch.isfinite(part)
                assert not part.requires_grad
        latents = model.eval().encode(photos(size), conditions(told, 6))
        assert latents.mean.shape == (6, model.latent_dim)
        assert latents.mean.dtype == torch.float32
        assert model.image_size == size
        assert (latents.log_var is not None) == model.has_log_var
        if latents.log_var is not None:
            assert latents.log_var.shape == latents.mean.shape
        assert (latents.codes is not None) == (model.num_latent_codes > 0)
        if latents.codes is not None:
            assert latents.codes.shape == (6, model.num_latent_codes)
            assert not latents.codes.is_floating_point()
        pictures = drawn(model, latents, conditions(told, 6))
        if pictures is not None:
            assert pictures.shape == (6, 3, size, size)
            assert pictures.min() >= 0
            assert pictures.max() <= 1

    def test_encode_is_deterministic_and_leaves_the_model_as_it_is(self, name: str, told: bool, size: int) -> None:
        model = copy.deepcopy(after_two_steps(name, size, told))
        model.eval()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        state = torch.get_rng_state()
        first = model.encode(photos(size), conditions(told, 6))
        same(first, model.encode(photos(size), conditions(told, 6)))
        assert torch.equal(torch.get_rng_state(), state)
        model.train()
        same(first, model.encode(photos(size), conditions(told, 6)))
        model.after_step()
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_a_photo_encodes_the_same_alone_and_in_any_batch(self, name: str, told: bool, size: int) -> None:
        model = copy.deepcopy(after_two_steps(name, size, told))
        model.eval()
        images, condition = photos(size, 9), conditions(told, 9)
        whole = model.encode(images, condition)
        alone = [model.encode(images[row : row + 1], rows_of(condition, slice(row, row + 1))) for row in range(9)]
        # A ridge's latents are sums of its weights, which come to 500 and more here (likenesses are at most 1).
        summed = float(model.weights.abs().sum(0).max()) if name == "ridge" else 0.0
        atol = max(1e-5, torch.finfo(torch.float32).eps * summed)
        torch.testing.assert_close(torch.cat([one.mean for one in alone]), whole.mean, rtol=1e-5, atol=atol)
        backwards = model.encode(images.flip(0), None if condition is None else condition.flip(0))
        torch.testing.assert_close(backwards.mean.flip(0), whole.mean, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("size", ALL_SIZES)
@pytest.mark.parametrize(("name", "told"), TRAINED)
class TestTraining:
    def test_every_parameter_learns_and_no_buffer_has_a_gradient(self, name: str, told: bool, size: int) -> None:
        model = make(name, size)
        train(model, photos(size), 1, told)  # layers that start at zero pass no gradient in the first step
        model.zero_grad()
        model(batch_of(model, photos(size), conditions(told, 6)), STEP).total.backward()
        for where, parameter in model.named_parameters():
            if where.startswith("front.teacher"):
                continue
            assert parameter.grad is not None, where
            assert torch.isfinite(parameter.grad).all(), where
            assert parameter.grad.abs().sum() > 0, where
        for where, buffer in model.named_buffers():
            assert not buffer.requires_grad, where

    def test_the_loss_is_a_mean_over_photos(
        self, name: str, told: bool, size: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if CONFIGS[name]["kind"] in COMPARING:
            pytest.skip("a photo is compared with those of its batch; see test_simclr")
        model = make(name, size)
        train(model, photos(size), 1, told)
        monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
        monkeypatch.setattr(torch, "rand", torch.ones)  # no condition is dropped
        monkeypatch.setattr(torch.nn.functional, "dropout", lambda values, *_: values)
        images, condition = photos(size), conditions(told, 6)
        again = None if condition is None else torch.cat([condition, condition])
        with torch.no_grad():
            once = model(batch_of(model, images, condition), STEP)
            twice = model(batch_of(model, torch.cat([images, images]), again), STEP)
        torch.testing.assert_close(twice.total, once.total, rtol=1e-5, atol=1e-4)
        for loss, part in once.parts.items():
            torch.testing.assert_close(twice.parts[loss], part, rtol=1e-5, atol=1e-4)

    def test_half_precision_autocast(self, name: str, told: bool, size: int) -> None:
        model = make(name, size)
        with torch.autocast("cpu", torch.bfloat16):
            losses = model(batch_of(model, photos(size), conditions(told, 6)), STEP)
            latents = model.encode(photos(size), conditions(told, 6))
        assert losses.total.dtype == torch.float32
        assert latents.mean.dtype == torch.float32
        assert torch.isfinite(losses.total)
        losses.total.backward()
        model.after_step()


# That each size has its gradients is seen above; what a training repeats is the same at every size.
@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "told"), TRAINED)
class TestRepeating:
    def test_two_trainings_have_the_same_bits(self, name: str, told: bool, size: int) -> None:
        first = build(name, size)
        curve = train(first, photos(size), 3, told)
        second = build(name, size)
        assert train(second, photos(size), 3, told) == curve
        other = second.state_dict()
        assert all(torch.equal(tensor, other[name]) for name, tensor in first.state_dict().items())
        assert train(build(name, size, seed=1), photos(size), 3, told) != curve

    def test_state_goes_round_and_training_continues_to_the_same_bits(self, name: str, told: bool, size: int) -> None:
        model = make(name, size)
        train(model, photos(size), 2, told)
        twin = make(name, size, seed=5)
        twin.load_state_dict(model.state_dict())
        same(model.encode(photos(size), conditions(told, 6)), twin.encode(photos(size), conditions(told, 6)))
        torch.manual_seed(3)
        rest = train(model, photos(size, seed=1), 3, told)
        torch.manual_seed(3)
        assert train(twin, photos(size, seed=1), 3, told) == rest


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "told"), TRAINED)
def test_training_lowers_the_loss(name: str, told: bool, size: int) -> None:
    if CONFIGS[name]["kind"] in QUEUEING:
        pytest.skip("its queue fills with keys harder than those it began with; see test_moco")
    curve = train(make(name, size), photos(size, 8), 28, told)
    assert curve[-1] < 0.98 * curve[0]


@pytest.mark.parametrize(
    ("name", "size"),
    [(name, 28) for name in CONFIGS if not name.endswith("_to_features")] + [(name, 64) for name in BACKBONES],
)
@pytest.mark.slow
def test_a_bundle_goes_round_and_its_onnx_encoder_agrees(name: str, size: int) -> None:
    store = open_store(f"memory://contract-model-{name}-{size}")
    model, config = make(name, size), config_of(name, size)
    train(model, photos(size), 2, told=config.conditional)
    card = {"photos": 6}
    model_id = save_bundle(store, model, config, {"size": size}, train_key="0" * 64, card=card, labels=model.labels)
    bundle = load_bundle(store, model_id)
    assert bundle.config == config
    assert bundle.image_size == size
    assert bundle.labels == bundle.model.labels == model.labels
    assert not bundle.model.training
    assert not any(parameter.requires_grad for parameter in bundle.model.parameters())
    images, condition = photos(size, 9, seed=2), conditions(config.conditional, 9)
    latents = model.eval().encode(images, condition)
    same(latents, bundle.model.encode(images, condition))
    expected = drawn(model, latents, condition)
    if expected is not None:
        torch.testing.assert_close(bundle.model.decode(latents, condition), expected, rtol=0, atol=0)

    told = None if condition is None else condition.numpy()
    exported = run_encoder(store.get(f"models/{model_id}/encoder.onnx"), images.numpy(), told)
    assert list(exported) == output_names(model)
    np.testing.assert_allclose(exported["mean"], latents.mean.detach().numpy(), rtol=1e-4, atol=1e-4)
    if latents.log_var is not None:
        np.testing.assert_allclose(exported["log_var"], latents.log_var.detach().numpy(), rtol=1e-4, atol=1e-4)
    if latents.codes is not None:
        np.testing.assert_array_equal(exported["codes"], latents.codes.numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_that_cannot_be_halved_evenly_twice_are_refused(kind: str) -> None:
    for size in (12, 30, 33):
        with pytest.raises(ConfigError, match=f"{size}.*multiple of 4 of at least 16"):
            build_model(config_of(kind), image_size=size)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "channels" in MODELS[kind][0].model_fields])
def test_more_stages_than_the_picture_has_halves_are_refused(kind: str) -> None:
    config = MODELS[kind][0].model_validate({"kind": kind, "channels": [4] * 4})
    with pytest.raises(ConfigError, match="at most 3"):
        build_model(config, image_size=16)


def test_the_union_knows_every_kind_and_refuses_others() -> None:
    adapter: TypeAdapter[ModelConfig] = TypeAdapter(AnyModelConfig)
    for kind in KINDS:
        assert adapter.validate_python(CONFIGS[kind]) == config_of(kind)
        assert adapter.validate_python({"kind": kind}).kind == kind
    with pytest.raises(ValidationError, match="gan"):
        adapter.validate_python({"kind": "gan"})
    with pytest.raises(ConfigError, match=", ".join(KINDS)):
        build_model(ModelConfig(kind="gan"), image_size=32)

"""Students in closed form: scikit-learn's kernel ridge regression, Nyström's in NumPy, a bundle, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from sklearn.kernel_ridge import KernelRidge
from torch import Tensor

from pipeline.errors import ConfigError, InputError
from pipeline.images import ImagesConfig
from pipeline.models import AnyModelConfig, Batch, Step, build_model, load_bundle, save_bundle
from pipeline.models.base import Taught
from pipeline.storage import open_store

ANY = TypeAdapter(AnyModelConfig)
SEES = {"kind": "descriptor", "cell": 4, "read_out": {"dims": 10}}
ID = "a" * 64


def config_of(**values: Any) -> Any:
    return ANY.validate_python({"kind": "ridge", "teacher": ID, "numbers": 3, "sees": SEES, **values})


def photos(number: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (number, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def taught(number: int, seed: int) -> Batch:
    """Return photos and what a teacher says of them: smooth in what a descriptor sees, and no mean of 0."""
    images = photos(number, seed)
    bright = images.float().mean(dim=1)
    steep = (bright[:, 1:] - bright[:, :-1]).abs().mean(dim=(1, 2)) / 50
    return Batch(images, features=torch.stack([steep, steep.square(), 5 + bright[:, :8].mean(dim=(1, 2)) / 50], dim=1))


def fitted(*batches: Batch, **values: Any) -> Any:
    model = build_model(config_of(**values), image_size=16).eval()
    model.fit(batches)
    return model


def likeness(model: Any, images: Tensor, others: Tensor) -> np.ndarray:
    """Return exp(-gamma d^2) of the descriptors of photos, all in NumPy's float64."""
    rows, anchors = (model.descriptor.encode(each).mean.double().numpy() for each in (images, others))
    apart = ((rows[:, None] - anchors[None]) ** 2).sum(axis=2)
    return np.asarray(np.exp(-float(model.narrowness) * apart))


@pytest.mark.parametrize("mirrored", [False, True])
def test_it_is_scikit_learns_kernel_ridge(mirrored: bool) -> None:
    known, asked = taught(40, seed=0), photos(9, seed=1)
    model = fitted(known, mirrored=mirrored, strength=0.3, width=0.7)
    images, wanted = known.images, known.features.numpy()
    if mirrored:
        images, wanted = torch.cat([images, images.flip(3)]), np.concatenate([wanted, wanted])
    rows, others = (model.descriptor.encode(each).mean.numpy() for each in (images, asked))
    gamma = 0.7 / np.square(rows - rows.mean(axis=0)).sum(axis=1).mean()
    spread = np.sqrt(wanted.var(axis=0).mean())
    oracle = KernelRidge(alpha=0.3, kernel="rbf", gamma=gamma).fit(rows, (wanted - wanted.mean(axis=0)) / spread)
    found = model.encode(asked).mean.numpy()
    np.testing.assert_allclose(found, oracle.predict(others), atol=1e-4)
    unlike = KernelRidge(alpha=0.3, kernel="rbf", gamma=gamma).fit(rows, wanted / spread)  # the mean left in
    assert np.abs(found - unlike.predict(others)).max() > 0.1
    twice = fitted(Batch(known.images[:15], features=known.features[:15]),
                   Batch(known.images[15:], features=known.features[15:]), mirrored=False)  # fmt: skip
    once = fitted(known, mirrored=False)
    torch.testing.assert_close(twice.encode(asked).mean, once.encode(asked).mean, rtol=1e-4, atol=1e-5)


def test_with_fewer_anchors_it_is_nystroems_least_squares() -> None:
    known, asked = taught(60, seed=2), photos(9, seed=3)
    model = fitted(known, anchors=12, mirrored=False, strength=0.2)
    anchors, wanted = known.images[:12], known.features.double().numpy()
    alike, among = likeness(model, known.images, anchors), likeness(model, anchors, anchors)
    scaled = (wanted - wanted.mean(axis=0)) / np.sqrt(wanted.var(axis=0).mean())
    weights = np.linalg.solve(alike.T @ alike + 0.2 * among, alike.T @ scaled)
    found = model.encode(asked).mean.numpy()
    np.testing.assert_allclose(found, likeness(model, asked, anchors) @ weights, atol=1e-3)
    few = fitted(
        Batch(anchors, features=known.features[:12]), sees={**SEES, "read_out": {"dims": None}}, mirrored=False
    )
    assert np.abs(found - few.encode(asked).mean.numpy()).max() > 0.05  # the other photos count too


def stripes(number: int, seed: int) -> Batch:
    """Return photos of stripes, and the direction of these, as a teacher might tell it."""
    generator = torch.Generator().manual_seed(seed)
    turn, shift = torch.pi * torch.rand(2, number, 1, 1, generator=generator)
    down, right = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    waves = (turn.cos() * right + turn.sin() * down + 2 * shift).sin()
    images = (127 + 100 * waves).to(torch.uint8)[:, None].expand(-1, 3, -1, -1).contiguous()
    tells = torch.cat([(2 * turn).cos(), (2 * turn).sin(), torch.zeros_like(turn)], dim=1)[..., 0]
    return Batch(images, features=tells)


def test_it_predicts_what_the_teacher_says_of_new_photos() -> None:
    model, asked = fitted(stripes(300, seed=0), mirrored=False), stripes(50, seed=1)
    found = model.encode(asked.images).mean
    assert asked.features is not None
    for number in range(2):
        assert float(np.corrcoef(found[:, number], asked.features[:, number])[0, 1]) > 0.9


def test_fewer_photos_than_anchors_and_copies_among_them_do_no_harm() -> None:
    known = taught(20, seed=4)
    model = fitted(known, known, anchors=500, mirrored=False)
    assert bool(model.weights[40:].any()) is False
    latents = model.encode(photos(5, seed=5)).mean
    assert bool(latents.isfinite().all())
    store = open_store("memory://ridge")
    model_id = save_bundle(store, model, model.config, {"size": 16}, train_key="0" * 64, card={}, exports=False)
    bundle = load_bundle(store, model_id)
    assert torch.equal(bundle.model.encode(photos(5, seed=5)).mean, latents)


def test_what_does_not_go_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"has no teacher yet.*model\.teacher"):
        build_model(ANY.validate_python({"kind": "ridge"}), image_size=16)
    model = build_model(config_of(), image_size=16).eval()
    with pytest.raises(ConfigError, match="not fitted yet"):
        model.encode(photos(2, seed=0))
    with pytest.raises(ConfigError, match="is not trained"):
        model(taught(2, seed=0), Step(0, 1))
    for batch in (Batch(photos(20, seed=0)), Batch(photos(20, seed=0), features=torch.zeros(20, 4))):
        with pytest.raises(InputError, match="lacks the 3 features"):
            model.fit([batch])
    with pytest.raises(InputError, match="no photos"):
        model.fit([])
    flat = torch.zeros(20, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(InputError, match="descriptor says the same"):
        model.fit([Batch(flat, features=torch.rand(20, 3))])
    with pytest.raises(InputError, match="teacher says the same"):
        model.fit([Batch(photos(20, seed=0), features=torch.ones(20, 3))])
    for values in ({"anchors": 0}, {"width": 0.0}, {"strength": 0.0}, {"teacher": "b1"}, {"sees": {"kind": "vae"}}):
        with pytest.raises(ValidationError):
            config_of(**values)


def test_its_teacher_is_found_and_tells_no_categories() -> None:
    asked = ANY.validate_python({"kind": "ridge", "teacher": ID})
    assert asked.taught_by() == ID
    plain = Taught(ID, ANY.validate_python({"kind": "vae"}), (ImagesConfig(),), 64, numbers=8, cells=2)
    known = asked.taught(plain)
    assert (known.teacher, known.numbers) == (ID, 8)
    with pytest.raises(ConfigError, match="leave it out"):
        known.taught(plain)
    told = Taught(ID, ANY.validate_python({"kind": "cvae"}), (ImagesConfig(),), 64, numbers=8, cells=1)
    with pytest.raises(ConfigError, match="is a cvae, which is told"):
        asked.taught(told)

"""Relevant components: the generalised eigenvectors that scipy finds, and what they are for."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from pipeline.images.augment import ViewsConfig
from pipeline.models.base import Batch
from pipeline.models.components import ViewScatter, principal_components, relevant_components, rows_and_views
from pipeline.models.readout import ReadOut, ReadOutConfig

PHOTOS, WIDTH = 400, 12


def made(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows [n, D] and views [4, n, D]: dimension 0 varies most, but as much between views of one photo."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(1.0, 0.3, WIDTH)
    rows = torch.randn(PHOTOS, WIDTH, generator=generator) * scale + 3.0
    nuisance = torch.full((WIDTH,), 0.05)
    nuisance[0] = 5.0
    rows[:, 0] *= 5.0
    views = rows + torch.randn(4, PHOTOS, WIDTH, generator=generator) * nuisance
    return rows, views


def scatter(views: torch.Tensor) -> ViewScatter:
    """Return the covariances by numpy, in float64."""
    found = views.double().numpy()
    apart = (found - found.mean(axis=0)).reshape(-1, WIDTH)
    within = apart.T @ apart / (len(found) - 1) / PHOTOS
    return ViewScatter(torch.from_numpy(within), torch.from_numpy(np.cov(found.reshape(-1, WIDTH).T, bias=True)))


def test_directions_are_the_generalised_eigenvectors_of_scipy() -> None:
    rows, views = made()
    given = scatter(views)
    found = relevant_components(rows, given, 5).numpy()
    within = given.within.numpy()
    within = within + 0.1 * within.trace() / WIDTH * np.eye(WIDTH)
    values, vectors = scipy.linalg.eigh(given.total.numpy(), within)
    expected = vectors.T[::-1][:5]
    signs = np.sign((found * expected).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found, expected * signs, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.einsum("id,de,ie->i", found, within, found), 1.0, atol=1e-9)
    assert values[-1] > 1
    assert (np.take_along_axis(found, np.abs(found).argmax(axis=1, keepdims=True), axis=1) > 0).all()


def test_what_views_change_is_overlooked_and_plain_components_begin_with_it() -> None:
    rows, views = made()
    relevant = relevant_components(rows, scatter(views), 3)
    relevant = relevant / relevant.norm(dim=1, keepdim=True)
    _, principal = principal_components(rows, 3)
    assert relevant[:, 0].abs().max() < 0.1
    assert principal[0, 0].abs() > 0.99  # the known wrong choice for this data


def test_views_that_are_all_alike_leave_principal_components() -> None:
    rows, _ = made()
    same = rows.expand(4, -1, -1)
    found = relevant_components(rows, scatter(same), 3)
    _, principal = principal_components(rows, 3)
    cosines = (found * principal).sum(dim=1) / found.norm(dim=1)
    assert cosines.abs().numpy() == pytest.approx(np.ones(3), abs=1e-6)


def photos(number: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (number, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def pooled(images: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)


def test_rows_and_views_of_batches_and_the_generator_is_left_alone() -> None:
    batches = [Batch(photos(30)), Batch(photos(20, seed=1))]
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    rows, views = rows_and_views(batches, pooled, ViewsConfig())
    again = rows_and_views(batches, pooled, ViewsConfig())[1]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(rows, torch.cat([pooled(batch.images) for batch in batches]))
    assert views is not None
    assert again is not None
    assert torch.equal(views.within, again.within)
    # Between views plus between photos' means is the total.
    assert (torch.linalg.eigvalsh(views.total - 0.5 * views.within) > -1e-6).all()
    assert rows_and_views(batches, pooled, None)[1] is None


def test_views_without_changes_do_not_differ() -> None:
    still = ViewsConfig(min_area=1.0, flip=False, brightness=0, contrast=0)
    _, views = rows_and_views([Batch(photos(30))], pooled, still)
    assert views is not None
    assert views.within.abs().max() < 1e-12
    flipped = rows_and_views([Batch(photos(30))], pooled, ViewsConfig(min_area=1.0, brightness=0, contrast=0))[1]
    assert flipped is not None
    assert flipped.within.abs().max() > 1e-4


def test_a_read_out_that_is_invariant_to_flips_sees_none() -> None:
    flips = ViewsConfig(min_area=1.0, flip=True, brightness=0, contrast=0)
    images = photos(200)
    moved = []
    for config in (ReadOutConfig(dims=4, invariant_to=flips), ReadOutConfig(dims=4)):
        read_out = ReadOut(config, 12, 1)
        read_out.fit_batches([Batch(images)], pooled)
        here, there = (read_out(pooled(side)[:, :, None, None]) for side in (images, images.flip(3)))
        moved.append(float((here - there).square().mean() / here.var(dim=0).mean()))
    assert moved[0] < 0.1
    assert moved[1] > 0.3


def test_two_scales_are_refused() -> None:
    with pytest.raises(ValueError, match="name one of them"):
        ReadOutConfig(whiten=True, invariant_to=ViewsConfig())

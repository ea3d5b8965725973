"""MoCo v3: its loss against the formula written out in NumPy, the copies that follow, and that it learns."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.losses import info_nce_in_batch, nt_xent
from pipeline.models import Batch, Step
from pipeline.models.following import rising
from pipeline.models.moco_v3 import MoCoV3, MoCoV3Config

SMALL = {"channels": (8, 16), "projector": (16, 8)}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_softmax(values: np.ndarray) -> np.ndarray:
    shifted = values - values.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def test_info_nce_in_a_batch_is_its_formula() -> None:
    queries, keys = rows(7, 5, 0), rows(7, 5, 1)
    q, k = (side.numpy() / np.linalg.norm(side.numpy(), axis=1, keepdims=True) for side in (queries, keys))
    expected = -2 * 0.2 * np.diag(log_softmax(q @ k.T / 0.2)).mean()
    found = info_nce_in_batch(queries, keys, 0.2, over_ranks=False)
    assert float(found.detach()) == pytest.approx(expected, abs=1e-12)
    # The control: the keys of other photos are not the right answer.
    assert float(info_nce_in_batch(queries, keys.roll(1, dims=0), 0.2, over_ranks=False)) != pytest.approx(expected)
    keys.requires_grad_()
    queries.requires_grad_()
    info_nce_in_batch(queries, keys, 0.2, over_ranks=False).backward()
    assert keys.grad is None
    assert queries.grad is not None


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="one shape"):
        info_nce_in_batch(rows(3, 2, 0), rows(4, 2, 0), 0.2, over_ranks=False)
    with pytest.raises(ConfigError, match="temperature is 0"):
        info_nce_in_batch(rows(3, 2, 0), rows(3, 2, 0), 0, over_ranks=False)


def test_the_momentum_rises_to_one_along_half_a_cosine() -> None:
    assert rising(0.99, Step(0, 100)) == pytest.approx(0.99)
    assert rising(0.99, Step(50, 100)) == pytest.approx(0.995)
    assert rising(0.99, Step(100, 100)) == 1.0


def photos(count: int = 6, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def made(seed: int = 0) -> MoCoV3:
    torch.manual_seed(seed)
    return MoCoV3(MoCoV3Config(momentum=0.9, predictor=12, **SMALL), 16)


def unit(values: Tensor) -> Tensor:
    return torch.nn.functional.normalize(values, dim=1)


def projected(model: MoCoV3, views: Tensor, *, copy: bool) -> Tensor:
    network, projector = (model.key_network, model.key_projector) if copy else (model.network, model.projector)
    with torch.no_grad():
        return unit(projector(network(views.float() / 255).mean(dim=(2, 3))))


def test_moco_v3_compares_predictions_with_the_other_views_keys() -> None:
    model = made()
    views = model.augmented(photos())
    loss = model(Batch(views), Step(0, 10)).total
    with torch.no_grad():
        queries = model.predictor(projected(model, views, copy=False))
    keys = projected(model, views, copy=True)
    one = info_nce_in_batch(queries[:6], keys[6:], 0.2, over_ranks=False)
    other = info_nce_in_batch(queries[6:], keys[:6], 0.2, over_ranks=False)
    torch.testing.assert_close(loss, one + other, rtol=1e-5, atol=1e-6)
    same = info_nce_in_batch(queries, keys, 0.2, over_ranks=False)
    assert not torch.isclose(2 * same, loss, rtol=1e-3)  # the control: a view against its own key


def test_the_copies_follow_by_the_rising_momentum_and_have_no_gradient() -> None:
    model = made()
    model(Batch(model.augmented(photos())), Step(0, 4)).total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not any(buffer.requires_grad for buffer in model.buffers())
    start = model.key_projector.get_buffer("0.weight").clone()
    with torch.no_grad():
        model.projector[0].weight.add_(1.0)
    target = model.projector[0].weight.detach().clone()
    left = 1.0
    for number in range(4):
        model(Batch(model.augmented(photos())), Step(number, 4))
        model.after_step()
        left *= rising(0.9, Step(number, 4))
    found = model.key_projector.get_buffer("0.weight")
    torch.testing.assert_close(found, left * start + (1 - left) * target, rtol=1e-4, atol=1e-5)
    model.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(Batch(model.augmented(photos())), Step(0, 4))
    model.after_step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def rectangles(count: int, seed: int) -> Tensor:
    """Return photos uint8 [N, 3, 16, 16] of a coloured rectangle each, which views can be told by."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.full((count, 3, 16, 16), 255, dtype=torch.uint8)
    for row in range(count):
        top, left, height, width = torch.randint(2, 8, (4,), generator=generator).tolist()
        colour = torch.randint(0, 200, (3, 1, 1), dtype=torch.uint8, generator=generator)
        images[row, :, top : top + height, left : left + width] = colour
    return images


def test_it_learns_to_tell_photos_apart() -> None:
    """NT-Xent of views of held-out photos falls, which it is not trained on, and projections do not collapse."""
    model = made()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)

    def held_out() -> float:
        torch.manual_seed(7)
        views = model.augmented(rectangles(12, seed=99))
        return float(nt_xent(*projected(model, views, copy=False).chunk(2), 0.2, over_ranks=False))

    before = held_out()
    for number in range(200):
        optimiser.zero_grad()
        model(Batch(model.augmented(rectangles(16, seed=number))), Step(number, 200)).total.backward()
        optimiser.step()
        model.after_step()
    assert held_out() < 0.85 * before
    assert model.scalars()["projection/effective_rank"] > 2

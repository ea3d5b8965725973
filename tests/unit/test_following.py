"""MoCo v3 and DINO: what they compare, the copies that follow, the centre, and that they learn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.losses import balanced_shares, centred_shares, distillation, info_nce_in_batch, nt_xent
from pipeline.models import Batch, Step
from pipeline.models.dino import DINO, DINOConfig
from pipeline.models.following import Following, rising
from pipeline.models.moco_v3 import MoCoV3, MoCoV3Config

SMALL: dict[str, Any] = {"channels": (8, 16), "projector": (16, 8)}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_momentum_rises_to_one_along_half_a_cosine() -> None:
    assert rising(0.99, Step(0, 100)) == pytest.approx(0.99)
    assert rising(0.99, Step(50, 100)) == pytest.approx(0.995)
    assert rising(0.99, Step(100, 100)) == 1.0


def photos(count: int = 6, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


KINDS = ["moco_v3", "dino"]


def made(kind: str, seed: int = 0, **options: Any) -> Following:
    torch.manual_seed(seed)
    if kind == "dino":
        return DINO(DINOConfig(momentum=0.9, prototypes=options.pop("prototypes", 12), **options, **SMALL), 16)
    return MoCoV3(MoCoV3Config(momentum=0.9, predictor=12, **SMALL), 16)


def unit(values: Tensor) -> Tensor:
    return torch.nn.functional.normalize(values, dim=1)


def projected(model: Following, views: Tensor, *, copy: bool) -> Tensor:
    network, projector = (model.key_network, model.key_projector) if copy else (model.network, model.projector)
    with torch.no_grad():
        return unit(projector(network(views.float() / 255).mean(dim=(2, 3))))


def test_moco_v3_compares_predictions_with_the_other_views_keys() -> None:
    model = made("moco_v3")
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


def shares(model: Following, views: Tensor, *, copy: bool) -> Tensor:
    """Return a DINO's cosines of photos with its prototypes, or the teacher's."""
    prototypes = model.get_buffer("key_prototypes.weight") if copy else model.get_parameter("prototypes.weight")
    return projected(model, views, copy=copy) @ unit(prototypes.detach()).T


def test_dino_asks_for_the_teachers_balanced_shares_of_the_other_view() -> None:
    model = made("dino", teacher_temperature=0.05, temperature=0.2)
    views = model.augmented(photos())
    loss = model(Batch(views), Step(0, 10)).total
    student, teacher = shares(model, views, copy=False), shares(model, views, copy=True)
    wanted = balanced_shares(teacher, 0.05, over_ranks=False)
    crossed = distillation(student[:6], wanted[6:], 0.2) + distillation(student[6:], wanted[:6], 0.2)
    torch.testing.assert_close(loss, crossed / 2, rtol=1e-4, atol=1e-5)
    same = distillation(student, wanted, 0.2)
    assert not torch.isclose(same, loss, rtol=1e-3)  # the control: a view against itself


def test_dinos_centre_follows_the_mean_of_the_teachers_logits() -> None:
    model = made("dino", centring="mean", centre_momentum=0.8, teacher_temperature=0.04)
    views = model.augmented(photos())
    centre = torch.zeros(12)
    for step in range(3):
        loss = model(Batch(views), Step(step, 10)).total
        student, teacher = shares(model, views, copy=False), shares(model, views, copy=True)
        wanted = centred_shares(teacher, centre, 0.04)
        crossed = distillation(student[:6], wanted[6:], 0.1) + distillation(student[6:], wanted[:6], 0.1)
        torch.testing.assert_close(loss, crossed / 2, rtol=1e-4, atol=1e-5)
        model.after_step()
        centre = 0.8 * centre + 0.2 * teacher.mean(dim=0)
        torch.testing.assert_close(model.get_buffer("centre"), centre, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_copies_follow_by_the_rising_momentum_and_have_no_gradient(kind: str) -> None:
    model = made(kind)
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


def learnt(model: Following) -> tuple[float, float, float]:
    """Return NT-Xent of views of held-out photos before and after a training, and the projections' effective rank."""
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
        if number < 150:
            model.scalars()
    return before, held_out(), model.scalars()["projection/effective_rank"]


@pytest.mark.parametrize(("kind", "options"), [("moco_v3", {}), ("dino", {"prototypes": 64})])
@pytest.mark.slow
def test_they_learn_to_tell_photos_apart(kind: str, options: dict[str, Any]) -> None:
    """NT-Xent falls, which neither is trained on, and projections do not collapse."""
    before, after, rank = learnt(made(kind, **options))
    assert after < 0.9 * before
    assert rank > 2.5


@pytest.mark.slow
def test_a_teacher_of_one_temperature_and_no_balance_brings_all_photos_together() -> None:
    """The control: a fast teacher with a centre alone ends with even shares, as the paper says of a warm one."""
    before, after, rank = learnt(made("dino", prototypes=64, centring="mean", teacher_temperature=0.1))
    assert after > 0.99 * before
    assert rank < 1.5

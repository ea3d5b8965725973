"""MoCo: the queue against a deque, the following network against its closed form, no gradient into keys."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Generator, Iterator

import pytest
import torch
from torch import Tensor

from pipeline.errors import ConfigError, Unavailable
from pipeline.losses import info_nce, nt_xent
from pipeline.models import Batch, Step, build_model
from pipeline.models.moco import MoCo, MoCoConfig
from pipeline.models.pretraining import copy_convolutions
from pipeline.models.simclr import SimCLRConfig
from pipeline.storage import Store, open_store
from pipeline.training import Line, Loop, TrainConfig
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.ranks import Ranks

STEP = Step(0, 10)
SMALL = MoCoConfig(channels=(8, 16), projector=(16, 8), queue=50, momentum=0.9)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(config: MoCoConfig = SMALL, seed: int = 0) -> MoCo:
    torch.manual_seed(seed)
    return MoCo(config, 16)


def photos(count: int = 6, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def rectangles(count: int, seed: int) -> Tensor:
    """Return photos uint8 [N, 3, 16, 16] of a coloured rectangle each, which views can be told by."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.full((count, 3, 16, 16), 255, dtype=torch.uint8)
    for row in range(count):
        top, left, height, width = torch.randint(2, 8, (4,), generator=generator).tolist()
        colour = torch.randint(0, 200, (3, 1, 1), dtype=torch.uint8, generator=generator)
        images[row, :, top : top + height, left : left + width] = colour
    return images


def keys_of(model: MoCo, views: Tensor) -> Tensor:
    with torch.no_grad():
        features = model.key_network(views.float() / 255).mean(dim=(2, 3))
        return torch.nn.functional.normalize(model.key_projector(features), dim=1)


def test_the_loss_is_info_nce_of_each_view_with_the_others_key():
    model = made()
    assert float(model(Batch(model.augmented(photos(seed=1))), STEP).total.detach()) == 0.0  # nothing to be told from
    model.after_step()
    views = model.augmented(photos())
    loss = model(Batch(views), STEP).total
    queries = torch.nn.functional.normalize(model.projector(model.network(views.float() / 255).mean(dim=(2, 3))), dim=1)
    keys = keys_of(model, views)
    one = info_nce(queries[:6], keys[6:], model.queue[:12], 0.1)
    other = info_nce(queries[6:], keys[:6], model.queue[:12], 0.1)
    torch.testing.assert_close(loss, (one + other) / 2, rtol=1e-5, atol=1e-6)
    same = info_nce(queries, keys, model.queue[:12], 0.1)
    assert same < loss - 1e-3  # the control: a view as its own key tells nothing and looks better


def test_the_queue_is_a_deque_also_where_it_wraps_around():
    model = made()
    oracle: deque[Tensor] = deque(maxlen=50)
    for step, count in enumerate([6, 6, 4, 6, 1, 6, 6]):  # 70 keys into 50 places, 12 at a time at most
        views = model.augmented(photos(count, step))
        model(Batch(views), STEP)
        oracle.extend(keys_of(model, views).unbind())
        model.after_step()
        assert int(model.filled) == len(oracle)
        oldest_first = model.queue.roll(-int(model.place), dims=0)[-len(oracle) :]
        torch.testing.assert_close(oldest_first, torch.stack(list(oracle)), rtol=1e-5, atol=1e-6)
        assert (oldest_first.norm(dim=1) - 1).abs().max() < 1e-5


def test_the_copies_follow_by_their_closed_form():
    model = made()
    model(Batch(model.augmented(photos())), STEP)
    start = {name: tensor.clone() for name, tensor in model.key_network.named_buffers()}
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(1.0)
    target = {name: tensor.detach().clone() for name, tensor in model.network.named_parameters()}
    for step in range(7):
        model(Batch(model.augmented(photos(seed=step))), STEP)
        model.after_step()
    left = 0.9**7
    for name, tensor in model.key_network.named_buffers():
        torch.testing.assert_close(tensor, left * start[name] + (1 - left) * target[name], rtol=1e-4, atol=1e-5)


def test_without_momentum_the_copies_are_the_network():
    model = made(SMALL.model_copy(update={"momentum": 0.0}))
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(2):
        optimiser.zero_grad()
        model(Batch(model.augmented(photos(seed=step))), STEP).total.backward()
        optimiser.step()
        model.after_step()
    for name, parameter in model.projector.named_parameters():
        torch.testing.assert_close(model.key_projector.get_buffer(name), parameter.detach())


def test_keys_have_no_gradient_and_evaluation_changes_nothing():
    model = made()
    assert not list(model.key_network.parameters())
    model(Batch(model.augmented(photos())), STEP).total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not any(buffer.requires_grad or buffer.grad is not None for buffer in model.buffers())
    model = made().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(Batch(model.augmented(photos())), STEP)
    model.after_step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_training_that_begins_with_other_weights_begins_with_equal_copies():
    model = made()
    torch.manual_seed(1)
    source = build_model(SimCLRConfig(channels=(8, 16), projector=(16, 8)), image_size=16)
    copy_convolutions(model, source)
    assert not torch.equal(model.key_network.get_buffer("stem.0.weight"), model.network.get_parameter("stem.0.weight"))
    model(Batch(model.augmented(photos())), STEP)
    assert torch.equal(model.key_network.get_buffer("stem.0.weight"), model.network.get_parameter("stem.0.weight"))


def test_a_state_goes_on_with_its_own_copies():
    model = made()
    optimiser = torch.optim.SGD(model.parameters(), 0.5)
    model(Batch(model.augmented(photos())), STEP).total.backward()
    optimiser.step()
    model.after_step()
    twin = made(seed=4)
    twin.load_state_dict(model.state_dict())
    views = model.augmented(photos(seed=3))
    assert torch.equal(model(Batch(views), STEP).total, twin(Batch(views), STEP).total)


@pytest.mark.slow
def test_it_learns_to_tell_photos_apart():
    """Its own loss first rises, as the queue fills; NT-Xent of views of held-out photos falls, as SimCLR's does."""
    model = made(SMALL.model_copy(update={"queue": 256, "temperature": 0.2, "momentum": 0.99}))
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)

    def held_out() -> float:
        torch.manual_seed(7)
        with torch.no_grad():
            views = model.augmented(rectangles(12, seed=99)).float() / 255
            return float(
                nt_xent(*model.projector(model.network(views).mean(dim=(2, 3))).chunk(2), 0.2, over_ranks=False)
            )

    before, curve = held_out(), []
    for number in range(200):
        optimiser.zero_grad()
        loss = model(Batch(model.augmented(rectangles(16, seed=number))), STEP).total
        loss.backward()
        optimiser.step()
        model.after_step()
        curve.append(float(loss.detach()))
    assert curve[0] == 0
    assert held_out() < 0.75 * before
    assert model.scalars()["projection/effective_rank"] > 2


class Memory:
    """A loader of photos that are in memory."""

    steps_per_epoch, num_photos, num_held_out = 3, 24, 4

    def batches(self, start: int, stop: int) -> Generator[Batch]:
        for step in range(start, stop):
            yield Batch(photos(8, seed=step))

    def validation(self) -> Generator[Batch]:
        yield Batch(photos(4, seed=50))


@pytest.mark.slow
def test_a_resumed_training_has_the_same_bits():
    config = TrainConfig(epochs=4, batch_size=8, validation=0.1, ema_decay=0.9, checkpoint_every_s=0)

    def trained(store: Store, stop_after: int | None = None) -> dict[str, Tensor]:
        checkpoints = Checkpoints(store, "run", Ranks(), identity={}, keep=2)
        asked = iter(range(1, 100))
        stop = None if stop_after is None else lambda: next(asked) == stop_after
        loop = Loop(made(), Memory(), config, checkpoints=checkpoints, line=Line(should_stop=stop))
        return loop.run().state_dict()

    whole = trained(open_store(f"memory://{uuid.uuid4()}"))
    store = open_store(f"memory://{uuid.uuid4()}")
    with pytest.raises(Unavailable):
        trained(store, stop_after=2)
    resumed = trained(store)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.items())
    assert int(whole["filled"]) == 50


def test_more_keys_than_the_queue_holds_are_refused():
    with pytest.raises(ConfigError, match=r"52 keys.*queue is 50"):
        made()(Batch(photos(52)), STEP)

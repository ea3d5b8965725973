"""A batch in micro-batches is the whole batch: the same gradients, weights and losses, also where they are unequal."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from pipeline.models.base import Batch, Latents, Losses, Model, Step, to_float
from pipeline.training import Line, Loop, TrainConfig
from pipeline.training.loop import _micro_batches

SIZE, STEPS = 8, 6


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """The models are small: more threads only wait for each other."""
    torch.set_num_threads(1)


class Squares(Model):
    """An autoencoder without noise and batch statistics; notes the sizes of the batches it is given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image_size, self.latent_dim = SIZE, 5
        self.down = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 5), nn.Tanh())
        self.up = nn.Linear(5, 3 * SIZE * SIZE)
        self.given: list[int] = []

    def forward(self, batch: Batch, step: Step) -> Losses:
        self.given.append(len(batch.images))
        pictures = to_float(batch.images)
        error = (self.up(self.down(pictures)) - pictures.flatten(1)).square().sum(1).mean()
        assert batch.condition is None or len(batch.condition) == len(batch.images)
        return Losses(error, {"error": error.detach()})

    def encode(self, images: Tensor, condition: Tensor | None = None) -> Latents:
        return Latents(self.down(to_float(images)))


class Photos:
    """A loader of made-up photos in memory."""

    steps_per_epoch, num_held_out = STEPS, 0

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        for step in range(start, stop):
            generator = torch.Generator().manual_seed(step)
            shape = (self.batch_size, 3, SIZE, SIZE)
            yield Batch(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator), torch.arange(shape[0]))

    def validation(self) -> Iterator[Batch]:
        yield from ()


def trained(batch_size: int, **settings: object) -> tuple[Model, list[float]]:
    """Return a model after six steps of gradient descent, and its losses at the only settlement."""
    values = {"optimiser": "sgd", "learning_rate": 1e-3, "warmup": 0, "schedule": "constant", **settings}
    losses: list[float] = []
    loop = Loop(
        Squares(),
        Photos(batch_size),
        TrainConfig(epochs=1, batch_size=batch_size, **values),
        line=Line(report=lambda progress: losses.extend([progress.loss, progress.parts["error"]])),
    )
    return loop.run(), losses


@pytest.mark.parametrize(("batch_size", "accumulate", "sizes"), [(8, 2, [4, 4]), (7, 3, [3, 3, 1]), (2, 5, [1, 1])])
def test_micro_batches_make_the_whole_batch(batch_size: int, accumulate: int, sizes: list[int]) -> None:
    (whole, losses), (pieces, same) = trained(batch_size), trained(batch_size, accumulate=accumulate)
    assert pieces.given[: len(sizes)] == sizes
    assert same == pytest.approx(losses, rel=1e-6)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(pieces.state_dict()[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_micro_batches_of_equal_weight_are_not_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: 3, 3 and 1 photos, each piece a third of the loss."""

    def equal(self: Loop, batch: Batch, step: Step) -> Losses:
        for piece in _micro_batches(batch, 3):
            losses = self._trained(piece, step)
            (losses.total / 3).backward()
        return losses

    whole, _ = trained(7)
    monkeypatch.setattr(Loop, "_backward", equal)
    wrong, _ = trained(7, accumulate=3)
    assert (whole.state_dict()["up.weight"] - wrong.state_dict()["up.weight"]).abs().max() > 1e-3


def test_the_gradient_is_clipped_once_and_whole() -> None:
    (whole, _), (pieces, _) = (trained(8, grad_clip=0.1, accumulate=number) for number in (1, 4))
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(pieces.state_dict()[name], tensor, rtol=0, atol=1e-6, msg=name)

"""The moving average of the weights against its definition, and which epoch's weights are best."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models.base import Batch, Latents, Losses, Model, Step, to_float
from pipeline.training import Loop, TrainConfig
from pipeline.training.averaging import BestWeights, MovingAverage
from pipeline.training.validation import Validation

SIZE, EPOCHS, STEPS = 6, 4, 7


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """The models are small: more threads only wait for each other."""
    torch.set_num_threads(1)


class Colours(Model):
    """Learns the mean colour; keeps its weights of every step; `spoil` makes an epoch's end worse than its start."""

    def __init__(self) -> None:
        super().__init__()
        self.image_size, self.latent_dim = SIZE, 3
        self.colour = nn.Parameter(torch.zeros(3, 1))
        self.still = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("steps_seen", torch.zeros(()))
        self.history: list[Tensor] = []
        self.spoil = False

    def forward(self, batch: Batch, step: Step) -> Losses:
        error = (self.colour - to_float(batch.images).mean(dim=(0, 2, 3))[:, None]).square().sum()
        return Losses(error, {"squared": error.detach()})

    def encode(self, images: Tensor, condition: Tensor | None = None) -> Latents:
        return Latents(to_float(images).mean(dim=(2, 3)))

    def after_step(self) -> None:
        self.steps_seen += 1
        if self.spoil and self.steps_seen > 2 * STEPS:
            with torch.no_grad():
                self.colour += 0.5
        self.history.append(self.colour.detach().clone())


class Photos:
    """A loader of photos of one colour with some noise, the same photos held out."""

    steps_per_epoch, num_held_out = STEPS, 8

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        for step in range(start, stop):
            generator = torch.Generator().manual_seed(step)
            yield Batch(torch.randint(100, 200, (4, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator))

    def validation(self) -> Iterator[Batch]:
        yield from self.batches(0, 2)


def loop(**settings: object) -> Loop:
    values = {"epochs": EPOCHS, "batch_size": 4, "learning_rate": 0.05, "optimiser": "sgd", **settings}
    return Loop(Colours(), Photos(), TrainConfig(**values))


def test_the_average_is_the_recursion_of_its_definition():
    trained = loop(ema_decay=0.9)
    model = trained.run()
    expected = torch.zeros(3, 1, dtype=torch.float64)
    for step, weights in enumerate(model.history):
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weights.double()
    torch.testing.assert_close(model.colour.double(), expected, rtol=0, atol=1e-6)
    assert (model.colour - model.history[-1]).abs().max() > 1e-4  # it is not simply the last
    assert model.steps_seen == EPOCHS * STEPS  # buffers are the model's own
    assert model.still.tolist() == [1.0, 1.0]


def test_training_does_not_see_the_average():
    plain, averaged = loop().run(), loop(ema_decay=0.9).run()
    assert all(torch.equal(one, other) for one, other in zip(plain.history, averaged.history, strict=True))


def test_the_average_is_what_is_validated():
    with_average = loop(ema_decay=0.9)
    model = with_average.run()
    images = torch.cat([batch.images for batch in Photos().validation()])
    error = torch.stack([model(Batch(part), Step(0, 1)).total for part in images.split(4)]).mean()
    assert with_average.validation.measures["validation/total"] == pytest.approx(error.item(), rel=1e-6)


def test_weights_come_back_to_the_bit_after_an_average_took_their_place():
    torch.manual_seed(0)
    model = nn.Linear(5, 5)
    average = MovingAverage(model, 0.5)
    with torch.no_grad():
        model.weight.normal_()
    average.update(model, 100)
    own = copy.deepcopy(model.state_dict())
    with average.in_place_of(model):
        assert not torch.equal(model.weight, own["weight"])
    assert torch.equal(model.weight, own["weight"])
    with pytest.raises(RuntimeError, match="in between"), average.in_place_of(model):
        raise RuntimeError("in between")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in own.items())


@pytest.mark.parametrize(
    ("by", "best"), [("validation/total", 2), ("validation/ssim", 1), ("validation/used_codes", 1)]
)
def test_less_is_better_but_for_some_names_and_the_earlier_of_equals(by: str, best: int):
    model = nn.Linear(1, 1)
    kept = BestWeights(by)
    for step, value in enumerate([3.0, 4.0, 1.0, 1.0, 4.0]):
        with torch.no_grad():
            model.weight.fill_(step)
        kept.offer(model, step, Validation({by: value}))
    again = BestWeights(by)
    again.restore(kept.state())
    again.copy_to(model)
    assert (again.step, model.weight.item()) == (best, best)
    assert again.validation.measures[by] == (1.0 if best == 2 else 4.0)


def test_the_best_epoch_wins_over_the_last():
    best, last = loop(keep="best"), loop()
    best.model.spoil = last.model.spoil = True
    model = best.run()
    assert torch.equal(model.colour, model.history[2 * STEPS - 1])
    assert torch.equal(last.run().colour, model.history[-1])
    assert best.validation.measures["validation/total"] < last.validation.measures["validation/total"]


def test_a_measure_that_is_not_there_is_named_before_the_first_step():
    wrong = loop(keep="best", best_by="validation/ssim")
    with pytest.raises(ConfigError, match="validation/squared, validation/total"):
        wrong.run()
    assert wrong.model.history == []


def test_the_best_needs_held_out_photos(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Photos, "num_held_out", 0)
    with pytest.raises(ConfigError, match="no photo is held out"):
        loop(keep="best").run()
    assert loop().run().steps_seen == EPOCHS * STEPS

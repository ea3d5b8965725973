"""The loop with two gloo ranks: sums of validation, micro-batches, the same curves again and after a resume.

Every rank runs `rank_main`; see tests/ranks.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.errors import Unavailable
from pipeline.models.base import Batch, Latents, Losses, Model, Step, to_float
from pipeline.storage import Store, open_store
from pipeline.training import Line, Loop, TrainConfig, TrainProgress
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.progress import Scalars
from pipeline.training.ranks import Ranks
from pipeline.training.validation import validate

SIZE, WORLD, BATCH, STEPS, EPOCHS, HELD_OUT = 8, 2, 8, 12, 3, 11
LABELS = ("hat", "shoe")


class Tiny(Model):
    """Gaussian latents, codes, noise in training; a buffer that after_step moves."""

    has_log_var = True

    def __init__(self, *, noise: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.noise = noise
        self.image_size, self.latent_dim = SIZE, 5
        self.up = nn.Linear(5, 3 * SIZE * SIZE)
        self.down = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))
        self.register_buffer("steps_seen", torch.zeros(()))

    def forward(self, batch: Batch, step: Step) -> Losses:
        latents = self.down(to_float(batch.images))
        if self.noise and self.training:
            latents = latents + 0.1 * torch.randn_like(latents)
        error = (self._picture(latents) - to_float(batch.images)).square().flatten(1).sum(1).mean()
        return Losses(error, {"error": error.detach()})

    def encode(self, images: Tensor, condition: Tensor | None = None) -> Latents:
        mean = self.down(to_float(images))
        codes = images[:, 0, :2, 0].long() // 16  # the largest code differs between ranks
        return Latents(mean, torch.zeros_like(mean), codes)

    def decode(self, latents: Latents, condition: Tensor | None = None) -> Tensor:
        return self._picture(latents.mean)

    def _picture(self, latents: Tensor) -> Tensor:
        return self.up(latents).sigmoid().unflatten(1, (3, SIZE, SIZE))

    def after_step(self) -> None:
        self.steps_seen += 1

    def scalars(self) -> dict[str, float]:
        return {"steps_seen": float(self.steps_seen)}


def photos(seed: int, number: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (number, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    return Batch(images, torch.randint(0, 4, (number,), generator=generator))


class Photos:
    """A loader whose global batches do not depend on the number of ranks; rank 0 holds most of the held-out photos."""

    steps_per_epoch, num_held_out = STEPS, HELD_OUT

    def __init__(self, rank: int, world: int, *, first_has: int = 9) -> None:
        self.rank, self.world = rank, world
        self.first_has = first_has if world > 1 else HELD_OUT

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        each = BATCH // self.world
        for step in range(start, stop):
            whole = photos(step, BATCH)
            mine = slice(self.rank * each, (self.rank + 1) * each)
            yield Batch(whole.images[mine], whole.condition[mine])

    def validation(self) -> Iterator[Batch]:
        whole = photos(10**6, HELD_OUT)
        start, stop = (0, self.first_has) if self.rank == 0 else (self.first_has, HELD_OUT)
        for first in range(start, stop, 4):
            rows = slice(first, min(first + 4, stop))
            yield Batch(whole.images[rows], whole.condition[rows])


def validated(rank: int, world: int, first_has: int) -> dict[str, Any]:
    loader = Photos(rank, world, first_has=first_has)
    model = Tiny(noise=False)
    found = validate(model, loader.validation(), Ranks(rank, world), step=Step(0, 1), seed=0, labels=LABELS)
    return {**found.state(), "pictures": found.pictures is not None}


def trained(rank: int, world: int, **settings: Any) -> dict[str, Any]:
    """Return weights and curve of one epoch of gradient descent without noise."""
    seen: list[TrainProgress] = []
    config = TrainConfig(epochs=1, batch_size=BATCH, optimiser="sgd", learning_rate=1e-3, workers=world, **settings)
    loop = Loop(
        Tiny(noise=False), Photos(rank, world), config, Ranks(rank, world), labels=LABELS, line=Line(report=seen.append)
    )
    model = loop.run()
    return {"state": model.state_dict(), "losses": [one.loss for one in seen], "measures": loop.validation.measures}


def everything(rank: int, world: int, store: Store, stop_after: int) -> dict[str, Any]:
    """Train with everything on, stopped at the given settlement and begun again when it is not 0."""
    config = TrainConfig(
        epochs=EPOCHS, batch_size=BATCH, workers=world, ema_decay=0.9, accumulate=2, keep="best", augment="light",
        checkpoint_every_s=0, learning_rate=1e-2,
    )  # fmt: skip
    seen: list[TrainProgress] = []
    for calls in [stop_after, 10**6] if stop_after else [10**6]:
        ranks, left = Ranks(rank, world), iter(range(calls - 1))
        loop = Loop(
            Tiny(noise=True),
            Photos(rank, world),
            config,
            ranks,
            labels=LABELS,
            checkpoints=Checkpoints(store, "runs/r/checkpoints/k", ranks, identity={}, keep=2),
            line=Line(seen.append, lambda left=left: next(left, None) is None),
            open_scalars=lambda step: Scalars(store, "runs/r/tensorboard", purge_step=step),
        )
        try:
            model = loop.run()
        except Unavailable:
            torch.randn(7)
    curve = [[one.step, one.loss, *one.parts.values(), *one.validation.values()] for one in seen]
    return {"state": model.state_dict(), "curve": curve, "measures": dict(loop.validation.measures)}


def run(rank: int, world: int, folder: str) -> dict[str, Any]:
    return {
        "uneven": validated(rank, world, 9),
        "lonely": validated(rank, world, HELD_OUT),
        "whole": trained(rank, world),
        "pieces": trained(rank, world, accumulate=2, ema_decay=0.5),
        "undisturbed": everything(rank, world, open_store(f"{folder}/undisturbed"), 0),
        "again": everything(rank, world, open_store(f"{folder}/again"), 0),
        "stopped": everything(rank, world, open_store(f"{folder}/stopped"), 3),
    }


def rank_main(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    torch.save(run(rank, world, folder), Path(folder) / f"rank-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(run_ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What two processes end with, every case in turn: starting them costs more than all cases."""
    torch.set_num_threads(1)
    return run_ranks(__file__, WORLD, tmp_path_factory.mktemp("ranks"))


def assert_same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name, tensor in one.items() if not torch.equal(tensor, other[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize("case", ["uneven", "lonely"])
def test_measures_of_two_ranks_are_those_of_one(ranks: list[dict[str, Any]], case: str) -> None:
    """Nine photos here and two there; all here and none there."""
    one = validated(0, 1, HELD_OUT)
    for rank in ranks:
        assert rank[case]["measures"] == pytest.approx(one["measures"], rel=1e-6)
        assert list(rank[case]["measures"]) == list(one["measures"])
        assert rank[case]["categories"] == pytest.approx(one["categories"], rel=1e-6)
    assert ranks[0][case] | {"pictures": 0} == ranks[1][case] | {"pictures": 0}  # the same bits
    assert ranks[1]["lonely"]["pictures"] is False


@pytest.mark.slow
def test_a_mean_over_ranks_of_means_is_another_number() -> None:
    """Negative control: nine photos weigh as much as two."""
    means = [validated_alone(rank) for rank in range(WORLD)]
    assert sum(means) / WORLD != pytest.approx(validated(0, 1, HELD_OUT)["measures"]["validation/total"], rel=1e-4)


def validated_alone(rank: int) -> float:
    """Return the mean loss over one rank's held-out photos."""
    held_out = Photos(rank, WORLD).validation()
    found = validate(Tiny(noise=False), held_out, Ranks(), step=Step(0, 1), seed=0, labels=LABELS)
    return found.measures["validation/total"]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["whole", "pieces"])
def test_two_ranks_train_as_one(ranks: list[dict[str, Any]], case: str) -> None:
    settings = {"accumulate": 2, "ema_decay": 0.5} if case == "pieces" else {}
    one = trained(0, 1, **settings)
    assert_same_bits(ranks[0][case]["state"], ranks[1][case]["state"])
    for name, tensor in one["state"].items():
        torch.testing.assert_close(ranks[0][case]["state"][name], tensor, rtol=0, atol=1e-6, msg=name)
    assert ranks[0][case]["losses"] == pytest.approx(one["losses"], rel=1e-6)
    assert ranks[0][case]["measures"] == pytest.approx(one["measures"], rel=1e-5)


@pytest.mark.slow
def test_micro_batches_on_two_ranks_make_the_whole_batch(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["pieces"]["losses"] == pytest.approx(ranks[0]["whole"]["losses"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("other", ["again", "stopped"])
def test_curves_with_everything_on_are_the_same_to_the_bit(ranks: list[dict[str, Any]], other: str) -> None:
    """A second training; and one that is stopped after step 20, between the epochs' ends at 12 and 24."""
    for rank in ranks:
        assert_same_bits(rank[other]["state"], ranks[0]["undisturbed"]["state"])
        assert rank[other]["measures"] == rank["undisturbed"]["measures"]
    curve = ranks[0]["undisturbed"]["curve"]
    assert [step for step, *_ in curve] == [10, 12, 20, 24, 30, 36]
    assert ranks[0][other]["curve"] == curve

"""The loop without Ray: it learns, repeats and resumes to the bit, stops on a loss that is no number."""

from __future__ import annotations

import io
import itertools
import math
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.errors import CodebooksError, ConfigError, Unavailable
from pipeline.keys import digest_of
from pipeline.models.base import Batch, Latents, Losses, Model, Step, to_float
from pipeline.schema import pixels_schema
from pipeline.storage import Store, open_store
from pipeline.training import Line, Loop, PartRows, PixelLoader, TrainConfig, TrainProgress
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.loop import SETTLE_EVERY
from pipeline.training.optimisers import build_optimiser, learning_rate
from pipeline.training.part_cache import PartCache, PartReader
from pipeline.training.progress import Scalars
from pipeline.training.ranks import Ranks

SIZE = 8
PHOTOS = 120


class TinyAutoencoder(Model):
    """Noise in training (torch, numpy), batch statistics, a buffer moved by after_step: all a resume must restore."""

    has_log_var = False

    def __init__(self, *, batch_norm: bool = True) -> None:
        super().__init__()
        self.image_size = SIZE
        self.latent_dim = 6
        norm = nn.BatchNorm2d(8) if batch_norm else nn.GroupNorm(2, 8)
        # The decoder first: gradients then arrive in another order than the parameters have, which DDP would follow.
        self.up = nn.Linear(6, 3 * SIZE * SIZE)
        self.down = nn.Sequential(nn.Conv2d(3, 8, 4, 4), norm, nn.ReLU(), nn.Flatten(), nn.Linear(32, 6))
        self.register_buffer("steps_seen", torch.zeros((), dtype=torch.int64))
        self.fail_at: int | None = None

    def forward(self, batch: Batch, step: Step) -> Losses:
        images = to_float(batch.images)
        latents = self.encode(batch.images).mean
        latents = latents + 0.1 * torch.randn_like(latents) * float(np.random.random())
        mse = (self.up(latents).sigmoid() - images.flatten(1)).square().mean()
        size = 1e-4 * latents.square().mean()
        total = mse + size
        if step.number == self.fail_at:
            total = total * float("nan")
        return Losses(total, {"mse": mse.detach(), "size": size.detach()})

    def encode(self, images: Tensor, condition: Tensor | None = None) -> Latents:
        return Latents(self.down(to_float(images)))

    def decode(self, latents: Latents, condition: Tensor | None = None) -> Tensor:
        return self.up(latents.mean).sigmoid().unflatten(1, (3, SIZE, SIZE))

    def after_step(self) -> None:
        self.steps_seen += 1

    def scalars(self) -> dict[str, float]:
        return {"steps_seen": float(self.steps_seen)}


def fill(store: Store) -> list[PartRows]:
    """Write three parts of smooth pictures: a colour and a gradient each."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 1, SIZE)
    colours = rng.random((PHOTOS, 1, 1, 3))
    angles = rng.random((PHOTOS, 1, 1, 1)) * 2 * math.pi
    slope = np.cos(angles) * ramp[None, :, None, None] + np.sin(angles) * ramp[None, None, :, None]
    images = (255 * np.clip(colours + 0.5 * slope - 0.25, 0, 1)).astype(np.uint8)
    schema = pixels_schema(SIZE)
    pixels = []
    for part in range(3):
        rows = images[part::3]
        columns = {"pixels": pa.array([row.tobytes() for row in rows], schema.field("pixels").type)}
        for name in ("item_id", "uri", "token"):
            columns[name] = pa.array([f"{row}" for row in range(len(rows))])
        table = pa.table([columns.get(field.name, pa.nulls(len(rows), field.type)) for field in schema], schema=schema)
        sink = io.BytesIO()
        pq.write_table(table, sink)
        store.put(f"pixels/t/{part}.parquet", sink.getvalue())
        pixels.append(PartRows(f"pixels/t/{part}.parquet", np.arange(len(rows), dtype=np.int32)))
    return pixels


def config(**values: object) -> TrainConfig:
    base = {
        "epochs": 6,
        "batch_size": 12,
        "validation": 0,
        "learning_rate": 1e-2,
        "window_parts": 2,
        "checkpoint_every_s": 0,
    }
    return TrainConfig(**{**base, **values})


def loop_over(store: Store, train: TrainConfig, ranks: Ranks | None = None, **options: object) -> Loop:
    """Return a loop over the store's photos; with validation every fifth is held out, of two categories."""
    ranks = ranks or Ranks()
    torch.manual_seed(train.seed)
    names = sorted(entry.name for entry in store.list("pixels/"))
    rows = np.arange(PHOTOS // 3, dtype=np.int32)
    held_out = {"held_out": rows % 5 == 0, "category": 2 + rows % 2} if train.validation else {}
    pixels = [PartRows(name, rows, **held_out) for name in names]
    # Every store of this test has the same parts; a store on disk is read in place.
    reader = PartReader(PartCache(store, Path(options.pop("cache", "."))), SIZE)
    loader = PixelLoader(
        reader,
        pixels,
        batch_size=train.worker_batch_size(ranks.world_size),
        rank=ranks.rank,
        world_size=ranks.world_size,
        seed=train.seed,
        window_parts=train.window_parts,
    )
    saved = Checkpoints(store, "runs/r/checkpoints/k", ranks, identity=train.key_values(), keep=train.keep_checkpoints)
    model = TinyAutoencoder(batch_norm=ranks.world_size == 1)
    return Loop(model, loader, train, ranks, **{"labels": ("even", "odd"), "checkpoints": saved, **options})


def weights(model: Model) -> str:
    state = {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}
    return digest_of(b"".join(name.encode() + state[name] for name in sorted(state)))


def after_calls(number: int) -> Callable[[], bool]:
    """Return a function that says True when it is called for the `number`th time."""
    calls = itertools.count(1)
    return lambda: next(calls) >= number


def new_store(folder: Path) -> Store:
    store = open_store(str(folder / uuid.uuid4().hex))
    fill(store)
    return store


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The pictures are small: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights of a training that nothing happens to."""
    return weights(loop_over(new_store(tmp_path_factory.mktemp("undisturbed")), config()).run())


@pytest.mark.slow
def test_the_loss_goes_down(store):
    seen: list[TrainProgress] = []
    loop = loop_over(store, config(epochs=30), line=Line(report=seen.append))
    trained = loop.run()
    assert not trained.training
    assert seen[-1].loss < 0.5 * seen[0].loss
    assert int(trained.steps_seen) == loop.total_steps == 30 * PHOTOS // 12


def test_progress_says_where_it_is(store):
    seen: list[TrainProgress] = []
    loop_over(store, config(), line=Line(report=seen.append)).run()
    assert [progress.step for progress in seen] == list(range(SETTLE_EVERY, 61, SETTLE_EVERY))
    last = seen[-1]
    assert (last.step, last.total_steps, last.epoch, last.epochs) == (60, 60, 6, 6)
    assert last.seconds_left == 0
    assert last.images_per_s > 0
    assert last.resumed_from is None
    assert set(last.parts) == {"mse", "size"}
    assert last.loss == pytest.approx(sum(last.parts.values()), rel=1e-6)


def test_two_trainings_give_the_same_bits_and_another_seed_does_not(undisturbed, tmp_path):
    assert weights(loop_over(new_store(tmp_path), config()).run()) == undisturbed
    assert weights(loop_over(new_store(tmp_path), config(seed=1)).run()) != undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [10, 30, 50])
def test_a_resumed_training_gives_the_bits_of_an_undisturbed_one(undisturbed, store, stop_at):
    with pytest.raises(Unavailable, match=f"step {stop_at}"):
        loop_over(store, config(), line=Line(should_stop=after_calls(stop_at // SETTLE_EVERY))).run()
    torch.randn(7), np.random.random(7)  # another process would not have this one's generators
    seen: list[TrainProgress] = []
    resumed = loop_over(store, config(), line=Line(report=seen.append))
    assert weights(resumed.run()) == undisturbed
    assert seen[0].resumed_from == stop_at
    assert seen[0].step == stop_at + SETTLE_EVERY


def test_without_its_random_generators_a_resume_differs(undisturbed, store, monkeypatch):
    """Negative control: the comparison above sees a single generator that is not restored."""
    with pytest.raises(Unavailable):
        loop_over(store, config(), line=Line(should_stop=after_calls(2))).run()
    monkeypatch.setattr("pipeline.training.checkpoints.restore_random", lambda state, device: None)
    assert weights(loop_over(store, config()).run()) != undisturbed


def test_a_finished_training_is_not_repeated(undisturbed, store):
    assert weights(loop_over(store, config()).run()) == undisturbed
    seen: list[TrainProgress] = []
    again = loop_over(store, config(), line=Line(report=seen.append))
    assert weights(again.run()) == undisturbed
    assert seen == []


def test_a_loss_that_is_no_number_stops_with_step_and_parts(store):
    loop = loop_over(store, config())
    loop.model.fail_at = 17
    with pytest.raises(CodebooksError, match=re.escape("at step 17: total nan, mse 0.")) as raised:
        loop.run()
    assert "size" in str(raised.value)
    assert loop._checkpoints.newest() == 10  # nothing after the bad step was saved


def test_weights_that_are_no_numbers_are_not_saved(store):
    loop = loop_over(store, config())
    after = loop.model.after_step
    loop.model.after_step = lambda: (
        after() or (loop.model.steps_seen == 20 and loop.model.up.bias.data.fill_(float("inf")))
    )
    with pytest.raises(CodebooksError, match="not finite after step 19"):
        loop.run()
    assert loop._checkpoints.newest() == 10


def test_scalars_reach_the_store(store):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loop_over(store, config(), open_scalars=lambda step: Scalars(store, "runs/r/tensorboard", purge_step=step)).run()
    [entry] = store.list("runs/r/tensorboard/")
    folder = Path(store.url) / entry.name
    events = EventAccumulator(str(folder)).Reload()
    assert {"loss/total", "loss/mse", "steps_seen", "learning_rate"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss/total")] == list(range(10, 61, 10))


# --- everything on: averaged weights, micro-batches, validation, the best epoch, augmentation, TensorBoard

EVERYTHING = {"ema_decay": 0.9, "accumulate": 2, "validation": 0.2, "keep": "best", "augment": "light", "batch_size": 8}


def everything(store: Store, should_stop: Callable[[], bool] | None = None) -> tuple[Loop, list[TrainProgress]]:
    """Return a loop with all that a resume must restore, 12 steps an epoch, and the list that its progress goes to."""
    seen: list[TrainProgress] = []
    open_scalars = lambda step: Scalars(store, "runs/r/tensorboard", purge_step=step)  # noqa: E731
    line = Line(seen.append, should_stop)
    return loop_over(store, config(epochs=4, **EVERYTHING), line=line, open_scalars=open_scalars), seen


def curves(seen: list[TrainProgress]) -> list[object]:
    """Return what a training said that is no matter of the clock."""
    return [(one.step, one.loss, dict(one.parts), one.learning_rate, dict(one.validation)) for one in seen]


def logged(store: Store) -> dict[tuple[str, int], float]:
    """Return the TensorBoard scalars on the store; of two attempts' values for one step the later."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    entries = sorted(store.list("runs/r/tensorboard/"), key=lambda entry: Path(store.url, entry.name).stat().st_mtime)
    found = {}
    for entry in entries:
        events = EventAccumulator(str(Path(store.url) / entry.name), size_guidance={"images": 0}).Reload()
        assert events.Tags()["images"] == ["validation/reconstructions"] or len(entries) > 1
        for tag in events.Tags()["scalars"]:
            found |= {(tag, event.step): event.value for event in events.Scalars(tag)}
    return found


@dataclass(frozen=True)
class Whole:
    """What a training with everything on came to that nothing happened to."""

    weights: str
    curves: list[Any]
    logged: dict[tuple[str, int], float]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return trained_whole(new_store(tmp_path_factory.mktemp("whole")))


def trained_whole(store: Store) -> Whole:
    loop, seen = everything(store)
    return Whole(weights(loop.run()), curves(seen), logged(store))


@pytest.mark.slow
def test_two_trainings_with_everything_on_give_the_same_curves(whole, store):
    assert trained_whole(store) == whole
    seen, scalars = whole.curves, whole.logged
    assert [step for step, *_ in seen] == [10, 12, 20, 24, 30, 36, 40, 48]
    validation = seen[-1][-1]
    names = {"total", "mse", "size", "ssim", "worst_category_mse", "best_category_mse"}
    assert set(validation) == {f"validation/{name}" for name in names}
    assert validation["validation/best_category_mse"] < validation["validation/worst_category_mse"]
    assert {step for name, step in scalars if name == "validation/ssim"} == {12, 24, 36, 48}
    assert {step for name, step in scalars if name == "steps_seen"} == {12, 24, 36, 48}


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [10, 30])
def test_a_training_stopped_mid_epoch_with_everything_on_has_the_same_curves(whole, store, stop_at):
    loop, before = everything(store, should_stop=after_calls({10: 1, 30: 5}[stop_at]))
    with pytest.raises(Unavailable, match=f"step {stop_at}"):
        loop.run()
    torch.randn(7), np.random.random(7)
    again, after = everything(store)
    assert weights(again.run()) == whole.weights
    assert curves(before) + curves(after) == whole.curves
    assert logged(store) == whole.logged


@pytest.mark.slow
@pytest.mark.parametrize("forgotten", ["MovingAverage", "BestWeights"])
def test_a_resume_that_forgets_a_part_is_seen(whole, tmp_path, monkeypatch, forgotten):
    """Negative control: the averaged weights and the best epoch matter to what a resumed training returns."""
    if forgotten == "BestWeights":  # the largest loss is "best": that of the first epoch, which ends before the stop
        monkeypatch.setattr("pipeline.training.averaging._MORE_IS_BETTER", ("total",))
        done = weights(everything(new_store(tmp_path))[0].run())
    else:
        done = whole.weights
    stopped = new_store(tmp_path)
    with pytest.raises(Unavailable, match="step 20"):
        everything(stopped, should_stop=after_calls(3))[0].run()
    monkeypatch.setattr(f"pipeline.training.averaging.{forgotten}.restore", lambda self, state: None)
    assert weights(everything(stopped)[0].run()) != done


def test_a_finished_training_with_everything_on_is_not_repeated(whole, store):
    first, _ = everything(store)
    assert weights(first.run()) == whole.weights
    again, seen = everything(store)
    assert weights(again.run()) == whole.weights
    assert seen == []
    assert again.validation.state() == first.validation.state()
    assert len(again.validation.categories) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch hides it itself, unless it is an error
def test_a_compiled_training_is_the_plain_one_within_rounding(store, monkeypatch):
    """Twelve steps and a validation; the compiled model's weights keep their names.

    Traced and differentiated as ever, but run by torch's own kernels: the C++ compiler would take most of a minute.
    """
    compiled_calls: list[int] = []

    def compile_quickly(self: nn.Module) -> None:
        compiled_calls.append(1)
        nn.Module.compile(self, backend="aot_eager")

    monkeypatch.setattr(TinyAutoencoder, "compile", compile_quickly)
    seen: list[TrainProgress] = []
    settings = {"epochs": 1, "batch_size": 8, "optimiser": "sgd", "validation": 0.2, "ema_decay": 0.9}
    models = [
        loop_over(store, config(compile=on, **settings), checkpoints=None, line=Line(report=seen.append)).run()
        for on in (False, True)
    ]
    assert compiled_calls == [1]
    assert [one.loss for one in seen[:2]] == pytest.approx([one.loss for one in seen[2:]], rel=1e-5)
    assert dict(seen[1].validation) == pytest.approx(dict(seen[3].validation), rel=1e-4)
    plain, compiled = (model.state_dict() for model in models)
    assert list(plain) == list(compiled)
    for name, tensor in plain.items():
        torch.testing.assert_close(compiled[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_batch_norms_on_several_cpu_ranks_are_refused():
    with pytest.raises(ConfigError, match=r"batch norms \(down\.1\)"):
        Ranks(0, 2).place(TinyAutoencoder())
    Ranks(0, 2).place(TinyAutoencoder(batch_norm=False))


@pytest.mark.slow
def test_bf16_and_clipping_train(store):
    loop_over(store, config(precision="bf16", grad_clip=0.01, optimiser="sgd")).run()


def test_gradients_are_clipped(store):
    loop = loop_over(store, config(epochs=1, grad_clip=1e-3, optimiser="sgd", schedule="constant", warmup=0))
    norms: list[float] = []
    original = loop.model.after_step

    def note() -> None:
        grads = [parameter.grad.norm() for parameter in loop.model.parameters()]
        norms.append(float(torch.stack(grads).norm()))
        original()

    loop.model.after_step = note
    loop.run()
    assert max(norms) <= 1e-3 * 1.001


def test_a_model_that_compares_photos_takes_no_pieces_of_a_batch(store, monkeypatch):
    monkeypatch.setattr(TinyAutoencoder, "views", 2)
    with pytest.raises(ConfigError, match="accumulate is 2"):
        loop_over(store, config(accumulate=2))


def test_the_learning_rate_warms_up_and_falls():
    train = config(warmup=0.1, learning_rate=1.0)
    rates = [learning_rate(train, step, 100, steps_per_epoch=10) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5)))
    assert 0 < rates[-1] < 1e-3
    assert learning_rate(config(schedule="constant", learning_rate=1.0), 99, 100, steps_per_epoch=10) == 1.0


def test_milestones_are_those_of_torch():
    train = config(schedule="milestones", milestones=(2, 3, 7), gamma=0.5, learning_rate=0.3, warmup=0)
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.3)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [2, 3, 7], 0.5)
    for epoch in range(9):
        expected = schedule.get_last_lr()[0]
        found = [learning_rate(train, epoch * 4 + step, 36, steps_per_epoch=4) for step in range(4)]
        assert found == pytest.approx([expected] * 4, rel=1e-12)
        optimiser.step()
        schedule.step()


def test_weight_decay_spares_vectors():
    optimiser = build_optimiser(TinyAutoencoder(), config(weight_decay=0.1))
    decay = {
        parameter.ndim > 1: group["weight_decay"] for group in optimiser.param_groups for parameter in group["params"]
    }
    assert decay == {True: 0.1, False: 0.0}


# --- several ranks, as processes of their own: this file run as a program


def rank_main(rank: int, world: int, folder: str) -> None:
    """Train as one rank, once undisturbed and once stopped and begun again; see tests/ranks.py."""
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=world)
    ranks, train, ended = Ranks(rank, world), config(workers=world), {}
    for name, stop_at in (("undisturbed", 0), ("stopped", 20)):
        store = open_store(f"{folder}/{name}")
        if stop_at:
            with pytest.raises(Unavailable):
                loop_over(store, train, ranks, line=Line(should_stop=after_calls(stop_at // SETTLE_EVERY))).run()
        ended[name] = weights(loop_over(store, train, ranks).run())
    torch.save(ended, Path(folder) / f"rank-{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_three_ranks_resume_to_the_bits_of_an_undisturbed_training(run_ranks, tmp_path):
    """Three: only from there on does the order of a sum over ranks matter."""
    for name in ("undisturbed", "stopped"):
        fill(open_store(str(tmp_path / name)))
    for rank in run_ranks(__file__, 3, tmp_path):
        assert rank["stopped"] == rank["undisturbed"]

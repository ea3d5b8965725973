"""The training loop, one for every model, readable from top to bottom; it needs no Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import CodebooksError, ConfigError, Unavailable
from ..images.augment import light
from ..models.base import Batch, Losses, Model, Step
from .averaging import BestWeights, MovingAverage
from .checkpoints import Checkpoints
from .config import TrainConfig
from .loader import Loader
from .optimisers import build_optimiser, learning_rate, set_learning_rate
from .progress import LossLog, Scalars, Speed, TrainProgress
from .ranks import Ranks, seed_rank
from .validation import Validation, validate

# Steps between two settlements: losses are averaged over the ranks and checked, a checkpoint is made when due, progress
# goes out. Between them no rank waits for the device or for anything but gradients. An epoch's end settles too.
SETTLE_EVERY = 10

Report = Callable[[TrainProgress], None]
ShouldStop = Callable[[], bool]
OpenScalars = Callable[[int], Scalars]


@dataclass(frozen=True, slots=True)
class Line:
    """A training's line to who started it, of rank 0: at every settlement report is told and should_stop asked."""

    report: Report | None = None
    should_stop: ShouldStop | None = None


NO_LINE = Line()


class Loop:
    """Trains a model on one rank's batches.

    model: on the CPU, with the same weights on every rank. labels: the categories' names, for measures by category.
    checkpoints: None trains without any. open_scalars: called on rank 0 with the first step. Raises ConfigError for a
    model that this loop cannot train.
    """

    def __init__(
        self,
        model: Model,
        loader: Loader,
        config: TrainConfig,
        ranks: Ranks | None = None,
        *,
        labels: Sequence[str] = (),
        checkpoints: Checkpoints | None = None,
        line: Line = NO_LINE,
        open_scalars: OpenScalars | None = None,
    ) -> None:
        if (model.views != 1 or model.compares) and config.accumulate != 1:
            raise ConfigError(
                f"train.accumulate is {config.accumulate}, but {type(model).__name__} compares the photos of a batch "
                "with each other, which pieces of it cannot; set it to 1"
            )
        if model.reads != "photos" and config.augment != "none":
            raise ConfigError(f"train.augment is {config.augment!r}, but {type(model).__name__} reads {model.reads}")
        self.config = config
        self.ranks = ranks or Ranks()
        self.model = self.ranks.place(model)
        self.loader = loader
        self.total_steps = config.epochs * loader.steps_per_epoch
        self.validation = Validation()  # of the newest weights; after `run` of those that it returned
        self._labels = tuple(labels)
        self._checkpoints = checkpoints
        self._line = line
        self._open_scalars = open_scalars
        self._scalars: Scalars | None = None

    def run(self) -> Model:
        """Return the model in evaluation mode: its last weights, their moving average, or the best epoch's.

        Continues from the newest complete checkpoint, to the same bits as without the interruption (on one kind of
        CPU). Raises CodebooksError naming step and loss parts when a loss is not finite, Unavailable when asked to
        stop, ConfigError when `best_by` names no measure.
        """
        # --- weights, optimiser, random numbers: what a checkpoint restores
        seed_rank(self.config.seed, self.ranks.rank)
        self.model.train()
        self.optimiser = build_optimiser(self.model, self.config)
        self._average = MovingAverage(self.model, self.config.ema_decay) if self.config.ema_decay is not None else None
        self._best = BestWeights(self.config.best_by) if self.config.keep == "best" else None
        start = self._resume()

        # --- what runs it: gradients averaged over ranks, logs
        if self.config.compile:
            self.model.compile()  # in place: the names of the weights stay
        self._trained = self.ranks.parallel(self.model)
        self._log = LossLog(self.ranks)
        self._speed = Speed(start)
        self._saved_at = time.monotonic()
        self._resumed_from = start or None
        if self._best and start == 0:  # a wrong name is told now, not after the first epoch
            self._best.check(self._validate().measures)

        # --- the steps
        with ExitStack() as stack:
            batches = stack.enter_context(closing(self.loader.batches(start, self.total_steps)))
            if self._open_scalars and self.ranks.is_first:
                self._scalars = stack.enter_context(closing(self._open_scalars(start)))
            for step in range(start, self.total_steps):
                self._log.add(step, self._train_step(step, next(batches)))
                done = step + 1
                if done % SETTLE_EVERY == 0 or done % self.loader.steps_per_epoch == 0:
                    self._settle(done)
        return self._finished()

    def _resume(self) -> int:
        """Return the step to begin with, after loading the newest complete checkpoint where there is one."""
        step = self._checkpoints.newest() if self._checkpoints else None
        if step is None or self._checkpoints is None:
            return 0
        state = self._checkpoints.load(step)
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self._average:
            self._average.restore(state["average"])
        if self._best:
            self._best.restore(state["best"])
        self.validation = Validation(**state["validation"])
        return step

    def _state(self) -> dict[str, Any]:
        """Return what `_resume` needs beside the random generators."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self._average.state() if self._average else None,
            "best": self._best.state() if self._best else None,
            "validation": self.validation.state(),
        }

    def _train_step(self, number: int, batch: Batch) -> Losses:
        """Take one optimiser step on a batch and return its losses."""
        set_learning_rate(self.optimiser, self._learning_rate(number))
        self.optimiser.zero_grad(set_to_none=True)
        losses = self._backward(self._on_device(batch), Step(number, self.total_steps))
        if self.config.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimiser.step()
        self.model.after_step()
        if self._average:
            self._average.update(self.model, number)
        return losses

    def _on_device(self, batch: Batch) -> Batch:
        """Return a batch on this rank's device, augmented there."""
        device = self.ranks.device
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        images = batch.images.to(device, non_blocking=True, memory_format=layout)
        if self.config.augment == "light":
            images = light(images)
        images = self.model.augmented(images)
        return replace(batch, images=images).each(lambda values: values.to(device, non_blocking=True))

    def _backward(self, batch: Batch, step: Step) -> Losses:
        """Add the gradient of the batch's loss to the parameters, in `accumulate` micro-batches; return the losses.

        Every micro-batch weighs as many photos as it has, and only the last lets the ranks exchange gradients.
        """
        pieces = _micro_batches(batch, self.config.accumulate)
        sums: dict[str, Tensor] = {}
        for number, piece in enumerate(pieces, start=1):
            share = len(piece.images) / len(batch.images)
            with self.ranks.exchange(self._trained, now=number == len(pieces)):
                with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
                    losses: Losses = self._trained(piece, step)
                (share * losses.total).backward()  # type: ignore[no-untyped-call]
            for name, value in {"total": losses.total, **losses.parts}.items():
                part = share * value.detach()
                sums[name] = sums[name] + part if name in sums else part
        return Losses(sums.pop("total"), sums)

    def _settle(self, done: int) -> None:
        """Settle the steps up to `done`: check losses, measure an epoch, save when due, tell of it, stop when asked to.

        Rank 0's clock and rank 0's wish to stop decide, and all ranks follow together.
        """
        last = done == self.total_steps
        first = self.ranks.is_first
        stop = first and not last and self._line.should_stop is not None and self._line.should_stop()
        due = first and (last or stop or time.monotonic() - self._saved_at >= self.config.checkpoint_every_s)
        means, (save, leave) = self._log.settle(due, stop)
        if self._scalars:
            named = {f"loss/{name}": value for name, value in means.items()}
            self._scalars.add(done, {**named, "learning_rate": self._learning_rate(done - 1)})
        if done % self.loader.steps_per_epoch == 0:
            self._end_epoch(done)
        if save and self._checkpoints:
            self._save(self._checkpoints, done, means)
        if first and self._line.report:
            self._line.report(self._progress(done, means))
        if leave:
            raise Unavailable(f"the training was asked to stop after step {done}; the same command continues it")

    def _end_epoch(self, done: int) -> None:
        """Measure the epoch that ends with step `done`, on every rank, and keep its weights if they are the best."""
        measures = self.model.scalars()
        with self._average.in_place_of(self.model) if self._average else nullcontext():
            self.validation = self._validate()
            if self._best:
                self._best.offer(self.model, done, self.validation)
        if self._scalars:
            self._scalars.add(done, {**measures, **self.validation.measures})
            if self.validation.pictures is not None:
                self._scalars.add_pictures(done, "validation/reconstructions", self.validation.pictures)
            if self.validation.categories:
                self._scalars.add_table(done, "validation/mse_by_category", self.validation.categories)

    def _validate(self) -> Validation:
        """Measure the model as it is on the held-out photos of all ranks.

        By the loss of the last step, so that weights which change during a training do not set epochs apart.
        """
        if self.loader.num_held_out == 0:
            return Validation()
        last = Step(self.total_steps - 1, self.total_steps)
        with closing(self.loader.validation()) as held_out:
            return validate(self.model, held_out, self.ranks, step=last, seed=self.config.seed, labels=self._labels)

    def _save(self, checkpoints: Checkpoints, done: int, means: dict[str, float]) -> None:
        """Write a checkpoint; refuses weights that are not finite, from which no resume could recover."""
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            parts = ", ".join(f"{name} {value:g}" for name, value in means.items())
            raise CodebooksError(f"weights are not finite after step {done - 1} ({parts}); lower train.learning_rate")
        checkpoints.save(done, self._state())
        self._saved_at = time.monotonic()
        if self._scalars:
            self._scalars.upload()

    def _finished(self) -> Model:
        """Return the model with the weights that were asked for, in evaluation mode."""
        if self._average:
            self._average.copy_to(self.model)
        if self._best:
            self._best.copy_to(self.model)
            self.validation = self._best.validation
        return self.model.eval()

    def _learning_rate(self, step: int) -> float:
        return learning_rate(self.config, step, self.total_steps, steps_per_epoch=self.loader.steps_per_epoch)

    def _progress(self, done: int, means: dict[str, float]) -> TrainProgress:
        speed = self._speed.steps_per_s(done)
        return TrainProgress(
            step=done,
            total_steps=self.total_steps,
            epoch=(done - 1) // self.loader.steps_per_epoch + 1,
            epochs=self.config.epochs,
            loss=means["total"],
            parts={name: value for name, value in means.items() if name != "total"},
            learning_rate=self._learning_rate(done - 1),
            images_per_s=speed * self.config.batch_size,
            seconds_left=(self.total_steps - done) / max(speed, 1e-9),
            resumed_from=self._resumed_from,
            validation=self.validation.measures,
        )


def _micro_batches(batch: Batch, number: int) -> list[Batch]:
    """Return a batch in at most `number` pieces of equal size, the last of which may be smaller."""
    size = -(-len(batch.images) // number)
    return [
        batch.each(lambda values, first=first: values[first : first + size])  # type: ignore[misc]
        for first in range(0, len(batch.images), size)
    ]

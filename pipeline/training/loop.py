"""The training loop, one for every model, readable from top to bottom; it needs no Ray."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing

import torch

from ..errors import CodebooksError, ConfigError, Unavailable
from ..models.base import Batch, Losses, Model, Step
from .checkpoints import Checkpoints
from .config import TrainConfig
from .loader import PixelLoader
from .optimisers import build_optimiser, learning_rate, set_learning_rate
from .progress import LossLog, Scalars, Speed, TrainProgress
from .ranks import Ranks, seed_rank

# Steps between two settlements: losses are averaged over the ranks and checked, a checkpoint is made when due, progress
# goes out. Between them no rank waits for the device or for anything but gradients.
SETTLE_EVERY = 10

Report = Callable[[TrainProgress], None]
ShouldStop = Callable[[], bool]
OpenScalars = Callable[[int], Scalars]


class Loop:
    """Trains a model on one rank's batches.

    model: on the CPU, with the same weights on every rank. checkpoints: None trains without any. On rank 0 only:
    should_stop is asked and report is told at every settlement, open_scalars is called with the first step.
    """

    def __init__(
        self,
        model: Model,
        loader: PixelLoader,
        config: TrainConfig,
        ranks: Ranks | None = None,
        *,
        checkpoints: Checkpoints | None = None,
        report: Report | None = None,
        should_stop: ShouldStop | None = None,
        open_scalars: OpenScalars | None = None,
    ) -> None:
        if model.views != 1:
            raise ConfigError(f"{type(model).__name__} wants {model.views} views of each photo; the loader gives one")
        self.config = config
        self.ranks = ranks or Ranks()
        self.model = model.to(self.ranks.device)
        self.loader = loader
        self.total_steps = config.epochs * loader.steps_per_epoch
        self._checkpoints = checkpoints
        self._report = report
        self._should_stop = should_stop
        self._open_scalars = open_scalars
        self._scalars: Scalars | None = None

    def run(self) -> Model:
        """Return the model, trained for all epochs and in evaluation mode.

        Continues from the newest complete checkpoint, to the same bits as without the interruption (on CPU). Raises
        CodebooksError naming step and loss parts when a loss is not a finite number, Unavailable when asked to stop.
        """
        # --- model, optimiser, random numbers: what a checkpoint restores
        seed_rank(self.config.seed, self.ranks.rank)
        self.model.train()
        self.optimiser = build_optimiser(self.model, self.config)
        start = self._resume()

        # --- what runs it: gradients averaged over ranks, logs
        self._trained = self.ranks.parallel(self.model)
        self._log = LossLog(self.ranks)
        self._speed = Speed(start)
        self._saved_at = time.monotonic()
        self._resumed_from = start or None

        # --- the steps
        with ExitStack() as stack:
            batches = stack.enter_context(closing(self.loader.batches(start, self.total_steps)))
            if self._open_scalars and self.ranks.is_first:
                self._scalars = stack.enter_context(closing(self._open_scalars(start)))
            for step in range(start, self.total_steps):
                self._log.add(step, self._train_step(step, next(batches)))
                if (step + 1) % SETTLE_EVERY == 0 or step + 1 == self.total_steps:
                    self._settle(step + 1)
        return self.model.eval()

    def _resume(self) -> int:
        """Return the step to begin with, after loading the newest complete checkpoint where there is one."""
        step = self._checkpoints.newest() if self._checkpoints else None
        if step is None or self._checkpoints is None:
            return 0
        state = self._checkpoints.load(step)
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        return step

    def _train_step(self, number: int, given: Batch) -> Losses:
        """Take one optimiser step on a batch and return its losses."""
        device = self.ranks.device
        set_learning_rate(self.optimiser, learning_rate(self.config, number, self.total_steps))
        self.optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            condition = None if given.condition is None else given.condition.to(device, non_blocking=True)
            batch = Batch(given.images.to(device, non_blocking=True), condition)
            losses: Losses = self._trained(batch, Step(number, self.total_steps))
        losses.total.backward()  # type: ignore[no-untyped-call]
        if self.config.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimiser.step()
        self.model.after_step()
        return losses

    def _settle(self, done: int) -> None:
        """Settle the steps up to `done`: check losses, save when due, tell of it, stop when asked to.

        Rank 0's clock and rank 0's wish to stop decide, and all ranks follow together.
        """
        last = done == self.total_steps
        first = self.ranks.is_first
        stop = first and not last and self._should_stop is not None and self._should_stop()
        due = first and (last or stop or time.monotonic() - self._saved_at >= self.config.checkpoint_every_s)
        means, (save, leave) = self._log.settle(due, stop)
        self._write_scalars(done, means)
        if save and self._checkpoints:
            self._save(self._checkpoints, done, means)
        if first and self._report:
            self._report(self._progress(done, means))
        if leave:
            raise Unavailable(f"the training was asked to stop after step {done}; the same command continues it")

    def _save(self, checkpoints: Checkpoints, done: int, means: dict[str, float]) -> None:
        """Write a checkpoint; refuses weights that are not finite, from which no resume could recover."""
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            parts = ", ".join(f"{name} {value:g}" for name, value in means.items())
            raise CodebooksError(f"weights are not finite after step {done - 1} ({parts}); lower train.learning_rate")
        checkpoints.save(done, {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()})
        self._saved_at = time.monotonic()
        if self._scalars:
            self._scalars.upload()

    def _write_scalars(self, done: int, means: dict[str, float]) -> None:
        if self._scalars:
            rate = learning_rate(self.config, done - 1, self.total_steps)
            named = {f"loss/{name}": value for name, value in means.items()}
            self._scalars.add(done, {**named, **self.model.scalars(), "learning_rate": rate})

    def _progress(self, done: int, means: dict[str, float]) -> TrainProgress:
        speed = self._speed.steps_per_s(done)
        return TrainProgress(
            step=done,
            total_steps=self.total_steps,
            epoch=(done - 1) // self.loader.steps_per_epoch + 1,
            epochs=self.config.epochs,
            loss=means["total"],
            parts={name: value for name, value in means.items() if name != "total"},
            learning_rate=learning_rate(self.config, done - 1, self.total_steps),
            images_per_s=speed * self.config.batch_size,
            seconds_left=(self.total_steps - done) / max(speed, 1e-9),
            resumed_from=self._resumed_from,
        )

"""What a training says of itself while it runs: losses over all ranks, speed, TensorBoard scalars."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CodebooksError
from ..models.base import Losses
from ..storage import Store
from .ranks import Ranks


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """How far a training is.

    step: finished optimiser steps of total_steps; epoch counts from 1. loss and parts: means over photos, workers and
    the steps since the last report. images_per_s: over all workers, recently. resumed_from: the step of the
    checkpoint that this attempt continued, or None. validation: the measures of the last finished epoch, by name.
    """

    step: int
    total_steps: int
    epoch: int
    epochs: int
    loss: float
    parts: Mapping[str, float]
    learning_rate: float
    images_per_s: float
    seconds_left: float
    resumed_from: int | None = None
    validation: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class LossLog:
    """The losses of the steps since they were last settled; they stay on the device until then."""

    ranks: Ranks
    steps: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def add(self, step: int, losses: Losses) -> None:
        """Note the losses of one step; every step names the same parts."""
        self.names = ["total", *losses.parts]
        members = [losses.total, *losses.parts.values()]
        self.steps.append(step)
        self.values.append(torch.stack([member.detach().to(torch.float64) for member in members]))

    def settle(self, *flags: bool) -> tuple[dict[str, float], list[bool]]:
        """Return mean losses over steps and ranks, and for each flag whether any rank raised it; every rank calls this.

        Raises CodebooksError, on every rank alike, when a loss is not a finite number: names the first such step.
        """
        table = torch.stack(self.values)  # [steps, parts]
        both = torch.zeros((len(table) + 1, max(table.shape[1], len(flags))), dtype=torch.float64)
        both = both.to(self.ranks.device)
        both[:-1, : table.shape[1]] = table
        both[-1, : len(flags)] = torch.tensor(flags, dtype=torch.float64)
        *rows, last = self.ranks.mean(both).tolist()
        for step, row in zip(self.steps, rows, strict=True):
            if not math.isfinite(row[0]):
                raise CodebooksError(
                    f"the training loss is not a number at step {step}: {_shown(self.names, row)}; "
                    "lower train.learning_rate, set train.grad_clip or use precision fp32"
                )
        means = {name: sum(row[at] for row in rows) / len(rows) for at, name in enumerate(self.names)}
        self.steps.clear()
        self.values.clear()
        return means, [value > 0 for value in last[: len(flags)]]


def _shown(names: list[str], values: list[float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in zip(names, values, strict=False))


class Speed:
    """Recent steps a second, over the last `reports` reports."""

    def __init__(self, step: int, reports: int = 20) -> None:
        self._seen: deque[tuple[float, int]] = deque([(time.monotonic(), step)], maxlen=reports)

    def steps_per_s(self, step: int) -> float:
        """Note that `step` is reached now; return the speed since the oldest remembered report."""
        now = time.monotonic()
        then, first = self._seen[0]
        self._seen.append((now, step))
        return (step - first) / max(now - then, 1e-9)


class Scalars:
    """TensorBoard scalars, pictures and tables of rank 0: event files in a local folder.

    They are copied to the store with every checkpoint. folder: `runs/<run>/tensorboard`. Each attempt writes files of
    its own; `purge_step` hides what an older one logged beyond the checkpoint that this one continues.
    """

    def __init__(self, store: Store, folder: str, *, purge_step: int) -> None:
        # Imported here: only rank 0 of a training needs it, and it takes a second.
        from torch.utils.tensorboard import SummaryWriter

        self._store = store
        self._folder = folder.rstrip("/")
        self._local = Path(tempfile.mkdtemp(prefix="tensorboard-"))
        self._writer = SummaryWriter(str(self._local), purge_step=purge_step)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write named values at a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def add_pictures(self, step: int, name: str, pictures: Tensor) -> None:
        """Write a picture at a step, uint8 [3, H, W] on the CPU."""
        self._writer.add_image(name, pictures.numpy(), step)

    def add_table(self, step: int, name: str, values: Mapping[str, float]) -> None:
        """Write names and values at a step as a table, in their order."""
        rows = [f"| {key} | {value:.6g} |" for key, value in values.items()]
        self._writer.add_text(name, "\n".join(["| name | value |", "|---|---|", *rows]), step)

    def upload(self) -> None:
        """Copy the event files to the store."""
        self._writer.flush()
        for path in sorted(self._local.iterdir()):
            self._store.put(f"{self._folder}/{path.name}", path.read_bytes())

    def close(self) -> None:
        """Upload a last time and delete the local folder."""
        self._writer.close()
        self.upload()
        shutil.rmtree(self._local, ignore_errors=True)

"""Batches of rows that are in memory as a whole, for the loop; `PixelLoader` does the same for photos on the store."""

from __future__ import annotations

from collections.abc import Callable, Generator

import numpy as np
from numpy.typing import NDArray

from ..models.base import Batch

Rows = NDArray[np.int64]
TakeRows = Callable[[Rows], Batch]


class RowsLoader:
    """One rank's batches.

    train, held_out: how many rows there are of each, and what makes a batch of some of them. batch_size: rows a batch
    of this rank; steps_per_epoch: batches of every rank an epoch. Every epoch all rows are permuted by (seed, epoch),
    and a step takes the next batch_size * world_size of them, of which each rank has its stretch: a step's rows do not
    depend on the number of ranks. The last step takes some of the first rows again.
    """

    def __init__(
        self,
        train: tuple[int, TakeRows],
        held_out: tuple[int, TakeRows],
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
    ) -> None:
        self.num_photos, self._train = train
        self.num_held_out, self._held_out = held_out
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        self._seed = seed
        self.steps_per_epoch = -(-self.num_photos // (batch_size * world_size))

    def batches(self, start: int, stop: int) -> Generator[Batch]:
        """Yield the batches of steps start..stop - 1, counted over all epochs, on the CPU."""
        together = self._batch_size * self._world_size
        epoch, order = -1, np.empty(0, np.int64)
        for step in range(start, stop):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = np.random.default_rng([self._seed, epoch]).permutation(self.num_photos)
            first = step % self.steps_per_epoch * together + self._rank * self._batch_size
            yield self._train(order[np.arange(first, first + self._batch_size) % self.num_photos])

    def validation(self) -> Generator[Batch]:
        """Yield this rank's share of the held-out rows; over all ranks every one comes once."""
        begin = self.num_held_out * self._rank // self._world_size
        end = self.num_held_out * (self._rank + 1) // self._world_size
        for first in range(begin, end, self._batch_size):
            yield self._held_out(np.arange(first, min(first + self._batch_size, end)))

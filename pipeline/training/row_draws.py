"""How often each photo is drawn in an epoch: every photo once, or every category equally often."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Of the streams of random numbers of one seed; the loader's shuffles have 0 to 2, after the epoch.
_OFFSETS = 3


class Sampling(ABC):
    """Which living rows of which part an epoch draws; `total` draws in every epoch."""

    total: int
    longest_piece: int | None = None  # a part with more draws is cut into pieces of so many

    @abstractmethod
    def counts(self, epoch: int) -> list[int]:
        """Return the draws of each part."""

    @abstractmethod
    def places(self, epoch: int, part: int) -> NDArray[np.int32]:
        """Return which living rows of a part are drawn, ascending, one drawn twice standing there twice."""


class EveryRow(Sampling):
    """Every row once. counts: rows of each part."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.total = sum(counts)
        self._counts = list(counts)

    def counts(self, epoch: int) -> list[int]:
        """Return the rows of each part."""
        return self._counts

    def places(self, epoch: int, part: int) -> NDArray[np.int32]:
        """Return all rows of a part."""
        return np.arange(self._counts[part], dtype=np.int32)


class Balanced(Sampling):
    """Every category equally often, by systematic sampling: rows of one category differ by one draw at most.

    categories: of each part, the category of its rows, int32 [n]. With n rows and q draws of a category an epoch, its
    row i is drawn as often as a multiple of n lies in (i q + o, (i + 1) q + o], for an offset o. The offset of the next
    epoch is o + q, and so an epoch continues where the one before stopped: over any number of epochs, too, two rows
    of a category differ by one draw at most. The first offset follows from (seed, category) (Madow 1949).
    """

    def __init__(self, categories: Sequence[NDArray[np.int32]], *, seed: int) -> None:
        self._categories = categories
        self.total = sum(map(len, categories))
        # A part whose rows are drawn often would fill a window alone: its draws are spread over the epoch instead.
        self.longest_piece = -(-self.total // max(len(categories), 1))
        tallies = [np.unique(rows, return_counts=True) for rows in categories]
        self._names = np.unique(np.concatenate([names for names, _ in tallies]))
        self._ends = np.cumsum([len(names) for names, _ in tallies])  # of each part's stretch of the next three
        self._category = np.searchsorted(self._names, np.concatenate([names for names, _ in tallies])).astype(np.int32)
        self._tally = np.concatenate([tally for _, tally in tallies]).astype(np.int32)
        self._rows = np.bincount(self._category, self._tally, len(self._names)).astype(np.int64)
        self._before = _before(self._category, self._tally)  # rows of the category in earlier parts
        count = len(self._names)
        self._quota = self.total // count + (np.arange(count) < self.total % count)
        self._first = np.array([np.random.default_rng([seed, _OFFSETS, int(name)]).random() for name in self._names])

    def counts(self, epoch: int) -> list[int]:
        """Return the draws of each part."""
        first = self._before.astype(np.int64)
        draws = self._drawn(epoch, self._category, first + self._tally) - self._drawn(epoch, self._category, first)
        sums = np.append(0, np.cumsum(draws))[np.append(0, self._ends)]
        return [int(count) for count in np.diff(sums)]

    def places(self, epoch: int, part: int) -> NDArray[np.int32]:
        """Return which living rows of a part are drawn."""
        category = np.searchsorted(self._names, self._categories[part])
        stretch = slice(self._ends[part - 1] if part else 0, self._ends[part])
        before = np.zeros(len(self._names), np.int64)
        before[self._category[stretch]] = self._before[stretch]
        order = np.argsort(category, kind="stable")
        begins = np.append(0, np.cumsum(self._tally[stretch]))[:-1]
        within = np.empty(len(order), np.int64)
        within[order] = np.arange(len(order)) - np.repeat(begins, self._tally[stretch])
        number = before[category] + within  # of a row among all rows of its category
        draws = self._drawn(epoch, category, number + 1) - self._drawn(epoch, category, number)
        return np.repeat(np.arange(len(draws), dtype=np.int32), draws)

    def _drawn(self, epoch: int, category: NDArray[np.integer], number: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many draws the first `number` rows of a category have together, up to a constant."""
        rows, quota = self._rows[category], self._quota[category]
        offset = ((self._first * self._rows).astype(np.int64) + epoch * self._quota) % self._rows
        drawn: NDArray[np.int64] = (number * quota + offset[category]) // rows
        return drawn


def _before(category: NDArray[np.int32], tally: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return, for each entry, the sum of the tallies of earlier entries of its category."""
    order = np.argsort(category, kind="stable")
    sums = np.cumsum(tally[order], dtype=np.int64) - tally[order]
    start = np.searchsorted(category[order], category[order])
    out = np.empty(len(order), np.int32)
    out[order] = sums - sums[start]
    return out

"""The rows of an index that ask it, to tune and to measure by, so that what they find is what new photos would.

A row of the index asks in the place of a photo that is not in it. It must not answer itself, nor may what it has and a
new photo has not: in a graph its own links, which lead a walk to its neighbours; and where most rows have near copies
(colours of one product, several photos of an item), these, which lie together and are found with hardly any effort.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from .config import IndexConfig
from .kinds import KINDS
from .latents import Float64, LatentArrays, Rows
from .metric import Metric
from .recall import Truth, nearest_in_blocks, truth_of, truth_without

# Work of the brute-force truth, in products: a catalogue of millions gets fewer queries rather than a slow night.
_TRUTH_PRODUCTS = 256_000_000_000
_LEFT_OUT = 10  # at most one of so many rows is left out
_LOOKED_AT = (64, 512)  # nearest rows, at least and at most, of
_LOOKING = 100  # rows, by which copies are counted; more of them where there is room for so many rows without copies
_GROWTH = 2.5
"""By how much squared distance grows at most where rows twice as many are as near, unless the nearer are copies: in a
space of d dimensions by 2^(2/d), so by 2 in a plane, by 1.2 in one of eight."""


class Questions:
    """Two disjoint seeded samples of rows, one to tune by (none for `flat`), one to measure by, with their truths."""

    def __init__(self, latents: LatentArrays, metric: Metric, config: IndexConfig, *, block: int | None = None) -> None:
        """latents: [n], of all rows; block: rows whose features are held at a time, None: all."""
        self._latents, self._metric, self._config, self._block = latents, metric, config, block
        affordable = _TRUTH_PRODUCTS // max(1, 2 * latents.mean.size)
        count = min(config.queries, max(100, affordable), (len(latents) + 1) // 2)
        drawn = np.random.default_rng(config.seed).permutation(len(latents))[: 2 * count]
        tuning = np.sort(drawn[: len(drawn) // 2]) if config.kind != "flat" else drawn[:0]
        self._rows = tuning, np.sort(drawn[len(drawn) // 2 :])
        self._truths: dict[tuple[int, bool], Truth] = {}

    def of(self, name: str) -> tuple[Truth, Truth]:
        """Return what a kind is tuned and measured by: its rows as they are, or as if the index did not hold them."""
        unseen = self._by_unseen(name)
        return self._truth(0, unseen=unseen), self._truth(1, unseen=unseen)

    def _by_unseen(self, name: str) -> bool:
        return bool(KINDS[name].tuned and (KINDS[name].by_unseen or self.copies))

    def told(self, name: str) -> dict[str, int | float | str]:
        """Return for the manifest how a kind's recall was measured."""
        if not KINDS[name].tuned:
            return {}
        said = "rows as if they were not in the index" if self._by_unseen(name) else "rows of the index but themselves"
        return {"recall_by": said, **({"copies_left_out": self.copies} if self.copies else {})}

    @cached_property
    def copies(self) -> int:
        """How many of its nearest rows are copies of a row, more or less, for the most part; 0 for most catalogues."""
        rows = self._rows[1][:: max(1, len(self._rows[1]) // _LOOKING)][:_LOOKING]
        least, most = _LOOKED_AT
        if len(self._latents) < _LEFT_OUT * least:
            return 0
        looked_at = max(least, min(most, len(self._latents) // (2 * _LEFT_OUT * _LOOKING)))
        return copies_among(_apart(self._metric, self._nearest(rows, looked_at)[1]))

    def _truth(self, place: int, *, unseen: bool) -> Truth:
        """Return the truth of the tuning (0) or measuring (1) sample."""
        if (place, unseen) not in self._truths:
            k, block = self._config.k, self._block
            if not unseen:
                made = truth_of(self._latents, self._metric, self._rows[place], k, block=block)
            else:
                samples, gone, both = self._left_out
                cut = len(samples[0])
                own = np.s_[:cut] if place == 0 else np.s_[cut:]
                near = both[0][own], both[1][own]
                made = truth_without(self._latents, self._metric, samples[place], gone, k, block=block, near=near)
            self._truths[place, unseen] = made
        return self._truths[place, unseen]

    @cached_property
    def _left_out(self) -> tuple[tuple[Rows, Rows], Rows, tuple[Rows, Float64]]:
        """Both samples, thinned to what may be left out, and what is: their rows and the copies of these.

        More of their nearest rows than the copies are kept: of what is not left out the k nearest are mostly there too.
        """
        most = max(1, len(self._latents) // (_LEFT_OUT * 2 * (1 + self.copies)))
        first, second = (rows[:: max(1, -(-len(rows) // most))] for rows in self._rows)
        gone = np.concatenate([first, second])
        near = self._nearest(gone, self.copies + 2 * self._config.k)
        gone = np.concatenate([gone, near[0][:, : self.copies].ravel()])
        return (first, second), np.unique(gone), near

    def _nearest(self, rows: Rows, k: int) -> tuple[Rows, Float64]:
        block = self._block or max(1, len(self._latents))
        queries = self._latents.take(rows)
        return nearest_in_blocks(self._metric, self._latents, queries, k, exclude=rows, block=block)


def _apart(metric: Metric, scores: Float64) -> Float64:
    """Return scores as what grows like a squared distance."""
    if metric.geometry == "l2":
        return scores * scores
    return -scores if metric.cancels else 1.0 - scores


def copies_among(apart: Float64) -> int:
    """Return how many of the nearest rows are copies, by their squared distances [q, w], ascending; 0 for none.

    Distance grows with the number of rows within it, by a power that is the space's. Where the median grows much more
    than that as rows become twice as many, the nearer ones are copies.
    """
    middle = np.median(apart, axis=0)
    middle = np.maximum(middle, 1e-6 * max(float(middle[-1]), 1e-24))  # below it is rounding
    first = np.arange(len(middle) // 2)
    growth = middle[2 * first + 1] / middle[first]
    place = int(np.argmax(growth))
    return 2 * (place + 1) if growth[place] > _GROWTH else 0

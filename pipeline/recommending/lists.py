"""The nearest items of every item, found once: what customers' answers are fused from, and the table item -> items."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..index.groups import GroupHits
from ..index.latents import Rows
from ..index.opened import OpenedRelease

_BLOCK = 256  # items that ask at once

ItemAnswers = Callable[[Rows, list[GroupHits]], None]  # items [b], and the answer to each


@dataclass(frozen=True, slots=True)
class NeighbourLists:
    """The nearest other items of the items that customers have had, in a file that is mapped, not held.

    near: int32 [asked, length], item numbers, nearest first, -1 behind the last; line: int32 [items], which line of
    `near` is an item's, -1 for none. whole: whether every line names all other items.
    """

    near: np.ndarray
    line: np.ndarray
    whole: bool

    def of(self, items: Rows, length: int | None = None) -> Rows:
        """Return int64 [n, length], the nearest items of these."""
        return np.asarray(self.near[self.line[items], :length], np.int64)


def find_lists(
    release: OpenedRelease, asked: np.ndarray, length: int, top: int, path: Path, answered: ItemAnswers
) -> NeighbourLists:
    """Ask the release for the nearest items of each of its items, block by block, itself left out.

    asked: bool [items], which need `length` neighbours and a line; the others are asked for `top`. path: of the file of
    the lines. answered: called with each block in order, with `top` neighbours an item.
    """
    count = len(release.items)
    length = max(1, min(length, count - 1))
    lines = np.flatnonzero(asked)
    line = np.full(count, -1, np.int32)
    line[lines] = np.arange(len(lines))
    near = np.memmap(path, np.int32, "w+", shape=(max(1, len(lines)), length))
    near[:] = -1
    for start in range(0, count, _BLOCK):
        items = np.arange(start, min(start + _BLOCK, count))
        answers: dict[int, GroupHits] = {}
        for wanted, depth in ((items[asked[items]], max(length, top)), (items[~asked[items]], top)):
            answers |= zip(wanted.tolist(), nearest_others(release, wanted, depth), strict=True)
        for item in items[asked[items]].tolist():
            found = answers[item].groups[:length]
            near[line[item], : len(found)] = found
        answered(items, [_first(answers[item], top) for item in items.tolist()])
    return NeighbourLists(near, line, whole=length >= count - 1)


def nearest_others(release: OpenedRelease, items: Rows, k: int) -> list[GroupHits]:
    """Return for each item the k nearest other ones, as `Release.similar` answers."""
    if not len(items):
        return []
    owners = np.repeat(np.arange(len(items)), release.items.groups.sizes[items])
    # One more than asked for: the item itself is among the answers, unless k + 1 others tie with it.
    answers = release.answers(release.vectors(items.tolist()), owners, k + 1, None)
    return [_without(answer, item, k) for item, answer in zip(items.tolist(), answers, strict=True)]


def _without(answer: GroupHits, item: int, k: int) -> GroupHits:
    other = answer.groups != item
    return GroupHits(groups=answer.groups[other][:k], scores=answer.scores[other][:k])


def _first(answer: GroupHits, k: int) -> GroupHits:
    return GroupHits(groups=answer.groups[:k], scores=answer.scores[:k])

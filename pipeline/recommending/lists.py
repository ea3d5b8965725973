"""The nearest items of every item, found once: what customers' answers are fused from, and the table item -> items."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..index.groups import GroupHits
from ..index.latents import Rows
from ..index.opened import OpenedRelease
from .answered import Answered, joined
from .spreading import Spread

_BLOCK = 256  # items that ask at once
_RANGE = 64 * _BLOCK  # items of a task


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


@dataclass(frozen=True, slots=True)
class Asking:
    """What ranges of items share. asked: bool [items], which need `length` neighbours; the others need `top`."""

    release: OpenedRelease
    asked: np.ndarray
    length: int
    top: int


@dataclass(frozen=True, slots=True)
class _Found:
    """Of a range of items: near int32 [asked in it, length], -1 behind the last; answers: `top` of each, all items'."""

    near: np.ndarray
    answers: Answered


def find_lists(asking: Asking, path: Path, answered: Callable[[Answered], None], spread: Spread) -> NeighbourLists:
    """Ask the release for the nearest items of each of its items, itself left out, range by range.

    path: of the file of the lines, one for each item that is asked. answered: called with the `top` neighbours of each
    range of items, in order. spread: says where the ranges are done.
    """
    count = len(asking.release.items)
    asking = replace(asking, length=max(1, min(asking.length, count - 1)))
    lines = np.flatnonzero(asking.asked)
    line = np.full(count, -1, np.int32)
    line[lines] = np.arange(len(lines))
    near = np.memmap(path, np.int32, "w+", shape=(max(1, len(lines)), asking.length))
    near[:] = -1
    ranges = [range(start, min(start + _RANGE, count)) for start in range(0, count, _RANGE)]
    for items, found in zip(ranges, spread(_found, asking, ranges, len(ranges)), strict=True):
        near[line[items.start : items.stop][asking.asked[items.start : items.stop]]] = found.near
        answered(found.answers)
    # A plain array over the mapping, which travels as a file; a memmap's own class would be packed.
    return NeighbourLists(np.asarray(near), line, whole=asking.length >= count - 1)


def _found(asking: Asking, items: range) -> _Found:
    near = np.full((int(asking.asked[items.start : items.stop].sum()), asking.length), -1, np.int32)
    parts, line = [], 0
    for start in range(items.start, items.stop, _BLOCK):
        block = np.arange(start, min(start + _BLOCK, items.stop))
        asked, answers = asking.asked[block], dict[int, GroupHits]()
        for wanted, depth in ((block[asked], max(asking.length, asking.top)), (block[~asked], asking.top)):
            answers |= zip(wanted.tolist(), nearest_others(asking.release, wanted, depth), strict=True)
        for item in block[asked].tolist():
            groups = answers[item].groups[: asking.length]
            near[line, : len(groups)] = groups
            line += 1
        for item in block.tolist():
            first = answers[item].groups[: asking.top]
            parts.append(Answered(np.full(len(first), item), first, answers[item].scores[: asking.top]))
    return _Found(near, joined(parts))


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

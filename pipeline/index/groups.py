"""Nearest groups of rows: an item is a group of photos, and a pair's score is its best pair of photos."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..ordering import positions_in_runs
from .filters import RowFilter
from .latents import Float64, LatentArrays, Rows
from .search import BoundedHits, SearchIndex

_WIDER = 4  # how much further a search looks when its first rows were not enough


@dataclass(frozen=True, slots=True)
class GroupHits:
    """The nearest groups of one query, nearest first: groups int64 [<= k], scores float64 [<= k]."""

    groups: Rows
    scores: Float64


class Grouping:
    """Which group each row of an index belongs to; made once, for many searches."""

    def __init__(self, numbers: Rows) -> None:
        """numbers: int64 [n], the group of every row; groups are numbered from 0 without gaps."""
        self.numbers = numbers
        self.sizes: Rows = np.bincount(numbers).astype(np.int64)

    @property
    def rows_a_group(self) -> float:
        """The mean number of rows in a group."""
        return len(self.numbers) / max(1, len(self.sizes))


def nearest_groups(
    index: SearchIndex,
    queries: LatentArrays,
    owners: Rows,
    k: int,
    groups: Grouping,
    *,
    allowed: RowFilter | None = None,
    exclude: Rows | None = None,
) -> list[GroupHits]:
    """Return the k nearest groups of every owner; ties go to the lower group number.

    owners: int64 [q], 0-based and without gaps; the queries of one owner are one question, answered by the best pair
    of any of its queries and any row of a group. exclude: group numbers that are never returned. Fewer than k groups
    come back only when no more are allowed. Rows are fetched in growing numbers until no row beyond them can change an
    answer, ties included.
    """
    count = int(owners.max()) + 1 if len(owners) else 0
    answers: list[GroupHits | None] = [None] * count
    left_out = np.empty(0, np.int64) if exclude is None else np.unique(exclude)
    unwanted = int(groups.sizes[left_out].sum())
    fetch = int(np.ceil((k + 1) * groups.rows_a_group)) + min(unwanted, 4 * k) + 4
    pending = np.arange(len(queries))
    while len(pending):
        hits = index.search_bounded(queries.take(pending), min(fetch, index.rows), allowed=allowed)
        mine = owners[pending]
        found = _grouped(hits, mine, k, groups, left_out)
        lengths = np.bincount(found.owners, minlength=count)
        ends = np.cumsum(lengths)
        worst, ceilings = np.full(count, -np.inf), np.full(count, -np.inf)
        full = np.flatnonzero((lengths == k) & (lengths > 0))
        worst[full] = found.scores[ends[full] - 1]
        np.maximum.at(ceilings, mine, hits.ceilings)
        decided = (ceilings < worst) | np.isneginf(ceilings)
        for owner in np.flatnonzero(decided & (np.bincount(mine, minlength=count) > 0)).tolist():
            own = np.s_[ends[owner] - lengths[owner] : ends[owner]]
            answers[owner] = GroupHits(groups=found.groups[own], scores=found.scores[own])
        pending = pending[~decided[mine]]
        fetch *= _WIDER
    return [answer for answer in answers if answer is not None]


@dataclass(frozen=True, slots=True)
class _Found:
    """The best groups of several owners, by owner and rank: owners, groups int64 [n], scores float64 [n]."""

    owners: Rows
    groups: Rows
    scores: Float64


def _grouped(hits: BoundedHits, owners: Rows, k: int, groups: Grouping, left_out: Rows) -> _Found:
    """Return the best k groups of each owner among the rows found by its queries. owners: int64 [q], of each query."""
    there = hits.ids >= 0
    numbers, scores = groups.numbers[hits.ids[there]], hits.scores[there]
    whose = np.repeat(owners, np.count_nonzero(there, axis=1))
    if len(left_out):
        kept = ~np.isin(numbers, left_out)
        numbers, scores, whose = numbers[kept], scores[kept], whose[kept]
    pairs = whose * len(groups.sizes) + numbers
    order = np.argsort(pairs, kind="stable")
    starts = np.flatnonzero(np.diff(pairs[order], prepend=-1))
    if len(starts):
        first = order[starts]
        # The best row of each group; stable, so that of equal scores the lower group stays in front.
        numbers, whose, scores = numbers[first], whose[first], np.maximum.reduceat(scores[order], starts)
        order = np.lexsort((-scores, whose))
        numbers, whose, scores = numbers[order], whose[order], scores[order]
    inside = positions_in_runs(np.diff(whose, prepend=-1) != 0) < k
    return _Found(whose[inside], numbers[inside], scores[inside])

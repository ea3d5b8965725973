"""Nearest groups of rows: an item is a group of photos, and a pair's score is its best pair of photos."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
    answers: list[GroupHits | None] = [None] * (int(owners.max()) + 1 if len(owners) else 0)
    left_out = np.empty(0, np.int64) if exclude is None else np.unique(exclude)
    unwanted = int(groups.sizes[left_out].sum())
    fetch = int(np.ceil((k + 1) * groups.rows_a_group)) + min(unwanted, 4 * k) + 4
    pending = np.arange(len(queries))
    while len(pending):
        hits = index.search_bounded(queries.take(pending), min(fetch, index.rows), allowed=allowed)
        undecided: list[Rows] = []
        for owner in np.unique(owners[pending]):
            mine = np.flatnonzero(owners[pending] == owner)
            answer = _grouped(hits, mine, k, groups.numbers, left_out)
            worst = answer.scores[-1] if len(answer.scores) == k else -np.inf
            if hits.ceilings[mine].max() < worst or np.isneginf(hits.ceilings[mine]).all():
                answers[int(owner)] = answer
            else:
                undecided.append(pending[mine])
        pending = np.concatenate(undecided) if undecided else np.empty(0, np.int64)
        fetch *= _WIDER
    return [answer for answer in answers if answer is not None]


def _grouped(hits: BoundedHits, mine: Rows, k: int, groups: Rows, left_out: Rows) -> GroupHits:
    """Return the best k groups among the rows found by the queries `mine` of one owner."""
    rows, scores = hits.ids[mine].ravel(), hits.scores[mine].ravel()
    found = rows >= 0
    numbers, scores = groups[rows[found]], scores[found]
    if len(left_out):
        kept = ~np.isin(numbers, left_out)
        numbers, scores = numbers[kept], scores[kept]
    order = np.lexsort((-scores, numbers))
    numbers, scores = numbers[order], scores[order]
    first = np.ones(len(numbers), np.bool_)
    first[1:] = numbers[1:] != numbers[:-1]  # the best row of each group
    numbers, scores = numbers[first], scores[first]
    order = np.lexsort((numbers, -scores))[:k]
    return GroupHits(groups=numbers[order], scores=scores[order])

"""One question to an open release: what asks, how many are wanted, and what may answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .asked import checked_k
from .groups import GroupHits
from .latents import LatentArrays, Rows
from .opened import OpenedRelease
from .thresholds import least_score


@dataclass(frozen=True, slots=True)
class Question:
    """The queries of one or several owners, who are answered apart; see `OpenedRelease.answers`."""

    queries: LatentArrays
    owners: Rows
    k: int
    where: Mapping[str, Any] | None = None
    exclude: Sequence[int] = ()

    @classmethod
    def alone(
        cls, queries: LatentArrays, k: int, where: Mapping[str, Any] | None = None, exclude: Sequence[int] = ()
    ) -> Question:
        """Return the question of one owner: all queries ask together."""
        return cls(queries, np.zeros(len(queries), np.int64), k, where, exclude)

    def answers(self, opened: OpenedRelease) -> list[GroupHits]:
        """Return one answer an owner. Raises ConfigError for a k that is none."""
        return opened.answers(self.queries, self.owners, checked_k(self.k), self.where, self.exclude)

    def exactly(self, opened: OpenedRelease, owner: int) -> GroupHits:
        """Return the answer to one owner by a search that scores every item that may answer."""
        queries = self.queries.take(self.owners == owner)
        alone = np.zeros(len(queries), np.int64)
        return opened.answers(queries, alone, self.k, self.where, self.exclude, exactly=True)[0]


def warm(opened: OpenedRelease) -> None:
    """Ask for the neighbours of the first item, as it is stored, so that no question is the first."""
    if len(opened.items):
        Question.alone(opened.vectors([0]), 10).answers(opened)


def least_of(opened: OpenedRelease, min_score: float | None, min_quantile: float | None) -> float | None:
    """Return the score below which a release answers nothing; see `least_score`."""
    return least_score(opened.manifest.index_parameters, opened.manifest.release_id, min_score, min_quantile)

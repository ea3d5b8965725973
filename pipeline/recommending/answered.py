"""Rows of a table of answers, on their way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..index.latents import Float64, Rows
from ..ordering import positions_in_runs


@dataclass(frozen=True, slots=True)
class Answered:
    """Rows of a table of answers: who [n] asked, what [n] was found, its score [n]; in order of who, best first."""

    who: Rows
    what: Rows
    scores: Float64

    @property
    def places(self) -> Rows:
        """Each row's place among those of the same asker, from 1."""
        starts = np.ones(len(self.who), np.bool_)
        starts[1:] = self.who[1:] != self.who[:-1]
        return positions_in_runs(starts) + 1


def joined(parts: list[Answered]) -> Answered:
    """Return answers one behind the other."""
    return Answered(
        who=np.concatenate([np.empty(0, np.int64), *(part.who for part in parts)]),
        what=np.concatenate([np.empty(0, np.int64), *(part.what for part in parts)]),
        scores=np.concatenate([np.empty(0), *(part.scores for part in parts)]),
    )


def near_best(who: Rows, scores: Float64, top: int) -> NDArray[np.bool_]:
    """Return which rows, in order of who, score as much as the asker's `top`-th: to order all takes longest."""
    ends = np.append(np.flatnonzero(who[1:] != who[:-1]) + 1, len(who)).tolist()
    kept, start = np.ones(len(who), np.bool_), 0
    for end in ends:
        if end - start > top:
            own = scores[start:end]
            kept[start:end] = own >= np.partition(own, end - start - top)[end - start - top]
        start = end
    return kept


def best(who: Rows, what: Rows, scores: Float64, top: int) -> Answered:
    """Return the `top` rows of every asker, best first, ties to the lower `what`."""
    order = np.lexsort((what, -scores, who))
    answers = Answered(who[order], what[order], scores[order])
    kept = answers.places <= top
    return Answered(answers.who[kept], answers.what[kept], answers.scores[kept])

"""Answers to several items at once: how their separate answers become one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .groups import GroupHits
from .latents import Float64, Rows

# rrf: ranks of the separate answers are summed (serves mixed baskets). min: the score to the nearest of the items;
# soft_min: the same, softly and by each item's own measure. barycentre: one query in the middle of the items; for items
# of one kind only.
FUSIONS = ("rrf", "min", "soft_min", "barycentre")
# Cormack, Clarke and Buettcher 2009 take 60, for several rankings of one question, which should agree. Items of a
# basket are several questions: with 60 an item that two lists name far below beats the first of one, so the denser of
# two tastes has nearly all places (measured: tests/benchmarks/bench_baskets.py).
RRF_K = 5
_LEAST_DEPTH = 100


def rank_depth(k: int) -> int:
    """Return how many items of each separate answer are fused into k."""
    return max(_LEAST_DEPTH, 10 * k)


def reciprocal_ranks(answers: Sequence[GroupHits], weights: Float64, k: int) -> GroupHits:
    """Return the k groups with the largest sum of weight / (5 + rank), ranks from 1; ties to the lower group.

    answers: one ranked list an item; a group that a list does not name gets nothing from it. weights: float64, one a
    list.
    """
    if not answers:
        return GroupHits(groups=np.empty(0, np.int64), scores=np.empty(0))
    named = np.concatenate([answer.groups for answer in answers])
    votes = np.concatenate(
        [
            weight / (RRF_K + np.arange(1, len(answer.groups) + 1))
            for answer, weight in zip(answers, weights, strict=True)
        ]
    )
    groups, places = np.unique(named, return_inverse=True)
    scores = np.bincount(places, weights=votes, minlength=len(groups)).astype(np.float64)
    order = np.lexsort((groups, -scores))[:k]
    return GroupHits(groups=groups[order], scores=scores[order])


def soft_minimum(answers: Sequence[GroupHits], named: Rows, scores: Float64, weights: Float64, k: int) -> GroupHits:
    """Return the k of the named groups with the largest log of the weighted mean of exp((score - first) / temperature).

    That is minus a soft minimum of distances to the items, each from that of its nearest neighbour on. The temperature
    is each item's own: from its nearest neighbour's score to its k-th's. So an item of a dense place and one of a
    sparse one count alike, in any metric's unit; 0 is next to all of them, -1 about the k-th of each. Ties to the lower
    group. answers: one ranked list an item; named: int64 [c], ascending; scores: float64 [items, c]; weights: one a
    list.
    """
    kept = [place for place, answer in enumerate(answers) if len(answer.scores)]
    if not kept:
        return GroupHits(groups=np.empty(0, np.int64), scores=np.empty(0))
    first = np.array([answers[place].scores[0] for place in kept])
    last = np.array([answers[place].scores[:k][-1] for place in kept])
    temperature = np.maximum(first - last, 1e-9 * np.maximum(1.0, np.abs(first)))
    terms = (scores[kept] - first[:, None]) / temperature[:, None] + np.log(weights[kept])[:, None]
    most = terms.max(axis=0)
    fused: Float64 = most + np.log(np.exp(terms - most).sum(axis=0)) - np.log(weights[kept].sum())
    order = np.lexsort((named, -fused))[:k]
    return GroupHits(groups=named[order], scores=fused[order])

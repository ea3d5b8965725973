"""What customers see beside an unchanged product: how much of it is another thing tonight, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...ordering import as_numpy
from ...release import read_table
from ..measured import Measured
from ..retrieval import interval
from .asked import ROLE
from .sampling import by_kind
from .tonight import Found, LeftOut, Tonight

Rows = NDArray[np.int64]
Float64 = NDArray[np.float64]

_SAME = 1e-4  # of a score: what rounding may move it
_EXAMPLES = 10


@dataclass(frozen=True, slots=True)
class ItemList:
    """An item's nearest others, nearest first. near int64 [k]: item numbers, -1 where none lives; scores [k]."""

    near: Rows
    scores: Float64


@dataclass(frozen=True, slots=True)
class Split:
    """Why neighbours before are none now, as counts. asked: neighbours before; unchanged: those that live as they did.

    displaced: a neighbour left or is another photo now, or a newcomer took the place. missed: the score is as it was
    and no newcomer explains it, so that one of two approximate searches did not find what it should have. moved: of the
    unchanged, whether lost or not, those whose score is another one.
    """

    asked: int
    lost: int
    displaced: int
    missed: int
    moved: int
    unchanged: int


def churn(tonight: Tonight) -> Found:
    """Return `neighbour_churn`, also by category, and of a parent of the same space its parts.

    Asked are the items that both nights asked and whose photos are the same; the parent's answers are those that it
    gave then. Examples: the items of which the most is another thing, or whose scores moved.
    """
    parent = tonight.night.parent
    if parent is None:
        return LeftOut("there is no parent")
    if ROLE not in parent.files:
        return LeftOut(f"the parent {parent.release_id} has no file {ROLE}: it was made before there were such")
    before = _lists(tonight, read_table(tonight.store, parent, ROLE))
    pairs = [(place, before[item]) for place, item in enumerate(tonight.asked.items.tolist()) if item in before]
    if not pairs:
        return LeftOut("no item that the parent was asked for lives unchanged")
    now = [ItemList(tonight.asked.near[place], tonight.asked.scores[place]) for place, _ in pairs]
    items = tonight.asked.items[[place for place, _ in pairs]]
    splits = [
        split(old, new, tonight.fresh, _scorer(tonight, item) if tonight.same_space else None)
        for item, (_, old), new in zip(items.tolist(), pairs, now, strict=True)
    ]
    return list(_measured(tonight, items, splits))


def split(before: ItemList, now: ItemList, fresh: NDArray[np.bool_], score: Callable[[int], float] | None) -> Split:
    """Return why an unchanged item's list is another one. fresh: bool [items], those that are not what they were.

    score: of this item and another tonight; None where scores are not comparable, and then nothing but `lost` is told.
    In one space the unchanged keep their order, so of those that are lost as many can be displaced as newcomers stand
    in the list now, and only such as are no nearer than its last.
    """
    here = now.near[now.near >= 0]
    lives = (before.near >= 0) & ~fresh[before.near]
    lost = ~np.isin(before.near, here)
    if score is None:
        return Split(len(lost), int(lost.sum()), 0, 0, 0, int(lives.sum()))
    told = dict(zip(here.tolist(), now.scores[: len(here)].tolist(), strict=True))
    scored = [told.get(other) for other in before.near.tolist()]
    known = np.array(
        [
            (score(other) if found is None else found) if alive else np.nan
            for other, found, alive in zip(before.near.tolist(), scored, lives.tolist(), strict=True)
        ]
    )
    slack = _SAME * np.maximum(1.0, np.abs(before.scores))
    moved = lives & (np.abs(known - before.scores) > slack)
    worst = now.scores[len(here) - 1] if len(here) == len(now.near) else -np.inf
    steady = lost & lives & ~moved
    nearer = steady & (known > worst + slack)
    behind = int((steady & ~nearer).sum())
    newcomers = int(fresh[here].sum())
    missed = int(nearer.sum()) + max(0, behind - newcomers)
    displaced = int((lost & ~lives).sum()) + min(behind, newcomers)
    return Split(len(lost), int(lost.sum()), displaced, missed, int(moved.sum()), int(lives.sum()))


def _lists(tonight: Tonight, table: pa.Table) -> dict[int, ItemList]:
    """Return the parent's lists of items that live unchanged, by item number."""
    owners, near = tonight.numbers_of(table["item_id"]), tonight.numbers_of(table["neighbour_id"])
    scores = as_numpy(table["score"])
    kept = np.flatnonzero((owners >= 0) & ~tonight.fresh[owners]) if len(owners) else np.empty(0, np.int64)
    order = kept[np.argsort(owners[kept], kind="stable")]  # the table is in the order of ranks
    items, starts = np.unique(owners[order], return_index=True)
    pieces = zip(items.tolist(), starts.tolist(), [*starts[1:].tolist(), len(order)], strict=False)
    return {item: ItemList(near[order[start:end]], scores[order[start:end]]) for item, start, end in pieces}


def _scorer(tonight: Tonight, item: int) -> Callable[[int], float]:
    index, groups = tonight.night.index, tonight.groups

    def score(other: int) -> float:
        sides = [
            index.latents(np.arange(tonight.firsts[one], tonight.firsts[one] + groups.sizes[one]))
            for one in (item, other)
        ]
        return float(index.metric.exact(*sides).max())

    return score


def _measured(tonight: Tonight, items: Rows, splits: list[Split]) -> Iterator[Measured]:
    rows, seed = tonight.firsts[items], tonight.config.seed
    asked = np.array([one.asked for one in splits], np.float64)
    lost = np.array([one.lost for one in splits]) / asked
    for category, chosen in [(None, np.arange(len(items))), *by_kind(tonight.labels, tonight.kinds, rows)]:
        worst = chosen[np.argsort(-lost[chosen], kind="stable")[:_EXAMPLES]]
        examples = tonight.names(rows[worst[lost[worst] > 0]])
        ends = interval(lost[chosen], seed=seed)
        yield Measured("neighbour_churn", float(lost[chosen].mean()), *ends, category, len(chosen), examples)
    if not tonight.same_space:
        return
    for name in ("displaced", "missed"):
        shares = np.array([getattr(one, name) for one in splits]) / asked
        yield _part(tonight, f"neighbour_{name}", shares, rows)
    unchanged = np.array([one.unchanged for one in splits])
    there = np.flatnonzero(unchanged)
    if len(there):
        shares = np.array([splits[place].moved for place in there.tolist()]) / unchanged[there]
        yield _part(tonight, "neighbour_moved", shares, rows[there])


def _part(tonight: Tonight, name: str, shares: Float64, rows: Rows) -> Measured:
    worst = np.argsort(-shares, kind="stable")[:_EXAMPLES]
    examples = tonight.names(rows[worst[shares[worst] > 0]])
    ends = interval(shares, seed=tonight.config.seed)
    return Measured(name, float(shares.mean()), *ends, n=len(rows), examples=examples)

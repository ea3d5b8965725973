"""Customer -> customers: the cosine of what they stand for, which is their items and those next to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..index.latents import Float64, Rows
from .answered import Answered, best, joined
from .baskets import Baskets, ranges_of
from .lists import NeighbourLists
from .spreading import Spread

REACH = 10  # neighbours of each item that a profile names too
_SHARD = 1 << 22  # entries of profiles that are held at a time: 50 MB, and as much again in another order


@dataclass(frozen=True, slots=True)
class Profiles:
    """Sparse vectors over the items, of length 1, one a customer, without any: an empty one.

    starts: int64 [c + 1]; items int32, values float64: those of customer i are [starts[i], starts[i + 1]), by item.
    """

    starts: Rows
    items: np.ndarray
    values: Float64

    def part(self, first: int, last: int) -> Profiles:
        """Return those of customers [first, last), held in memory."""
        entries = np.s_[self.starts[first] : self.starts[last]]
        starts = self.starts[first : last + 1] - self.starts[first]
        return Profiles(starts, np.array(self.items[entries]), np.array(self.values[entries]))


def profiles_of(lists: NeighbourLists, baskets: Baskets) -> Profiles:
    """Return what customers stand for: each item with its share, and its r-th neighbour with share / (1 + r), r <= 10.

    So two customers are alike who had different shoes of one look; and one with two tastes is like others with both,
    which the middle of their products cannot tell from one with a third taste in between.
    """
    items, shares = baskets.items, baskets.shares
    near = np.concatenate([items[:, None], lists.of(items, REACH)], axis=1)
    votes = shares[:, None] / np.arange(1, near.shape[1] + 1)
    keys = baskets.owners[:, None] * baskets.num_items + near
    named, places = np.unique(keys[near >= 0], return_inverse=True)
    sums = np.bincount(places, weights=votes[near >= 0], minlength=len(named)).astype(np.float64)
    owners = named // max(1, baskets.num_items)
    lengths = np.sqrt(np.bincount(owners, weights=sums * sums, minlength=len(baskets.customers)))
    starts = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=len(baskets.customers)))])
    numbers = (named % max(1, baskets.num_items)).astype(np.int32)
    return Profiles(starts.astype(np.int64), numbers, sums / lengths[owners])


class ProfileFile:
    """Profiles of all customers, on the disk: appended bucket by bucket, then mapped."""

    def __init__(self, folder: Path) -> None:
        self._items, self._values = folder / "profile-items.i32", folder / "profile-values.f64"
        self._counts: list[Rows] = []
        for path in (self._items, self._values):
            path.write_bytes(b"")

    def append(self, profiles: Profiles) -> None:
        """Add the next customers."""
        self._counts.append(np.diff(profiles.starts))
        for path, array in ((self._items, profiles.items), (self._values, profiles.values)):
            with path.open("ab") as file:
                file.write(array.tobytes())

    def mapped(self) -> Profiles:
        """Return all of them."""
        starts = np.concatenate([[0], np.cumsum(np.concatenate([np.empty(0, np.int64), *self._counts]))])
        if not starts[-1]:
            return Profiles(starts.astype(np.int64), np.empty(0, np.int32), np.empty(0))
        # As plain arrays over the mapping: those travel as a file, a memmap's own class would be packed.
        items = np.asarray(np.memmap(self._items, np.int32, "r"))
        return Profiles(starts.astype(np.int64), items, np.asarray(np.memmap(self._values, np.float64, "r")))


@dataclass(frozen=True, slots=True)
class _Among:
    """What shards of customers share. ranges: the shards."""

    profiles: Profiles
    ranges: list[tuple[int, int]]
    num_items: int
    top: int


def fellows(profiles: Profiles, num_items: int, top: int, spread: Spread, *, shard: int = _SHARD) -> Iterator[Answered]:
    """Yield for every customer the `top` others with the largest cosine above 0, shard by shard in order.

    Ties go to the lower customer. Every pair of customers that share an entry is looked at, exactly; two shards are
    held at a time. spread: says where the shards are done.
    """
    ranges = ranges_of(profiles.starts, shard)
    return spread(_fellows_of, _Among(profiles, ranges, num_items, top), ranges, len(ranges))


def _fellows_of(among: _Among, asked: tuple[int, int]) -> Answered:
    first, last = asked
    asking = among.profiles.part(first, last)
    found = Answered(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    for low, high in among.ranges:
        postings = _Postings(among.profiles.part(low, high), among.num_items)
        near = joined([postings.nearest(asking, customer, first, low, among.top) for customer in range(last - first)])
        both = joined([found, near])
        found = best(both.who, both.what, both.scores, among.top)
    return found


class _Postings:
    """Profiles by item: which customers name it."""

    def __init__(self, profiles: Profiles, num_items: int) -> None:
        self._count = len(profiles.starts) - 1
        owners = np.repeat(np.arange(self._count), np.diff(profiles.starts))
        order = np.argsort(profiles.items, kind="stable")
        self._owners, self._values = owners[order], profiles.values[order]
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(profiles.items, minlength=num_items))])

    def nearest(self, asking: Profiles, customer: int, first: int, low: int, top: int) -> Answered:
        """Return the `top` of these nearest to one customer, itself left out; numbered from `first` and `low`."""
        own = np.s_[asking.starts[customer] : asking.starts[customer + 1]]
        items, values = asking.items[own], asking.values[own]
        counts = self._starts[items + 1] - self._starts[items]
        ends = np.cumsum(counts)
        places = np.arange(ends[-1] if len(ends) else 0) + np.repeat(self._starts[items] - (ends - counts), counts)
        weights = self._values[places] * np.repeat(values, counts)
        cosines = np.bincount(self._owners[places], weights=weights, minlength=self._count).astype(np.float64)
        itself = customer + first - low
        if 0 <= itself < self._count:
            cosines[itself] = 0.0
        near = np.flatnonzero(cosines > 0)
        if len(near) > top:
            least = np.partition(cosines[near], len(near) - top)[len(near) - top]
            near = near[cosines[near] >= least]
        order = np.lexsort((near, -cosines[near]))[:top]
        near = near[order].astype(np.int64)
        return Answered(np.full(len(near), customer + first), near + low, np.minimum(cosines[near], 1.0))

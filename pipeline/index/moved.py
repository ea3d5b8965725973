"""How far the neighbours of the same items have moved from one release to another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from ..release import Manifest
from ..storage import Store
from ..storage.cache import FileCache
from .opened import OpenedRelease


@dataclass(frozen=True, slots=True)
class MovedNeighbours:
    """asked: items of both releases, drawn; k: neighbours of each. moved: the share of the first release's neighbours
    that are none of the second's; nearest_moved: the share of items whose first neighbour is another; untouched: the
    share of items with the same neighbours in the same order."""

    asked: int
    k: int
    moved: float
    nearest_moved: float
    untouched: float

    def text(self) -> str:
        """Return the shares as one line for people."""
        return (
            f"neighbours of {self.asked:,} items, {self.k} each: {self.moved:.1%} are others now; the nearest "
            f"is another for {self.nearest_moved:.1%} of the items; nothing moved for {self.untouched:.1%}"
        )


def moved_neighbours(
    store: Store, cache: FileCache, before: Manifest, after: Manifest, *, sample: int = 200, k: int = 10, seed: int = 0
) -> MovedNeighbours | None:
    """Ask both releases for the neighbours of a seeded sample of their common items; None where they have none.

    The models may differ: each release is asked by item, in its own space. Errors as `OpenedRelease`.
    """
    if sample < 1 or k < 1:
        raise ConfigError(f"sample is {sample} and k is {k}; both must be at least 1")
    old, new = (OpenedRelease(store, cache, manifest, None) for manifest in (before, after))
    common = np.intersect1d(old.items.item_ids(), new.items.item_ids(), assume_unique=True)
    if not len(common):
        return None
    asked = np.sort(np.random.default_rng(seed).choice(common, min(sample, len(common)), replace=False)).tolist()
    lost, wanted, nearest, untouched = 0, 0, 0, 0
    for item_id in asked:
        left, right = _neighbours(old, item_id, k), _neighbours(new, item_id, k)
        lost, wanted = lost + len(set(left) - set(right)), wanted + len(left)
        nearest += left[:1] != right[:1]
        untouched += left == right
    count = len(asked)
    return MovedNeighbours(count, k, lost / max(1, wanted), nearest / count, untouched / count)


def _neighbours(opened: OpenedRelease, item_id: str, k: int) -> list[str]:
    item = opened.find(item_id)
    owners = np.zeros(len(opened.items.rows_of(item)), np.int64)
    (answer,) = opened.answers(opened.vectors([item]), owners, k, None, [item])
    return [found for found, _, _ in opened.named(answer)]

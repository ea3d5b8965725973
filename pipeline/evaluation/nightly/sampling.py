"""Which items are asked: those with the lowest seeded hashes of their ids, so the same ones from night to night."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

KINDS = 20  # the most frequent categories, which are measured apart
LEAST = 10  # asked items of a category that say something of it


def hashes(texts: Iterable[str], seed: int) -> NDArray[np.uint64]:
    """Return a seeded hash of each text, uint64 [n]; it depends on nothing but the text and the seed."""
    key = seed.to_bytes(16, "little")
    found = (blake2b(text.encode(), digest_size=8, key=key).digest() for text in texts)
    return np.frombuffer(b"".join(found), ">u8").astype(np.uint64)


def topped_up(chosen: Rows, order: Rows, labels: Rows | None, *, each: int) -> Rows:
    """Return those chosen and behind them, for the KINDS most frequent labels, the first of `order` up to `each`.

    chosen: the first of `order`, which are rows; labels: int64 [rows], -1 for none; None: nothing is added.
    """
    if labels is None:
        return chosen
    kinds, counts = np.unique(labels[order], return_counts=True)
    frequent = kinds[np.lexsort((kinds, -counts))]
    added = []
    for kind in frequent[frequent >= 0][:KINDS].tolist():
        own = order[labels[order] == kind][:each]
        added.append(own[~np.isin(own, chosen)])
    return np.concatenate([chosen, *added])


def by_kind(labels: Rows | None, names: list[str], asked: Rows) -> list[tuple[str, Rows]]:
    """Return (category, positions among those asked) of the KINDS most frequent ones that have LEAST or more.

    labels: int64 [rows], -1 for none, numbers of names; asked: rows [q].
    """
    if labels is None:
        return []
    numbers, counts = np.unique(labels[asked], return_counts=True)
    kept = (numbers >= 0) & (counts >= LEAST)
    numbers, counts = numbers[kept], counts[kept]
    frequent = np.sort(numbers[np.lexsort((numbers, -counts))][:KINDS])
    return [(names[kind], np.flatnonzero(labels[asked] == kind)) for kind in frequent.tolist()]

"""The rows nearest to many queries by matrix products, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .latents import Float32, Rows

Values = NDArray[np.floating[Any]]

BLOCK = 1 << 15  # rows multiplied at a time
TOGETHER = 256  # queries multiplied at a time: a block's values of them are 32 MiB of float32
_PARTED = 16  # queries whose largest values are picked at a time
_FEWEST = 1 << 10  # rows of which the first are picked: to pick them of a block takes as long as to scan it
_MERGED = 4  # rows a query, in parts of those kept, that are merged into them one by one, not picked anew


def in_blocks(items: Float32, rows: Rows | None = None) -> Iterator[Float32]:
    """Yield the features [n, f], of these rows alone where they are told, BLOCK at a time."""
    total = len(items) if rows is None else len(rows)
    for start in range(0, total, BLOCK):
        block = np.s_[start : min(start + BLOCK, total)]
        yield items[block] if rows is None else items[rows[block]]


def largest_products(
    blocks: Iterator[Float32], queries: Values, count: int, *, l2: bool, exclude: Rows | None = None
) -> tuple[Rows, Values]:
    """Return the `count` places [q, count] (or all) with the largest products, and these, in no order.

    l2: not products, but |query|^2 less the squared distances. exclude: one place a query that is not returned, or
    None. Computed in the queries' own type; which of two places with values that rounding parts is returned is chance.
    """
    kind = queries.dtype
    best, places = np.empty((len(queries), 0), kind), np.empty((len(queries), 0), np.int64)
    start = 0
    for held in blocks:
        block = held.astype(kind, copy=False)
        near: Values = queries @ block.T
        if l2:
            near *= 2.0
            near -= np.einsum("ij,ij->i", block, block, dtype=np.float64).astype(kind)
        if exclude is not None:
            inside = np.flatnonzero((exclude >= start) & (exclude < start + len(block)))
            near[inside, exclude[inside] - start] = -np.inf
        done = 0
        while done < len(block):  # of as many rows as were looked at so far about `count` are nearer than the last kept
            more = near[:, done : done + max(_FEWEST, start + done)]
            best, places = _with_more(best, places, more, start + done, count)
            done += more.shape[1]
            del more
        start += len(block)
        del near, block, held  # else they would be there beside the next ones
    return places, best


def _with_more(best: Values, places: Rows, near: Values, start: int, count: int) -> tuple[Values, Rows]:
    """Return the `count` best of what there is and of the rows from `start` on, whose values are `near` [q, n]."""
    if best.shape[1] == count:
        # Most blocks have few rows that are nearer than the last one kept: these alone are looked at.
        owner, place = np.divmod(np.flatnonzero(near > best.min(axis=1)[:, None]), near.shape[1])
        if len(owner) <= _MERGED * best.size:
            owners = np.concatenate([np.repeat(np.arange(len(best)), count), owner])
            values = np.concatenate([best.ravel(), near[owner, place]])
            numbers = np.concatenate([places.ravel(), place + start])
            order = np.lexsort((-values, owners))
            first = np.searchsorted(owners[order], np.arange(len(best)))
            kept = order[first[:, None] + np.arange(count)]
            return values[kept], numbers[kept]
    picked = _largest(near, count)
    best = np.concatenate([best, np.take_along_axis(near, picked, axis=1)], axis=1)
    places = np.concatenate([places, picked + start], axis=1)
    kept = _largest(best, count)
    return np.take_along_axis(best, kept, axis=1), np.take_along_axis(places, kept, axis=1)


def _largest(values: Values, count: int) -> Rows:
    """Return the positions of the `count` largest values of every row (all, where there are no more)."""
    width = values.shape[1]
    if count >= width:
        return np.broadcast_to(np.arange(width), values.shape)
    found = np.empty((len(values), count), np.int64)
    for start in range(0, len(values), _PARTED):  # each row alone, so that numbers of all values are never held
        block = values[start : start + _PARTED]
        found[start : start + _PARTED] = np.argpartition(block, width - count, axis=1)[:, width - count :]
    return found

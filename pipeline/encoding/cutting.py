"""Where a list of photos is cut into shards: into equal ones, or with ever smaller ones at the end."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..ordering import Positions

_TAIL_SHARDS = 2  # for each actor so many of the last shards are cut smaller: one that is half as fast still finds work
_HALVINGS = 3
_LEAST_ROWS = 250  # a piece is not made smaller: a forward pass takes 256 photos, and each part costs two requests


def cut(rows: int, limit: int, actors: int = 0) -> Positions:
    """Return the shard of each of `rows` photos, from 0 and ascending; no shard has more than `limit`.

    actors: how many the last shards are cut smaller for, by photos and config and never by what a cluster has, so
    that the same photos are always cut alike; 0: all shards are equal. Of the last two shards of each actor, but at
    most half of all, the first half of the photos is cut into halves, the next quarter into quarters, the rest into
    eighths of a shard: who is slow then holds a small one when the others have nothing left to do.
    """
    count = -(-rows // limit)
    whole = count - min(_TAIL_SHARDS * actors, count // 2)
    even = np.arange(rows, dtype=np.int64) * count // max(rows, 1)
    if whole == count or rows // count < 2 * _LEAST_ROWS:
        return even
    begin = int(np.searchsorted(even, whole))
    return np.concatenate([even[:begin], whole + _falling(rows - begin, rows / count)])


def _falling(rows: int, shard: float) -> npt.NDArray[np.int64]:
    """Return the piece of each of the last rows: halves of a shard, then quarters, then eighths."""
    numbers, left, first = [], rows, 0
    for halving in range(1, _HALVINGS + 1):
        size = shard / 2**halving
        last = halving == _HALVINGS or size / 2 < _LEAST_ROWS
        taken = left if last else left // 2
        pieces = max(1, -(-taken // max(1, int(size))))
        numbers.append(first + np.arange(taken, dtype=np.int64) * pieces // max(taken, 1))
        left, first = left - taken, first + pieces
        if last:
            break
    return np.concatenate(numbers)

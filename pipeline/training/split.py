"""Which photos are held out of training, and which categories a conditional model is told of."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

MAX_LABELS = 1024


def held_out(values: pa.ChunkedArray | Sequence[str], share: float, seed: int) -> NDArray[np.bool_]:
    """Return which rows are for validation only, bool [n]: those whose value hashes, with the seed, below `share`.

    values: text, item_id or that of the column `train.split_by`; none may be missing. A value decides alone: its rows
    never lie on both sides, a later catalogue leaves it where it is, and a larger share only adds to what is held out.
    """
    column = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values], pa.string())
    limit = round(share * 2**64)
    start = blake2b(seed.to_bytes(8, "big"), digest_size=8)

    def is_held_out(value: str) -> bool:
        hashed = start.copy()
        hashed.update(value.encode())
        return int.from_bytes(hashed.digest(), "big") < limit

    # Chunk by chunk: a large catalogue's values need not be in memory twice.
    masks = [np.zeros(0, np.bool_)]
    for chunk in column.chunks:
        words = chunk.dictionary_encode()
        sides = np.array([is_held_out(value) for value in words.dictionary.to_pylist()], np.bool_)
        masks.append(sides[words.indices.to_numpy(zero_copy_only=False)])
    return np.concatenate(masks)


def choose_labels(names: Sequence[str], counts: NDArray[np.int64], limit: int = MAX_LABELS) -> tuple[str, ...]:
    """Return the `limit` most frequent of the names that occur at all, sorted; of equals those first by name.

    counts: how often each name occurs, int [n].
    """
    there = sorted((-int(count), name) for name, count in zip(names, counts, strict=True) if count)
    return tuple(sorted(name for _, name in there[:limit]))

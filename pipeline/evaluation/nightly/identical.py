"""Pictures of the same bytes at several items: "image not available" is a product to the model as any other."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..measured import Measured
from .intervals import wilson
from .tonight import Found, LeftOut, Tonight

_GROUPS = 5


def identical(tonight: Tonight) -> Found:
    """Return `identical_share`, `largest_identical_group` and `largest_identical_share` over all photos.

    All items are looked at; the intervals are for a catalogue of which these were drawn, so that of thirty items two
    alike are no scandal. Examples: an item of each of the largest groups, the largest first; items of the largest.
    """
    items = len(tonight.firsts)
    if not items:
        return LeftOut("there are no items")
    pictures = numbered(tonight.night.items["digest"])
    pairs = np.unique(np.stack([pictures, tonight.groups.numbers]), axis=1)
    sharing = np.bincount(pairs[0], minlength=1)  # items by picture
    shared = sharing[pairs[0]] > 1
    largest = np.lexsort((np.arange(len(sharing)), -sharing))[:_GROUPS]
    largest = largest[sharing[largest] > 1]
    first = [int(pairs[1][np.searchsorted(pairs[0], picture)]) for picture in largest.tolist()]
    group = pairs[1][pairs[0] == largest[0]] if len(largest) else np.empty(0, np.int64)
    sharers, size = len(np.unique(pairs[1][shared])), len(group)
    members = tonight.names(tonight.firsts[group[:10]])
    named = tonight.names(tonight.firsts[np.array(first, np.int64)])
    return [
        Measured("identical_share", sharers / items, *wilson(sharers, items), n=items, examples=named),
        Measured("largest_identical_group", float(size), n=items, examples=members),
        Measured("largest_identical_share", size / items, *wilson(size, items), n=items, examples=members),
    ]


def numbered(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return a number for each row, the same for the same text, int64 [n] from 0 without gaps."""
    encoded = column.dictionary_encode().unify_dictionaries()
    chunks = [chunk.indices.to_numpy(zero_copy_only=False) for chunk in encoded.chunks]
    return np.concatenate([np.empty(0, np.int64), *chunks]).astype(np.int64)

"""Pictures of the same bytes at several items: "image not available" is a product to the model as any other."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..measured import Measured
from .intervals import wilson
from .tonight import Found, LeftOut, Tonight

_GROUPS = 5
_ODD = np.uint64(0x9E3779B97F4A7C15)
_HEX = 64  # letters of a digest
_DIGITS = np.full(256, 255, np.uint8)  # of lower-case letters, as digests are written
_DIGITS[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


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
    """Return a number for each row, the same for the same text, int64 [n] by first place from 0 without gaps.

    Of digests 128 bits are compared that all their letters go into, in a tenth of the memory that whole texts take.
    """
    folded = [_folded(chunk) for chunk in column.chunks]
    if any(chunk is None for chunk in folded):
        encoded = column.dictionary_encode().unify_dictionaries()
        chunks = [chunk.indices.to_numpy(zero_copy_only=False) for chunk in encoded.chunks]
        return np.concatenate([np.empty(0, np.int64), *chunks]).astype(np.int64)
    keys = np.concatenate([np.empty((0, 2), np.uint64), *(chunk for chunk in folded if chunk is not None)])
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: of equal ones the first place comes first
    starts = np.ones(len(keys), np.bool_)
    starts[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    group = np.cumsum(starts) - 1
    rank = np.empty(int(starts.sum()), np.int64)
    rank[np.argsort(order[starts], kind="stable")] = np.arange(len(rank))
    numbers = np.empty(len(keys), np.int64)
    numbers[order] = rank[group]
    return numbers


def _folded(texts: pa.Array) -> NDArray[np.uint64] | None:
    """Return 128 bits of each hexadecimal digest, uint64 [n, 2]; None where some text is none."""
    wide = texts.cast(pa.large_string())
    offsets = np.frombuffer(wide.buffers()[1], np.int64)[wide.offset : wide.offset + len(wide) + 1]
    if wide.null_count or not (np.diff(offsets) == _HEX).all():
        return None
    if not len(wide):
        return np.empty((0, 2), np.uint64)
    letters = np.frombuffer(wide.buffers()[2], np.uint8)[offsets[0] : offsets[-1]].reshape(-1, _HEX)
    digits = _DIGITS[letters]
    if digits.max() > 15:
        return None
    octets = (digits[:, ::2] << 4) | digits[:, 1::2]
    words = np.ascontiguousarray(octets).view(">u8").astype(np.uint64)
    return words[:, :2] * _ODD + words[:, 2:]

"""The codes of a night's item vectors, by Ray tasks where the vectors are in files."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..index.latents import Float32, Rows
from ..index.segments import TASK_BYTES
from ..mapping import Scratch, mapped_in_turn
from ..storage import Store
from .code_map import Renumbered
from .quantizer import Codebooks, Codes, encode, encoded, remainders
from .stored_vectors import StoredVectors, Vectors

_ROWS = 1 << 17  # vectors that are float64 at a time


@dataclass(frozen=True, slots=True)
class Coded:
    """Codes uint16 [n, levels], and the lengths of what they leave of the vectors, float32 [n]; tied: as `Encoded`."""

    codes: Codes
    norms: Float32
    tied: Rows


@dataclass(frozen=True, slots=True)
class _Asked:
    vectors: Vectors
    books: Codebooks


def coded(store: Store, run: str, vectors: Vectors, books: Codebooks) -> Coded:
    """Return the codes of vectors [n, d], as `encode` has them, a row of its vector alone.

    Vectors in files are read by Ray tasks, a file each, and never by this process. Raises what `encode` does.
    """
    ranges, scratch = [range(start, min(start + _ROWS, len(vectors))) for start in range(0, len(vectors), _ROWS)], None
    if isinstance(vectors, StoredVectors):
        ends = np.cumsum([0, *(file.rows or 0 for file in vectors.files)]).tolist()
        ranges = [range(start, stop) for start, stop in pairwise(ends)]
        scratch = Scratch.of_run(store, run, len(ranges))
    codes = np.empty((len(vectors), len(books.levels)), np.uint16)
    norms, tied = np.empty(len(vectors), np.float32), [np.empty(0, np.int64)]
    made = mapped_in_turn(
        _coded_range,
        _Asked(vectors, books),
        ranges,
        scratch=scratch,
        task_bytes=TASK_BYTES + 2 * 8 * _ROWS * books.dim + 8 * max(map(len, ranges), default=0),
        while_doing="giving items their semantic IDs",
    )
    for rows, one in zip(ranges, made, strict=True):
        codes[rows.start : rows.stop], norms[rows.start : rows.stop] = one.codes, one.norms
        tied.append(one.tied + rows.start)
    return Coded(codes, norms, np.concatenate(tied))


def recoded(vectors: Vectors, found: Coded, renumbered: Renumbered) -> Coded:
    """Return the codes that vectors have once codes are renumbered, to the bit those of `coded`.

    Read again are only the vectors to which two centroids were equally near: the lower of the new numbers is theirs.
    """
    codes = found.codes.copy()
    for level, numbers in enumerate(renumbered.numbers):
        codes[:, level] = numbers[found.codes[:, level]]
    norms = found.norms.copy()
    for start in range(0, len(found.tied), _ROWS):
        rows = found.tied[start : start + _ROWS]
        again = vectors[rows]
        codes[rows] = encode(again, renumbered.books)
        norms[rows] = residual_norms(again, codes[rows], renumbered.books)
    return Coded(codes, norms, found.tied)


def _coded_range(asked: _Asked, rows: range) -> Coded:
    codes = np.empty((len(rows), len(asked.books.levels)), np.uint16)
    norms, tied = np.empty(len(rows), np.float32), [np.empty(0, np.int64)]
    for start in range(0, len(rows), _ROWS):
        block = np.s_[start : start + _ROWS]
        vectors = asked.vectors[rows.start + start : min(rows.start + start + _ROWS, rows.stop)]
        found = encoded(vectors, asked.books)
        codes[block] = found.codes
        norms[block] = residual_norms(vectors, found.codes, asked.books)
        tied.append(found.tied + start)
    return Coded(codes, norms, np.concatenate(tied))


def residual_norms(vectors: Float32, codes: Codes, books: Codebooks) -> Float32:
    """Return how much codes leave of vectors [n, d], float32 [n]."""
    left = remainders(vectors, codes, books)
    norms: Float32 = np.sqrt(np.sum(left * left, axis=1)).astype(np.float32)
    return norms


def norms_of(vectors: Vectors, found: Coded, given: Codes, books: Codebooks) -> Float32:
    """Return what codes leave where some rows were given others than the nearest, float32 [n]."""
    others = np.flatnonzero((found.codes != given).any(axis=1)) if given is not found.codes else ()
    norms = found.norms.copy() if len(others) else found.norms
    for start in range(0, len(others), _ROWS):
        rows = others[start : start + _ROWS]
        norms[rows] = residual_norms(vectors[rows], given[rows], books)
    return norms

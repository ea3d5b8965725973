"""Codebooks fitted level by level on what the levels before left over (residual k-means), and encoding by these and
by trained ones.

Encoding is exact: the nearest code by float64 sums of squares, the lowest number on ties, whatever rows are encoded
together. Matrix products, whose last digits depend on the shapes, only say which codes can be the nearest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, InputError
from ..index.latents import Float32, Float64, Rows
from .encoder import Encoder
from .stored_vectors import Vectors

Codes = NDArray[np.uint16]

SAMPLE_A_CODE = 256  # vectors that k-means looks at, times the largest level
STEPS = 20  # of Lloyd's algorithm, at most
_PAIRS = 1 << 23  # float64 distances held at a time


@dataclass(frozen=True, slots=True)
class Codebooks:
    """The centroids of every level, float32 [codes of the level, d]; encoder: what turns a vector into a point of d
    numbers where codebooks were trained with one. None: a vector is its own point."""

    levels: tuple[Float32, ...]
    encoder: Encoder | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of codes of every level."""
        return tuple(len(level) for level in self.levels)

    @property
    def dim(self) -> int:
        """The length of a vector."""
        return int(self.levels[0].shape[1]) if self.encoder is None else self.encoder.dim

    def points(self, vectors: Float32) -> Float64:
        """Return what the codes of vectors [n, dim] add up to nearly, float64 [n, d]; a row of its vector alone."""
        return vectors.astype(np.float64) if self.encoder is None else self.encoder.points(vectors)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Codes uint16 [n, levels]. tied: the rows to which two centroids of a level were equally near, so that their
    numbers decided."""

    codes: Codes
    tied: Rows


def fit_codebooks(vectors: Vectors, sizes: Sequence[int], *, seed: int) -> Codebooks:
    """Return codebooks of these sizes, fitted on a seeded sample of the vectors [n, d].

    Raises ConfigError when a level asks for more codes than there are different vectors to make them of.
    """
    generator = np.random.default_rng(seed)
    residuals = some_vectors(vectors, sizes, generator).astype(np.float64)
    levels: list[Float32] = []
    for number, size in enumerate(sizes):
        levels.append(k_means(residuals.astype(np.float32), size, generator, level=number + 1))
        residuals -= levels[-1][nearest_codes(residuals, levels[-1]).codes]
    return Codebooks(tuple(levels))


def some_vectors(vectors: Vectors, sizes: Sequence[int], generator: np.random.Generator) -> Float32:
    """Return the sample of vectors [n, d] that codebooks of these sizes are made of, in the order of the vectors."""
    count = min(len(vectors), SAMPLE_A_CODE * max(sizes))
    return vectors[np.sort(generator.choice(len(vectors), count, replace=False))]


def encode(vectors: Float32, books: Codebooks) -> Codes:
    """Return the codes of vectors [n, d], uint16 [n, levels].

    Raises InputError for another dimension or values that are not finite.
    """
    return encoded(vectors, books).codes


def encoded(vectors: Float32, books: Codebooks) -> Encoded:
    """Return the same codes, and of which rows others would be right if the centroids had other numbers."""
    if vectors.ndim != 2 or vectors.shape[1] != books.dim:
        raise InputError(f"vectors of shape {list(vectors.shape)}; the codebooks are of vectors [n, {books.dim}]")
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise InputError(f"vector {row} holds values that are not finite; no code is nearest to it")
    codes = np.empty((len(vectors), len(books.levels)), np.uint16)
    tied: set[int] = set()
    step = max(1, _PAIRS // max(books.sizes))
    for start in range(0, len(vectors), step):
        block = np.s_[start : start + step]
        residuals = books.points(vectors[block])
        for number, level in enumerate(books.levels):
            nearest = nearest_codes(residuals, level)
            codes[block, number] = nearest.codes
            tied.update(start + row for row in nearest.tied)
            residuals -= level[nearest.codes]
    return Encoded(codes, np.array(sorted(tied), np.int64))


@dataclass(frozen=True, slots=True)
class Nearest:
    """The nearest centroid of every row, int64 [n]; tied: the rows of which another is as near."""

    codes: Rows
    tied: list[int]


def nearest_codes(residuals: Float64, level: Float32) -> Nearest:
    """Return the nearest centroid of every row: by float64 sums of squares, the lowest number on ties."""
    found = np.empty(len(residuals), np.int64)
    tied: list[int] = []
    wide = level.astype(np.float64)
    lengths = np.sum(wide * wide, axis=1)
    # How far the expanded form below, and the sums of squares, can each be off: twice over.
    longest = np.sqrt(lengths.max())
    unit = 16.0 * (level.shape[1] + 8) * np.finfo(np.float64).eps
    step = max(1, _PAIRS // len(level))
    for start in range(0, len(residuals), step):
        block = residuals[start : start + step]
        apart = block @ wide.T
        np.subtract(lengths, np.multiply(apart, 2.0, out=apart), out=apart)
        slack = unit * (np.sqrt(np.sum(block * block, axis=1)) + longest) ** 2
        best = apart.argmin(axis=1)
        limit = apart[np.arange(len(block)), best] + slack
        # The nearest beyond doubt is alone below the limit; the others are measured one by one.
        close = apart <= limit[:, None]
        doubtful = np.flatnonzero(np.count_nonzero(close, axis=1) > 1)
        for row in doubtful.tolist():
            candidates = np.flatnonzero(close[row])
            distances = squared_distances(block[row], wide[candidates])
            best[row] = candidates[distances.argmin()]
            if np.count_nonzero(distances == distances.min()) > 1:
                tied.append(start + row)
        found[start : start + step] = best
        del apart, close  # else they would be there beside the next ones
    return Nearest(found, tied)


def remainders(vectors: Float32, codes: Codes, books: Codebooks) -> Float64:
    """Return what is left of the points of vectors after the centroids of their codes, of as many levels as given."""
    left = books.points(vectors)
    for number in range(codes.shape[1]):
        left -= books.levels[number][codes[:, number]]
    return left


def squared_distances(vector: Float64, centroids: Float64) -> Float64:
    """Return the squared distances of one vector [d] to centroids [k, d], by sums that no shape changes."""
    apart = centroids - vector
    distances: Float64 = np.sum(np.square(apart, out=apart), axis=1)
    return distances


def k_means(points: Float32, size: int, generator: np.random.Generator, *, level: int) -> Float32:
    """Return centroids float32 [size, d]: Lloyd's algorithm from different points drawn at random."""
    centroids = _different_points(points, size, generator, level)
    before: Rows | None = None
    for _ in range(STEPS):
        nearest, distances = _assign(points, centroids)
        if before is not None and np.array_equal(nearest, before):
            break
        before = nearest
        order = np.argsort(nearest, kind="stable")
        counts = np.bincount(nearest, minlength=size)
        used = np.flatnonzero(counts)
        starts = np.concatenate([[0], np.cumsum(counts[used])[:-1]])
        sums = np.add.reduceat(points[order].astype(np.float64), starts, axis=0)
        centroids[used] = (sums / counts[used][:, None]).astype(np.float32)
        empty = np.flatnonzero(counts == 0)
        if len(empty):  # a centroid that nothing is near moves to what is farthest from its own
            centroids[empty] = points[np.argsort(-distances, kind="stable")[: len(empty)]]
    return centroids


def _assign(points: Float32, centroids: Float32) -> tuple[Rows, Float32]:
    """Return the nearest centroid of every point and its squared distance, in float32: fitting needs no more."""
    nearest = np.empty(len(points), np.int64)
    distances = np.empty(len(points), np.float32)
    lengths = np.sum(centroids * centroids, axis=1)
    step = max(1, _PAIRS // len(centroids))
    for start in range(0, len(points), step):
        block = points[start : start + step]
        apart = block @ centroids.T
        np.subtract(lengths, np.multiply(apart, np.float32(2), out=apart), out=apart)
        nearest[start : start + step] = best = apart.argmin(axis=1)
        distances[start : start + step] = apart[np.arange(len(block)), best] + np.sum(block * block, axis=1)
    return nearest, distances


def _different_points(points: Float32, size: int, generator: np.random.Generator, level: int) -> Float32:
    seen: dict[bytes, int] = {}
    for row in generator.permutation(len(points)).tolist():
        seen.setdefault((points[row] + np.float32(0.0)).tobytes(), row)  # + 0: the negative zero is zero
        if len(seen) == size:
            return points[list(seen.values())].copy()
    left = "vectors" if level == 1 else f"remainders of the {level - 1} levels before"
    raise ConfigError(
        f"semantic_ids.levels asks for {size:,} codes at level {level}, and the items have only {len(seen):,} "
        f"different {left} to make them of; give smaller levels, or leave semantic_ids out"
    )

"""One space across bundles: the rotation of a new model's vectors onto those that consumers know.

Two models of the same kind put products into much the same places, each in axes of its own. What a consumer has learned
from one model's vectors (a classifier, a ranker's weights) is noise to the next one's, until these are rotated. Inside
`l2` and `cosine` a rotation moves nothing: every distance and every cosine stays. Schoenemann (1966): of all orthogonal
R [d, d] the one that brings A R nearest to B [n, d] is U V', where U S V' is the singular value decomposition of A' B.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ..errors import ConfigError, IntegrityError
from ..keys import digest_of
from .config import IndexConfig
from .latents import Float32, Float64, LatentArrays, latents_matrix

ROTATED = ("l2", "cosine")  # metrics that a rotation leaves as they are
_LEAST = 2  # photos a dimension: with fewer a rotation fits whatever there is
BLOCK = 1 << 16  # rows rotated at a time, from the first: a product's last digits may depend on how many
_ORTHOGONAL = 1e-6  # how far R' R may be from 1


@dataclass(frozen=True, slots=True)
class Space:
    """A rotation [d, d], float64: a row vector x of the model is x R in the space that consumers know."""

    rotation: Float64

    @property
    def data(self) -> bytes:
        """The file of it, as `numpy.load` reads it; nothing in it is pickled."""
        out = io.BytesIO()
        np.save(out, np.ascontiguousarray(self.rotation, "<f8"), allow_pickle=False)
        return out.getvalue()

    @property
    def digest(self) -> str:
        """The sha256 of the file."""
        return digest_of(self.data)

    def rotated(self, latents: LatentArrays) -> LatentArrays:
        """Return latents [n, d] with their means in the consumers' space; variances, which have no axes there, go."""
        return LatentArrays(mean=self.vectors(latents.mean), codes=latents.codes)

    def vectors(self, rows: Float32) -> Float32:
        """Return vectors [n, d] of the model in the consumers' space, each by a product in float64."""
        found: Float32 = latents_matrix(*rows.shape)
        for start in range(0, len(rows), BLOCK):
            found[start : start + BLOCK] = rows[start : start + BLOCK].astype(np.float64) @ self.rotation
        return found


def rotated_table(latents: pa.Table, space: Space) -> pa.Table:
    """Return a table with its column `mean` [d] rotated, and without `log_var`."""
    kind = latents.schema.field("mean").type
    rows = latents["mean"].combine_chunks()
    flat = np.asarray(rows.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(-1, len(space.rotation))
    means = pa.FixedSizeListArray.from_arrays(pa.array(space.vectors(flat).reshape(-1)), len(space.rotation))
    place = latents.schema.get_field_index("mean")
    kept = latents.set_column(place, latents.schema.field("mean"), means.cast(kind))
    return kept.drop_columns([name for name in ("log_var",) if name in kept.column_names])


@dataclass(frozen=True, slots=True)
class Fit:
    """A rotation and how well it fits. photos: it was fitted to; before, residual: |A - B| and |A R - B| over |B|."""

    space: Space
    photos: int
    before: float
    residual: float


def space_of(data: bytes, name: str, dim: int) -> Space:
    """Return the rotation of a file. Raises IntegrityError for what is no rotation of `dim` dimensions."""
    try:
        found = np.load(io.BytesIO(data), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise IntegrityError(f"{name} is no rotation of a space: {error}; restore it") from error
    if found.dtype != np.dtype("<f8") or found.shape != (dim, dim):
        raise IntegrityError(
            f"{name} holds {found.dtype} {list(found.shape)}, expected float64 [{dim}, {dim}]; restore it"
        )
    if not np.allclose(found.T @ found, np.eye(dim), rtol=0, atol=_ORTHOGONAL):
        raise IntegrityError(f"{name} holds a matrix that is no rotation: it would change distances; restore it")
    return Space(found)


def fit_space(new: Float32, known: Float32, *, metric: str) -> Fit:
    """Return the rotation that brings one model's vectors of some photos nearest to those that consumers know of them.

    new, known: float32 [n, d], row by row of the same photo; by `cosine` at length 1. Raises ConfigError for another
    dimension, or fewer photos than twice the dimension.
    """
    photos, dim = new.shape
    if photos < _LEAST * dim:
        raise ConfigError(
            f"publish.keep_space needs {_LEAST * dim:,} photos that the release before has too, unchanged, for vectors "
            f"of {dim} dimensions, and there are {photos:,}; set publish.keep_space=false, or take another channel"
        )
    if new.shape != known.shape:
        raise ConfigError(
            f"publish.keep_space cannot bring vectors of {new.shape[1]} dimensions into a space of {known.shape[1]}; "
            "train a model of the same size, or set publish.keep_space=false"
        )
    mine, theirs = (_compared(each, metric) for each in (new, known))
    left, _, right = np.linalg.svd(mine.T @ theirs)
    space = Space(left @ right)
    scale = float(np.linalg.norm(theirs)) or 1.0
    return Fit(
        space,
        photos,
        before=float(np.linalg.norm(mine - theirs)) / scale,
        residual=float(np.linalg.norm(mine @ space.rotation - theirs)) / scale,
    )


def check_rotates(config: IndexConfig) -> None:
    """Raise ConfigError for a metric that sees axes, so that a rotation would change what is near."""
    metric = config.metric if config.mask == "none" else f"{config.metric}/{config.mask}"
    if metric not in ROTATED:
        raise ConfigError(
            f"publish.keep_space rotates vectors, which changes nothing for the metrics {' and '.join(ROTATED)}, and "
            f"index.metric is {metric!r}: variances, masks and codes belong to the axes that the model gave them; take "
            "one of these metrics without a mask, or set publish.keep_space=false"
        )


def _compared(vectors: Float32, metric: str) -> Float64:
    wide = vectors.astype(np.float64)
    if metric == "cosine":
        wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return wide

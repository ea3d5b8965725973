"""How like photos other pictures are, without labels or a pretrained network: two measures of two sets of pictures.

Both look at principal components of pixels, fitted on the reference. The Fréchet distance compares means and
covariances alone; the accuracy of one nearest neighbour asks whether a picture's set can be told from who is near it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from .baselines import Components, pixel_features, principal_components
from .spaces import thumbnails

Float64 = NDArray[np.float64]
Pixels = NDArray[np.uint8]

COMPONENTS = 64
_PHOTOS_A_COMPONENT = 5  # fewer, and a covariance says more of chance than of the photos
_UNUSED = 1e-6  # of the largest variance: float32 rounding, a direction that no reference picture uses
_TIE = 1e-12  # of the largest squared length: the rounding of a squared distance in float64
_INVALID = 1e-8  # of the largest eigenvalue: below minus this, a matrix is no covariance
_ROWS = 1000  # whose distances to all are held at a time


@dataclass(frozen=True, slots=True)
class Realism:
    """How far a set of pictures is from a reference of as many.

    frechet: `frechet_distance`, 0 for equal means and covariances. one_nn: `one_nn_accuracy`, 0.5 where the sets cannot
    be told apart, 1 where they always can. photos: of each set. components: what both were measured in.
    """

    frechet: float
    one_nn: float
    photos: int
    components: int

    def measures(self, name: str) -> dict[str, float]:
        """Return both numbers by name; name: of the set."""
        return {f"frechet/{name}": self.frechet, f"one_nn/{name}": self.one_nn}


@dataclass(frozen=True, slots=True)
class PictureSpace:
    """Principal components of pixels (`thumbnails`, in 0..1) of reference pictures, not whitened."""

    components: Components

    def features(self, pictures: Pixels) -> Float64:
        """Return the coordinates float64 [n, d] of pictures uint8 [n, size, size, 3]."""
        rows = pixel_features(thumbnails(pictures)).astype(np.float64)
        return np.asarray((rows - self.components.centre) @ self.components.axes.T.astype(np.float64))


def picture_space(reference: Pixels) -> PictureSpace:
    """Return the space of reference pictures, uint8 [n, size, size, 3]: at most COMPONENTS, at most n // 5 dimensions.

    Directions that no reference picture uses are left out: they would be arbitrary. Raises InputError for fewer than
    five pictures, and where all are equal.
    """
    if len(reference) < _PHOTOS_A_COMPONENT:
        raise InputError(f"{len(reference)} reference pictures have no space; give at least {_PHOTOS_A_COMPONENT}")
    rows = pixel_features(thumbnails(reference))
    if (rows == rows[0]).all():
        raise InputError(f"all {len(reference)} reference pictures are equal; give some that differ")
    fitted = principal_components(rows, min(COMPONENTS, len(rows) // _PHOTOS_A_COMPONENT, rows.shape[1]))
    used = int(np.sum(fitted.variances > _UNUSED * fitted.variances[0]))
    return PictureSpace(Components(fitted.centre, fitted.axes[:used], fitted.variances[:used]))


def realism(reference: ArrayLike, drawn: ArrayLike) -> Realism:
    """Return both measures of features float [n, d] each; errors as `frechet_distance` and `one_nn_accuracy`."""
    known, other = _features(reference, drawn)
    return Realism(frechet_distance(known, other), one_nn_accuracy(known, other), *known.shape)


def frechet_distance(reference: ArrayLike, drawn: ArrayLike) -> float:
    """Return the squared Fréchet distance of Gaussians fitted to features float [n, d] and [m, d], in squared units.

    Heusel et al. 2017 (arXiv 1706.08500, equation 6). There the features are an Inception network's; of others the
    number is "FID-like" and comparable only among equal features, references and sample sizes: of few rows it is above
    0 for two samples of one distribution. Raises InputError for features that do not fit together, that are not finite
    or of fewer than two rows.
    """
    known, other = _features(reference, drawn)
    mean, other_mean = known.mean(axis=0), other.mean(axis=0)
    return gaussian_frechet(mean, _covariance(known), other_mean, _covariance(other))


def gaussian_frechet(
    mean: ArrayLike, covariance: ArrayLike, other_mean: ArrayLike, other_covariance: ArrayLike
) -> float:
    """Return |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2) of means [d] and covariances [d, d].

    The squared 2-Wasserstein distance of the Gaussians (Dowson and Landau 1982, equation 16). Raises InputError for
    shapes that do not fit and for matrices that are not symmetric or have negative eigenvalues.
    """
    first, second = np.asarray(mean, np.float64), np.asarray(other_mean, np.float64)
    spread, other = np.asarray(covariance, np.float64), np.asarray(other_covariance, np.float64)
    if first.ndim != 1 or first.shape != second.shape or {spread.shape, other.shape} != {(len(first),) * 2}:
        raise InputError(
            f"means {list(first.shape)} and {list(second.shape)}, covariances {list(spread.shape)} and "
            f"{list(other.shape)} do not fit; give [d] and [d, d] twice"
        )
    # The singular values of S1^1/2 S2^1/2 are the eigenvalues of (S1^1/2 S2 S1^1/2)^1/2: real, not negative, and no
    # root is taken of the rounding errors of eigenvalues near zero.
    common = np.linalg.svd(_root(spread) @ _root(other), compute_uv=False).sum()
    apart = float(np.sum((first - second) ** 2) + np.trace(spread) + np.trace(other) - 2 * common)
    return max(0.0, apart)  # below zero it is rounding


def one_nn_accuracy(reference: ArrayLike, drawn: ArrayLike) -> float:
    """Return how often the nearest other row is of the row's own set, of features float [n, d] of both sets, in 0..1.

    The leave-one-out accuracy of one nearest neighbour (l2) over the union, as a two-sample test (Lopez-Paz and Oquab
    2017, arXiv 1610.06545): 0.5 (exactly, (n - 1) / (2n - 1)) is expected of sets that cannot be told apart, 1 of those
    that always can. Of equally near rows the share of the own set counts, so that neither order nor copies decide: rows
    that are all equal give (n - 1) / (2n - 1) too. Pictures drawn several times push it up, copies of reference photos
    below 0.5. Raises InputError for sets of unequal numbers, else as `frechet_distance`.
    """
    known, other = _features(reference, drawn)
    if len(known) != len(other):
        raise InputError(
            f"{len(known)} reference rows and {len(other)} drawn ones; chance is 0.5 only of equally many: take the "
            f"first {min(len(known), len(other))} of both"
        )
    union = np.concatenate([known, other])
    union -= union.mean(axis=0)  # squared distances from products lose digits far from the origin
    drawn_row = np.arange(len(union)) >= len(known)
    lengths = np.sum(union * union, axis=1)
    credit = 0.0
    for start in range(0, len(union), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(union)))
        squared = lengths[rows, None] + lengths - 2.0 * (union[rows] @ union.T)
        squared[np.arange(len(rows)), rows] = np.inf
        tied = squared <= squared.min(axis=1, keepdims=True) + _TIE * lengths.max()
        own = tied & (drawn_row[rows, None] == drawn_row)
        credit += float(np.sum(own.sum(axis=1) / tied.sum(axis=1)))
    return credit / len(union)


def _root(covariance: Float64) -> Float64:
    """Return the symmetric square root of a covariance [d, d]."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    limit = _INVALID * max(float(np.abs(values).max()), np.finfo(np.float64).tiny)
    if values.min() < -limit or np.abs(covariance - covariance.T).max() > limit:
        raise InputError(
            f"a matrix {list(covariance.shape)} with the least eigenvalue {values.min():g} is no covariance; give a "
            "symmetric one without negative eigenvalues"
        )
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T)


def _covariance(features: Float64) -> Float64:
    centred = features - features.mean(axis=0)
    return np.asarray(centred.T @ centred / (len(features) - 1))


def _features(reference: ArrayLike, drawn: ArrayLike) -> tuple[Float64, Float64]:
    known, other = np.asarray(reference, np.float64), np.asarray(drawn, np.float64)
    for name, rows in (("reference", known), ("drawn", other)):
        if rows.ndim != 2 or len(rows) < 2 or not rows.shape[1]:
            raise InputError(f"{name} features are {list(rows.shape)}; give [n, d] of at least 2 rows")
        if not np.isfinite(rows).all():
            raise InputError(f"{name} features hold values that are not finite; leave out the rows that do")
    if known.shape[1] != other.shape[1]:
        raise InputError(f"features are {list(known.shape)} and {list(other.shape)}; take both from one space")
    return known, other

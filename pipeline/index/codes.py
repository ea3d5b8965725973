"""Metrics of VQ codes: the cosine of weighted bags, and the share of equal cells.

`codes`: a photo is the bag of its codes, each weighted by how few photos of the catalogue have it (TF-IDF: Sparck
Jones 1972; the smoothed form that `evaluation.words` and scikit-learn have), compared by cosine. `codes_hamming`: the
share of cells that hold the same code, as inner product of one-hot cells. Both are fitted to a catalogue; a code that
no photo of it has counts nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, InputError
from .latents import Float32, Float64, LatentArrays
from .means import COSINE, at_length_one
from .metric import Metric

NEEDS = ("codes",)
MOST_FEATURES = 4096
"""No row is wider: an index holds every one of these features of every photo."""
_BLOCK_VALUES = 1 << 22  # float64 values of bags at a time

Codes = NDArray[np.int32]


def photos_with_code(latents: LatentArrays) -> NDArray[np.int64]:
    """Return of how many photos each code 0..V-1 is part, int64 [V], V - 1 the highest; one code where none is."""
    codes = _codes_of(latents)
    with_code = np.zeros(int(codes.max(initial=0)) + 1, np.int64)
    step = max(1, _BLOCK_VALUES // len(with_code))
    for start in range(0, len(codes), step):
        with_code += np.count_nonzero(_counts(codes[start : start + step], len(with_code)), axis=0)
    return with_code


def bag_metric(with_code: NDArray[np.int64], photos: int) -> Metric:
    """Return `codes` by the weights ln((1 + n) / (1 + df)) + 1 of n photos, df = with_code int [V] of them with a code.

    Raises ConfigError for more codes than MOST_FEATURES.
    """
    words = code_features("codes", 1, len(with_code))
    idf = np.where(with_code > 0, np.log((1.0 + photos) / (1.0 + with_code)) + 1.0, 0.0)

    def bags(latents: LatentArrays) -> Float64:
        if latents.codes is None and latents.bags is not None:
            _same_width(latents.bags, words)
            return at_length_one(latents.bags.astype(np.float64))
        return at_length_one(_counts(_codes_of(latents), words) * idf)

    def features(latents: LatentArrays) -> Float32:
        rows = np.empty((len(latents), words), np.float32)
        step = max(1, _BLOCK_VALUES // words)
        for start in range(0, len(rows), step):
            block = np.s_[start : start + step]
            rows[block] = bags(latents.take(block))
        return rows

    def pair_scores(queries: LatentArrays, items: LatentArrays) -> Float64:
        cosines: Float64 = np.clip(np.sum(bags(queries) * bags(items), axis=-1), 0.0, 1.0)
        return cosines

    def barycentre(latents: LatentArrays, weights: Float64) -> LatentArrays:
        """The mean of the unit bags points where the weighted sum of cosines is largest."""
        return _of_bags(np.sum(bags(latents) * weights[:, None], axis=0, keepdims=True).astype(np.float32))

    return Metric(
        name="codes",
        geometry="inner_product",
        needs=NEEDS,
        symmetric=True,
        item_features=features,
        query_features=features,
        recover=_of_bags,
        pair_scores=pair_scores,
        score=lambda values, queries: np.clip(values.astype(np.float64), 0.0, 1.0),
        rounding=COSINE.rounding,
        barycentre=barycentre,
        width=words,
    )


def cells_metric(cells: int, words: int) -> Metric:
    """Return `codes_hamming` of photos of `cells` codes 0..words - 1; its name holds both numbers.

    Raises ConfigError for more one-hot cells than MOST_FEATURES.
    """
    width = code_features("codes_hamming", cells, words)

    def one_hot(latents: LatentArrays) -> Float32:
        if not len(latents):
            return np.zeros((0, width), np.float32)
        codes = told(latents)
        rows = np.zeros((len(codes), cells, words), np.float32)
        row, cell = np.nonzero((codes >= 0) & (codes < words))
        rows[row, cell, codes[row, cell]] = 1.0
        return rows.reshape(len(codes), width)

    def told(latents: LatentArrays) -> Codes:
        codes = _codes_of(latents)
        if codes.shape[-1] != cells:
            raise ConfigError(f"photos of {codes.shape[-1]} codes do not fit an index of {cells}; give one model's")
        return codes

    def recover(features: Float32) -> LatentArrays:
        hot = features.reshape(*features.shape[:-1], cells, words)
        codes = np.where(hot.any(axis=-1), hot.argmax(axis=-1), -1).astype(np.int32)
        return LatentArrays(mean=_no_mean(codes), codes=codes)

    def pair_scores(queries: LatentArrays, items: LatentArrays) -> Float64:
        left, right = told(queries), told(items)
        # What no photo of the catalogue has is stored as nothing, and so equals nothing.
        return np.asarray(np.mean((left == right) & (left >= 0) & (left < words), axis=-1), np.float64)

    def barycentre(latents: LatentArrays, weights: Float64) -> LatentArrays:
        """The code of most weight in each cell, the lower of two: the largest weighted sum of equal cells."""
        votes = np.tensordot(weights, one_hot(latents).astype(np.float64), axes=1)
        return recover((_first_largest(votes.reshape(cells, words))).reshape(1, width))

    return Metric(
        name=f"codes_hamming:{cells}x{words}",
        geometry="inner_product",
        needs=NEEDS,
        symmetric=True,
        item_features=one_hot,
        query_features=one_hot,
        recover=recover,
        pair_scores=pair_scores,
        score=lambda values, queries: values.astype(np.float64) / cells,
        rounding=lambda values, queries, features: np.zeros(len(values)),  # sums of ones are exact
        barycentre=barycentre,
        width=width,
    )


def fitted_bags(latents: LatentArrays) -> Metric:
    """Return `codes` for the catalogue of these latents [n]."""
    return bag_metric(photos_with_code(latents), len(latents))


def fitted_cells(latents: LatentArrays) -> Metric:
    """Return `codes_hamming` for the catalogue of these latents [n]."""
    codes = _codes_of(latents)
    return cells_metric(max(1, codes.shape[1]), int(codes.max(initial=0)) + 1)


FITTED: dict[str, Callable[[LatentArrays], Metric]] = {"codes": fitted_bags, "codes_hamming": fitted_cells}


def code_features(metric: str, cells: int, words: int) -> int:
    """Return how many features a photo of `cells` codes 0..words - 1 has by a metric of `FITTED`.

    Raises ConfigError for more than MOST_FEATURES.
    """
    if metric == "codes":
        _check_features(metric, words, f"{words:,} codes")
        return words
    _check_features(metric, cells * words, f"{cells:,} cells x {words:,} codes = {cells * words:,} features")
    return cells * words


def _check_features(metric: str, width: int, what: str) -> None:
    """Raise ConfigError where a metric's rows would be wider than MOST_FEATURES; what: the numbers, in words."""
    if width > MOST_FEATURES:
        other = "metric codes, or " if metric == "codes_hamming" else ""
        raise ConfigError(
            f"index.metric {metric} would hold {what} a photo, {MOST_FEATURES:,} are the most; take {other}"
            "metric cosine, or a model with fewer codes"
        )


def _codes_of(latents: LatentArrays) -> Codes:
    if latents.codes is None:
        raise InputError("these latents hold no codes; give them too, or choose index.metric cosine or l2")
    return latents.codes


def _counts(codes: Codes, words: int) -> Float64:
    """Return how often each of `words` codes is in codes [..., cells], float64 [..., words]; others are left out."""
    flat = codes.reshape(-1, codes.shape[-1])
    rows, cells = np.nonzero((flat >= 0) & (flat < words))
    counted = np.bincount(rows * words + flat[rows, cells], minlength=len(flat) * words)
    return counted.reshape(*codes.shape[:-1], words).astype(np.float64)


def _same_width(bags: NDArray[Any], words: int) -> None:
    if bags.shape[-1] != words:
        raise ConfigError(f"bags of {bags.shape[-1]} codes do not fit an index of {words}; ask with codes, or by item")


def _of_bags(bags: Float32) -> LatentArrays:
    return LatentArrays(mean=_no_mean(bags), bags=bags)


def _no_mean(rows: NDArray[Any]) -> Float32:
    return np.zeros((*rows.shape[:-1], 0), np.float32)


def _first_largest(votes: Float64) -> Float32:
    """Return 1 at the first largest vote of each row, zeros in a row without votes; float32 [cells, words]."""
    best = np.zeros(votes.shape, np.float32)
    voted = np.flatnonzero(votes.any(axis=1))
    best[voted, votes[voted].argmax(axis=1)] = 1.0
    return best

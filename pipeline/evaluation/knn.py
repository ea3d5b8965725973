"""Accuracy of the k nearest neighbours' labels: cosine, k = 10, unweighted majority, ties to the nearest.

With a temperature votes are weighted by nearness: the literature's column, WEIGHTED_K and TEMPERATURE.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError, InputError
from ..index import METRICS, LatentArrays, nearest_exact

_K = 10
_QUERIES = 1000
WEIGHTED_K = 20  # as in DINO (arXiv 2104.14294)
TEMPERATURE = 0.07  # Wu et al. 2018 (arXiv 1805.01978, section 3.4)


def knn_labels(
    bank: ArrayLike,
    bank_labels: ArrayLike,
    queries: ArrayLike,
    *,
    k: int = _K,
    temperature: float | None = None,
    exclude: NDArray[np.int64] | None = None,
) -> NDArray[Any]:
    """Return the label [q] that most of the k nearest bank vectors have.

    bank: float [n, d] with labels [n]; queries: float [q, d]. Of labels with equally many votes the one whose member is
    nearest wins; of equally near vectors the earlier one counts as nearer. exclude: one bank row a query [q] that has
    no vote (the query itself), or None. temperature: None counts every neighbour once, a number weighs it by
    exp(cosine / temperature). Raises InputError for an empty bank or arrays that do not fit together.
    """
    _check_voting(k, temperature)
    voters, cosines = _voters(bank, bank_labels, queries, k, exclude)
    return elected(voters, cosines, temperature)


def knn_both(bank: ArrayLike, bank_labels: ArrayLike, queries: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the labels [q] of both columns, plain and weighted, from one search; arguments as `knn_labels`."""
    voters, cosines = _voters(bank, bank_labels, queries, max(_K, WEIGHTED_K), None)
    plain = elected(voters[:, :_K], cosines[:, :_K], None)
    return plain, elected(voters[:, :WEIGHTED_K], cosines[:, :WEIGHTED_K], TEMPERATURE)


def knn_accuracy(
    bank: ArrayLike,
    bank_labels: ArrayLike,
    queries: ArrayLike,
    labels: ArrayLike,
    k: int = _K,
    *,
    temperature: float | None = None,
) -> float:
    """Return the share of queries [q, d] whose label is that of their k nearest bank vectors, in 0..1.

    The one protocol of the project: cosine, unweighted majority, ties to the nearest; the weighted column beside it is
    k = WEIGHTED_K with temperature = TEMPERATURE. The queries must not be in the bank: a query that votes for itself
    measures nothing.
    """
    truth = np.asarray(labels)
    if len(truth) == 0:
        raise InputError("there are no queries to measure k-NN accuracy with; give at least one")
    return float(np.mean(knn_labels(bank, bank_labels, queries, k=k, temperature=temperature) == truth))


def label_knn(
    vectors: ArrayLike,
    labels: ArrayLike,
    *,
    k: int = _K,
    queries: int = _QUERIES,
    seed: int = 0,
) -> float:
    """Return the accuracy over a seeded sample of the vectors [n, d], each asked against all others, in 0..1.

    By row, not by item: other photos of the query's item may vote.
    """
    return float(np.mean(label_hits(vectors, labels, k=k, queries=queries, seed=seed)[1]))


def label_hits(
    vectors: ArrayLike, labels: ArrayLike, *, k: int = _K, queries: int = _QUERIES, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the rows [q] that `label_knn` asks, and whether each is of its neighbours' label, bool [q]."""
    bank, known = _matrix(vectors), np.asarray(labels)
    rows = np.sort(np.random.default_rng(seed).permutation(len(bank))[:queries]).astype(np.int64)
    return rows, np.asarray(knn_labels(bank, known, bank[rows], k=k, exclude=rows) == known[rows], np.bool_)


def _check_voting(k: int, temperature: float | None) -> None:
    if k < 1:
        raise ConfigError(f"k is {k}; it must be at least 1")
    if temperature is not None and not temperature > 0:
        raise ConfigError(f"temperature is {temperature}; it must be above 0 (None counts every neighbour once)")


def _voters(
    bank: ArrayLike, bank_labels: ArrayLike, queries: ArrayLike, k: int, exclude: NDArray[np.int64] | None
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return the labels of the k nearest bank vectors, nearest first, and their cosines, both [q, k]."""
    vectors, asked, labels = _matrix(bank), _matrix(queries), np.asarray(bank_labels)
    if len(labels) != len(vectors) or vectors.shape[1] != asked.shape[1]:
        raise InputError(
            f"a bank of {list(vectors.shape)} with {len(labels)} labels and queries of {list(asked.shape)} do not fit"
        )
    if len(vectors) - (exclude is not None) < 1:
        raise InputError("the bank holds no vector that could vote; give it at least one besides the query")
    bank_arrays, asked_arrays = LatentArrays(mean=vectors), LatentArrays(mean=asked)
    rows, cosines = nearest_exact(METRICS["cosine"], bank_arrays, asked_arrays, k, exclude=exclude)
    return labels[rows], cosines


def elected(voters: NDArray[Any], cosines: NDArray[np.float64], temperature: float | None) -> NDArray[Any]:
    """Return the label [q] with most votes; [q, k] both, nearest first."""
    classes, voted = np.unique(voters, return_inverse=True)
    voted = voted.reshape(voters.shape)
    # The votes that each neighbour's own label has; the first of the largest is the nearest of the most frequent.
    same = voted[:, :, None] == voted[:, None, :]
    if temperature is None:
        votes = np.sum(same, axis=2, dtype=np.float64)
    else:  # cosine - 1, so that small temperatures do not overflow; the winner is the same
        votes = np.sum(same * np.exp((cosines - 1.0) / temperature)[:, None, :], axis=2)
    won: NDArray[Any] = classes[voted[np.arange(len(voted)), np.argmax(votes, axis=1)]]
    return won


def _matrix(vectors: ArrayLike) -> NDArray[np.float32]:
    matrix = np.asarray(vectors, np.float32)
    if matrix.ndim != 2:
        raise InputError(f"vectors of shape {list(matrix.shape)} are no matrix [n, d]")
    return matrix

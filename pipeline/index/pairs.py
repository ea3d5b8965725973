"""Codes of Gaussians: of each latent one of 256 words, which are pairs of a mean and a variance.

A divergence is a sum over latents of products of the query's terms and the item's (`divergences`), so a product
quantizer of one word a latent, whose words are the terms of a Gaussian, looks up the exact share of that Gaussian in
the tables that FAISS makes for any inner product; a latent that a mask leaves out has zeros in its table. Words are
found where means are measured by the catalogue's deviations and variances by their logs, the local form of all these
divergences; in the terms themselves, whose sizes differ by orders, a quantizer loses most neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import ConfigError
from .faiss_module import load_faiss, of_numpy
from .gaussians import gaussian
from .latents import Float32, LatentArrays
from .metric import Apart, Metric

WORDS = 256  # a latent, one byte of code
_ROUNDS = 10  # of k-means, as FAISS's inverted files have


def empty_pairs(dim: int, apart: Apart, width: int, cells: int) -> Any:
    """Return an empty index of Gaussians of `dim` latents, not trained yet: an inverted file behind a map of features.

    width: features of a query. The map puts all terms of a latent side by side, the one sum of a folded last term,
    which a query multiplies by 1, beside each.
    """
    faiss, terms = load_faiss(), apart.count
    places = np.arange(terms) * dim + np.arange(dim)[:, None]
    if apart.folded:
        places[:, -1] = (terms - 1) * dim
    mapped = faiss.RemapDimensionsTransform(width, dim * terms, False)
    faiss.copy_array_to_vector(places.ravel().astype(np.int32), mapped.map)
    inner = faiss.METRIC_INNER_PRODUCT
    quantizer = faiss.IndexFlat(dim * terms, inner)
    lists = faiss.IndexIVFPQ(quantizer, dim * terms, cells, dim, 8, inner)
    lists.by_residual = False
    return faiss.IndexPreTransform(mapped, lists)


def train_pairs(index: Any, rows: Float32, metric: Metric, *, seed: int) -> None:
    """Find the cells and words of an empty index of Gaussians, on features [n, f] of a metric, at least WORDS."""
    faiss, apart = load_faiss(), apart_of(metric.apart, metric.name)
    lists = faiss.downcast_index(index.index)
    latents = apart.recover(rows)
    scale = _scale(latents)
    points = _points(latents, scale)
    dim = scale.shape[0]
    words = _words(dim)
    words.cp.seed, words.cp.niter, words.cp.min_points_per_centroid = seed + 1, _ROUNDS, 1
    words.train(points)
    pairs = faiss.vector_to_array(words.centroids).reshape(dim, WORDS, 2).transpose(1, 0, 2)
    table = apart.terms(_latents(pairs.reshape(WORDS, 2 * dim), scale)).transpose(1, 0, 2)
    faiss.copy_array_to_vector(np.ascontiguousarray(table).ravel(), lists.pq.centroids)
    cells = faiss.Clustering(2 * dim, int(lists.nlist))
    cells.seed, cells.niter, cells.min_points_per_centroid = seed + 2, _ROUNDS, 1
    cells.train(points, faiss.IndexFlatL2(2 * dim))
    centres = faiss.vector_to_array(cells.centroids).reshape(-1, 2 * dim)
    lists.quantizer.add(apart.terms(_latents(centres, scale)).reshape(len(centres), -1))
    lists.quantizer.is_trained = lists.is_trained = index.is_trained = True


class PairWords:
    """The words and cells of a trained index of Gaussians, and what adds rows to it by them."""

    def __init__(self, index: Any, metric: Metric) -> None:
        """index: as `empty_pairs`, trained; all that is known of its words is read from it."""
        faiss = load_faiss()
        self._index, self._lists = index, faiss.downcast_index(index.index)
        self._apart = apart_of(metric.apart, metric.name)
        dim, terms = int(self._lists.pq.M), self._apart.count
        table = faiss.vector_to_array(self._lists.pq.centroids).reshape(dim, WORDS, terms)
        words = self._apart.recover(self._features(table.transpose(1, 0, 2)))
        cells = int(self._lists.nlist)
        centres = of_numpy(self._lists.quantizer, "reconstruct_n")(0, cells).reshape(cells, dim, terms)
        self._scale = _scale(words)
        self._words = _words(dim)
        pairs = _points(words, self._scale).reshape(WORDS, dim, 2).transpose(1, 0, 2)
        faiss.copy_array_to_vector(np.ascontiguousarray(pairs).ravel(), self._words.centroids)
        self._cells = faiss.IndexFlatL2(2 * dim)
        self._cells.add(_points(self._apart.recover(self._features(centres)), self._scale))

    def add(self, rows: Float32) -> None:
        """Add the Gaussians that features [n, f] are of, behind those that are there."""
        if not len(rows):
            return
        points = _points(self._apart.recover(rows), self._scale)
        _, told = of_numpy(self._cells, "search")(points, 1)
        prefix = told.astype("<i8").view(np.uint8).reshape(len(rows), 8)[:, : int(self._lists.coarse_code_size())]
        codes = np.concatenate([prefix, self._words.compute_codes(points)], axis=1)
        first = int(self._lists.ntotal)
        self._lists.add_sa_codes(np.ascontiguousarray(codes), np.arange(first, first + len(rows)))
        self._index.ntotal = self._lists.ntotal

    def _features(self, terms: Float32) -> Float32:
        """Return features [n, f] of terms [n, d, t]; the sum of a folded last term is not known, nor needed."""
        beside = terms.transpose(0, 2, 1).reshape(len(terms), -1)
        if not self._apart.folded:
            return beside
        return np.concatenate([beside[:, : -terms.shape[1]], np.zeros((len(terms), 1), np.float32)], axis=1)


def _words(dim: int) -> Any:
    return load_faiss().ProductQuantizer(2 * dim, dim, 8)


def _scale(latents: LatentArrays) -> Float32:
    """Return the deviation that means of each latent are measured by, float32 [d]."""
    scale: Float32 = np.exp(0.5 * gaussian(latents).log_var.mean(axis=0)).astype(np.float32)
    return scale


def _points(latents: LatentArrays, scale: Float32) -> Float32:
    """Return (mean / scale, log variance / sqrt 2) of each latent side by side, float32 [n, 2d].

    Squared distances of near ones are twice their KL, if the deviation is the scale.
    """
    given = gaussian(latents)
    both = np.stack([given.mean / scale, given.log_var / np.sqrt(2.0)], axis=-1)
    return np.ascontiguousarray(both.reshape(len(both), -1), np.float32)


def _latents(points: Float32, scale: Float32) -> LatentArrays:
    both = points.reshape(len(points), -1, 2)
    return LatentArrays(mean=both[..., 0] * scale, log_var=both[..., 1] * np.float32(np.sqrt(2.0)))


def apart_of(apart: Apart | None, metric: str) -> Apart:
    """Return what a metric says of its terms; raises ConfigError where it has none of single latents."""
    if apart is None:
        raise ConfigError(f"metric {metric!r} has no terms of single latents; take index.kind ivf_sq8 or ivf_pq")
    return apart

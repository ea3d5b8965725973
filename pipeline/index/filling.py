"""Filling an empty CPU index with rows, block by block, with what GPUs there are.

Cells are told on GPUs before anything is added, and the CPU adds rows to the cells that it is told: what fails on a GPU
cannot have added a part of a block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from .config import IndexConfig
from .faiss_module import faiss_threads, linking_threads, load_faiss
from .gpu import Centroids, graph_of, inverted_file, num_gpus
from .gpu import train as train_index
from .kinds import KINDS
from .latents import Float32
from .metric import Metric
from .pairs import PairWords, train_pairs

_LEAST_GRAPH = 1 << 13  # the CPU links fewer rows within seconds, and copying tiny graphs from a GPU hangs,
_LINKS = 4  # and so many times the links that are looked at have to be there
_BLOCK = 1 << 14  # rows added at a time by the CPU where GPUs have not drawn a graph


class Filling(ABC):
    """An index while rows are added to it."""

    @abstractmethod
    def add(self, rows: Float32) -> None:
        """Add rows [n, f], behind those that are there."""

    @abstractmethod
    def finished(self) -> Any:
        """Return the CPU index, with all rows; nothing is added after it."""


def train(kind: str, index: Any, rows: Float32, metric: Metric, config: IndexConfig) -> None:
    """Train an empty CPU index of a kind on features [n, f] of a metric."""
    if KINDS[kind].of_gaussians:
        train_pairs(index, rows, metric, seed=config.seed)
    else:
        train_index(index, rows, gpu=config.gpu == "auto")


def filling(kind: str, index: Any, metric: Metric, config: IndexConfig) -> Filling:
    """Return what fills an empty CPU index of a kind, which is trained, with features of a metric."""
    if KINDS[kind].of_gaussians:
        return _Pairs(index, metric)
    if KINDS[kind].on_gpu:
        return _Graph(index, config)
    if KINDS[kind].by_unseen:
        return _Linked(index)
    if inverted_file(index) is not None and config.gpu == "auto" and num_gpus() > 0:
        return _InCells(index)
    return _Plain(index)


class _Plain(Filling):
    """Rows that the CPU adds by itself."""

    def __init__(self, index: Any) -> None:
        self._index = index

    def add(self, rows: Float32) -> None:
        self._index.add(rows)

    def finished(self) -> Any:
        return self._index


class _Linked(_Plain):
    """Rows of a graph that the CPU links, so that they are linked alike every time."""

    def add(self, rows: Float32) -> None:
        with faiss_threads(linking_threads()):
            super().add(rows)


class _Pairs(_Plain):
    """Rows of Gaussians, of which the words of each latent are stored."""

    def __init__(self, index: Any, metric: Metric) -> None:
        super().__init__(index)
        self._words = PairWords(index, metric)

    def add(self, rows: Float32) -> None:
        self._words.add(rows)


class _InCells(Filling):
    """Rows of an inverted file, whose cells GPUs tell: the bytes are those that the CPU by itself would have added."""

    def __init__(self, index: Any) -> None:
        faiss = load_faiss()
        self._index, self._file = index, inverted_file(index)
        self._turned = faiss.downcast_VectorTransform(index.chain.at(0)) if self._file is not index else None
        self._centroids = Centroids(faiss.downcast_index(self._file.quantizer))
        self._packed = isinstance(self._file, faiss.IndexIVFPQFastScan)
        self._added = self._unpacked() if self._packed else self._file

    def _unpacked(self) -> Any:
        """Return an empty file of the same cells and words that takes rows by cell, which FastScan's does not."""
        faiss, packed = load_faiss(), self._file
        open_file = faiss.IndexIVFPQ(
            packed.quantizer, packed.d, packed.nlist, packed.pq.M, packed.pq.nbits, packed.metric_type
        )
        open_file.own_fields, open_file.is_trained = False, True
        open_file.pq, open_file.by_residual = packed.pq, packed.by_residual
        return open_file

    def add(self, rows: Float32) -> None:
        if not len(rows):
            return
        rows = np.ascontiguousarray(rows, np.float32)
        turned = rows if self._turned is None else self._turned.apply(rows)
        cells = self._centroids.nearest(turned)
        pointer = load_faiss().swig_ptr
        self._added.add_core(len(turned), pointer(turned), None, pointer(cells))

    def finished(self) -> Any:
        if self._packed:
            packed = load_faiss().IndexIVFPQFastScan(self._added, self._file.bbs)
            packed.own_fields = packed.own_invlists = False  # its lists go to the index, which owns the cells
            self._file.replace_invlists(packed.invlists, True)
        self._file.ntotal = self._index.ntotal = self._added.ntotal
        return self._index


class _Graph(Filling):
    """Rows of a graph that GPUs draw of all of them at once; held until then."""

    def __init__(self, index: Any, config: IndexConfig) -> None:
        """index: an empty HNSW over a flat storage, whose lowest level GPUs draw."""
        self._index, self._config = index, config
        self._rows: list[Float32] = []

    def add(self, rows: Float32) -> None:
        self._rows.append(rows)

    def finished(self) -> Any:
        rows = np.concatenate([np.empty((0, int(self._index.d)), np.float32), *self._rows])
        self._rows = []
        enough = len(rows) >= max(_LEAST_GRAPH, _LINKS * 4 * self._config.m)
        drawn = graph_of(rows, self._config.m, self._config.ef_construction) if enough else None
        if drawn is None:
            linked = _Linked(self._index)
            for start in range(0, len(rows), _BLOCK):
                linked.add(rows[start : start + _BLOCK])
            return linked.finished()
        faiss = load_faiss()
        similar = self._index.hnsw.is_similarity
        self._index.hnsw = drawn.hnsw
        self._index.hnsw.is_similarity = similar
        faiss.downcast_index(self._index.storage).add(rows)
        self._index.ntotal = len(rows)
        return self._index

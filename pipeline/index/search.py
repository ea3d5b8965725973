"""Searching a FAISS index: candidates in float32, then exact scores in float64."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, IntegrityError
from .faiss_module import load_faiss
from .latents import Float32, Float64, LatentArrays, Rows
from .metric import Metric
from .metrics import metric_named

_PAIR_BLOCK = 1 << 22  # float64 values of a temporary array of candidates
_FEW = 1 / 16  # below this share of allowed rows, only they are visited, one by one
_SPARE = 16  # rows looked at beyond k where float32 may have put a nearer one behind, and
_WIDER = 4  # how much further when these were not enough
_GRAPH_SHARE = 1 / 5  # a graph search with fewer allowed rows, or asked for more, loses rows: scan instead


class Hits(NamedTuple):
    """The nearest rows of q queries, nearest first, ties by row.

    ids: int64 [q, k], -1 where there is none. scores: float64 [q, k], larger is nearer, -inf where there is none.
    """

    ids: Rows
    scores: Float64


@dataclass(frozen=True, slots=True)
class BoundedHits:
    """As `Hits`; ceilings: float64 [q], no row that is missing from `ids` scores higher, as far as the index is exact.

    A ceiling is -inf when every allowed row is there.
    """

    ids: Rows
    scores: Float64
    ceilings: Float64


class RowFilter:
    """The rows a search may return, as FAISS tests them; build one and use it for many searches.

    Held is what the selector points into: few rows as a list, many as a bitmap, never more than half a byte a row.
    """

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        """mask: bool [n], true where a row may be returned."""
        self.size = len(mask)
        self._count = int(np.count_nonzero(mask))
        self._few = self._count < self.size * _FEW
        self._held = np.flatnonzero(mask) if self._few else np.packbits(mask, bitorder="little")

    @classmethod
    def of_rows(cls, rows: Rows, size: int) -> RowFilter:
        """Return the filter that allows these row numbers of an index of `size` rows."""
        mask = np.zeros(size, np.bool_)
        mask[rows] = True
        return cls(mask)

    def __len__(self) -> int:
        """Return the number of allowed rows."""
        return self._count

    @property
    def nbytes(self) -> int:
        """The memory that it holds."""
        return int(self._held.nbytes)

    def selector(self) -> Any:
        """Return the FAISS selector; it points into this object's arrays."""
        faiss = load_faiss()
        return faiss.IDSelectorArray(self._held) if self._few else faiss.IDSelectorBitmap(self._held)


class SearchIndex:
    """A FAISS index and its metric; safe to search from several threads at once.

    Row i of the index is row i of the latents it was built from. The index must store its features (flat, or a
    graph over a flat storage), from which the exact scores are computed.
    """

    def __init__(self, index: Any, metric: Metric) -> None:
        """index: a CPU FAISS index. Raises IntegrityError when it does not fit the metric or stores no features."""
        faiss = load_faiss()
        wanted = faiss.METRIC_L2 if metric.geometry == "l2" else faiss.METRIC_INNER_PRODUCT
        if index.metric_type != wanted:
            raise IntegrityError(
                f"the FAISS index was built for metric type {index.metric_type}, but {metric.name!r} searches by "
                f"{metric.geometry} (type {wanted}); the manifest and the index do not belong together"
            )
        self.metric = metric
        # Also what is not there yet has a width: an empty index refuses queries of another.
        self.latent_dim = int(metric.recover(np.ones((1, int(index.d)), np.float32)).mean.shape[1])
        self._index = index
        self._storage = _flat_storage(index)
        self._graph = self._storage is not index
        self.features: Float32 = _stored_features(index, self._storage)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        """The number of features a row."""
        return int(self._index.d)

    def latents(self, rows: Any) -> LatentArrays:
        """Return what the index knows of the latents of `rows`: enough to query with and to score exactly.

        For `cosine` the means at length 1, otherwise the latents themselves; those that a mask leaves out are 0.
        """
        return self.metric.recover(self.features[rows])

    def search(self, queries: LatentArrays, k: int, *, allowed: Rows | RowFilter | None = None) -> Hits:
        """Return the k nearest rows of every query; arguments and errors as `search_bounded`."""
        hits = self.search_bounded(queries, k, allowed=allowed)
        return Hits(hits.ids, hits.scores)

    def search_bounded(self, queries: LatentArrays, k: int, *, allowed: Rows | RowFilter | None = None) -> BoundedHits:
        """Return the k nearest rows of every query, and how near a row beyond them could be.

        allowed: the row numbers that may be returned, or None for all. Raises ConfigError for queries of another
        dimension or not finite, or a filter made for another number of rows.
        """
        features = self._query_features(queries)
        if isinstance(allowed, np.ndarray):
            allowed = RowFilter.of_rows(allowed, self.rows)
        if allowed is not None and allowed.size != self.rows:
            raise ConfigError(f"the filter was made for {allowed.size} rows, the index has {self.rows}")
        count = min(k, self.rows if allowed is None else len(allowed))
        ids = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float64)
        ceilings = np.full(len(queries), -np.inf, np.float64)
        if count <= 0 or len(queries) == 0:
            return BoundedHits(ids, scores, ceilings)
        most = self.rows if allowed is None else len(allowed)
        fetch = min(most, count + _SPARE) if self.metric.cancels else count
        pending = np.arange(len(queries))
        while len(pending):
            hits, behind = self._fetched(queries.take(pending), features[pending], fetch, count, allowed)
            ids[pending, :count], scores[pending, :count], ceilings[pending] = hits.ids, hits.scores, hits.ceilings
            if not self.metric.cancels or fetch == most or self._walks(fetch, allowed):
                break
            pending = pending[behind > hits.scores[:, -1]]
            fetch = min(most, _WIDER * fetch)
        return BoundedHits(ids, scores, ceilings)

    def _fetched(
        self, queries: LatentArrays, features: Float32, fetch: int, count: int, allowed: RowFilter | None
    ) -> tuple[BoundedHits, Float64]:
        """Return the `count` best of `fetch` candidates, and the highest score [q] of a row that is no candidate."""
        values, found = self._candidates(features, fetch, allowed)
        ids, scores = np.empty((len(queries), count), np.int64), np.empty((len(queries), count))
        behind = np.full(len(queries), -np.inf)
        if fetch < (self.rows if allowed is None else len(allowed)):
            behind = self.metric.ceiling(values[:, -1].astype(np.float64), queries, features)
        ceilings = behind.copy()
        step = max(1, _PAIR_BLOCK // (fetch * self.dim))
        for start in range(0, len(queries), step):
            block = np.s_[start : start + step]
            near, exact = self._ordered(queries.take(block), found[block])
            ids[block], scores[block] = near[:, :count], exact[:, :count]
            if count < fetch:
                ceilings[block] = np.maximum(behind[block], exact[:, count])
        return BoundedHits(ids, scores, ceilings), behind

    def _query_features(self, queries: LatentArrays) -> Float32:
        missing = queries.missing(self.metric.needs)
        if missing:
            raise ConfigError(
                f"the metric {self.metric.name!r} compares {', '.join(missing)}, which the queries lack; ask with "
                "LatentArrays that hold it, or by item_id"
            )
        if len(queries.not_finite(self.metric.needs)):
            raise ConfigError("a query vector holds NaN or infinity; every value must be finite")
        if queries.mean.shape[1] != self.latent_dim:
            raise ConfigError(
                f"queries of shape {list(queries.mean.shape)} do not fit an index of {self.latent_dim} features a row; "
                "pass rows [q, d] of the release's own model's latents"
            )
        return self.metric.query_features(queries)

    def _candidates(self, features: Float32, count: int, allowed: RowFilter | None) -> tuple[Float32, Rows]:
        faiss = load_faiss()
        selector = None if allowed is None else allowed.selector()
        scan = faiss.SearchParameters(sel=selector) if selector is not None else None
        if not self._graph:
            return _searched(self._index, features, count, scan)
        if not self._walks(count, allowed):
            return _searched(self._storage, features, count, scan)
        ef = max(count, int(self._index.hnsw.efSearch))
        walk = faiss.SearchParametersHNSW(sel=selector, efSearch=ef)
        values, found = _searched(self._index, features, count, walk)
        short = np.flatnonzero(found[:, -1] < 0)
        if len(short):  # the graph did not reach enough rows: scan rather than return fewer than there are
            values[short], found[short] = _searched(self._storage, features[short], count, scan)
        return values, found

    def _walks(self, count: int, allowed: RowFilter | None) -> bool:
        """Return whether a search for `count` rows goes through the graph, which may miss some."""
        share = 1.0 if allowed is None else len(allowed) / self.rows
        return self._graph and share >= _GRAPH_SHARE and count <= self.rows * _GRAPH_SHARE

    def _ordered(self, queries: LatentArrays, found: Rows) -> tuple[Rows, Float64]:
        exact = self.metric.pair_scores(queries.take(np.s_[:, None]), self.latents(found))
        order = np.lexsort((found, -exact), axis=-1)
        return np.take_along_axis(found, order, axis=1), np.take_along_axis(exact, order, axis=1)


def open_index(source: bytes | memoryview | str | os.PathLike[str], metric: str) -> SearchIndex:
    """Return an index from its serialised bytes, or from a local file, which is then mapped and not read.

    metric: its name, as a manifest has it. Raises ConfigError for an unknown one, IntegrityError when the bytes are no
    index or do not fit the metric.
    """
    faiss = load_faiss()
    known = metric_named(metric)
    try:
        if isinstance(source, bytes | memoryview):
            index = faiss.deserialize_index(np.frombuffer(source, np.uint8))
        else:
            index = faiss.read_index(os.fspath(Path(source)), faiss.IO_FLAG_MMAP_IFC)
    except (RuntimeError, MemoryError, ValueError) as error:
        raise IntegrityError(f"this is not a FAISS index that can be read here: {error}") from error
    return SearchIndex(index, known)


def _searched(index: Any, features: Float32, count: int, parameters: Any) -> tuple[Float32, Rows]:
    # Whoever imports faiss.contrib.torch_utils in this process, as some libraries do, gets a `search` without `params`.
    search = getattr(index, "search_numpy", index.search)
    values, found = search(features, count, params=parameters)
    return values, found


class _Memory:
    """What NumPy asks for memory that FAISS owns; an array made of it keeps the index alive."""

    def __init__(self, index: Any, interface: dict[str, Any]) -> None:
        self.index = index
        self.__array_interface__ = interface


def _stored_features(index: Any, storage: Any) -> Float32:
    """Return the features [n, f] as FAISS stores them, without a copy; read only."""
    rows, dim = int(index.ntotal), int(index.d)
    if rows * dim == 0:
        return np.empty((rows, dim), np.float32)
    interface = load_faiss().rev_swig_ptr(storage.get_xb(), rows * dim).__array_interface__
    features = np.asarray(_Memory(index, interface)).reshape(rows, dim)
    features.flags.writeable = False  # a mapped file cannot be written, and the graph would no longer fit
    return features


def _flat_storage(index: Any) -> Any:
    """Return the flat index that holds the features: the index itself, or what its graph is built over."""
    faiss = load_faiss()
    storage = faiss.downcast_index(index.storage) if hasattr(index, "storage") else index
    if not isinstance(storage, faiss.IndexFlat):
        raise IntegrityError(f"a {type(index).__name__} does not store its features; use an index over a flat storage")
    return storage

"""The one planner of searches: which rows are scored exactly, by how many of them may answer.

Three ways. Exact over the allowed rows, where they are few or nearly all are asked for. The index with a selector, at
an effort that grows with what the filter leaves out. And where that finds fewer rows than there are, the effort
doubles for those queries until it has them, and ends exact. So k rows come back whenever k are allowed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigError, IntegrityError
from .faiss_module import load_faiss, of_numpy
from .filters import FEW, RowFilter
from .graph import graph_without
from .latents import Float32, Rows
from .products import TOGETHER, in_blocks, largest_products

_GRAPH_SHARE = 1 / 5  # a graph search with fewer allowed rows, or asked for more, loses rows: scan instead
_SCAN_ROWS = 4096  # so few rows are scored exactly in less time than an index takes
MULTIPLIED = 8
"""So many queries are scored together by a matrix product; FAISS scores fewer one by one. Processor ms a query of a
million rows, exact KL of 32 latents: FAISS 20 for any number; products 27 for two, 5.5 for eight, 3.0 for 64."""


@dataclass(frozen=True, slots=True)
class Found:
    """Candidates of q queries, not ordered exactly yet.

    values: FAISS values float32 [q, w], best first; rows: int64 [q, w], at least as many as asked for and -1 only
    behind those. exact: whether FAISS's values are of the features themselves, so that they bound what is missing.
    """

    values: Float32
    rows: Rows
    exact: bool


@dataclass(frozen=True, slots=True)
class Spare:
    """How many candidates are looked for beyond those asked for: `rows`, for up to `count`, and in proportion above."""

    rows: int
    count: int

    @classmethod
    def of(cls, candidates: int, k: int) -> Spare:
        """Return what finds this many candidates for k rows; k + 1, the query's own among them, take no fewer each."""
        return cls(max(0, candidates - k), k + 1)

    def beyond(self, count: int) -> int:
        """Return how many more than `count`."""
        return int(np.ceil(self.rows * max(1.0, count / self.count)))


class Planner:
    """A FAISS index with where its features lie, and how it is searched; safe to use from several threads at once.

    An index over a flat storage holds its features itself. One of codes is searched for more candidates than are asked
    for, which the caller then scores by their features.
    """

    def __init__(self, index: Any, features: Float32 | None, spare: Spare | None = None) -> None:
        """index: a CPU FAISS index. features: float32 [n, f] of an index of codes, None where it stores them.

        spare: how many more candidates are looked for.

        Raises IntegrityError for an index of codes without features, or with those of other rows.
        """
        faiss = load_faiss()
        self._index = index
        self._wrapped = isinstance(index, faiss.IndexPreTransform)
        self._inner = faiss.downcast_index(index.index) if self._wrapped else index
        self._storage = None if features is not None else _flat_storage(index)
        self.features: Float32 = _stored_features(index, self._storage) if features is None else features
        if self.features.shape != (int(index.ntotal), int(index.d)):
            raise IntegrityError(
                f"the index is of {index.ntotal:,} rows x {index.d} features, its file of features of "
                f"{' x '.join(f'{side:,}' for side in self.features.shape)}; they do not belong together"
            )
        self._graph = hasattr(self._inner, "hnsw")
        self._cells = hasattr(self._inner, "nlist")
        self._flat = self._storage is index
        self._l2 = index.metric_type == faiss.METRIC_L2
        self._spare = spare or Spare(0, 1)
        self._helps = True  # to scan in place of a walk, to look on where too little was found

    @property
    def stored(self) -> bool:
        """Whether the index itself holds its features."""
        return self._storage is not None

    @property
    def spare(self) -> Spare:
        """How many candidates are looked for beyond those asked for."""
        return self._spare

    @property
    def cells(self) -> int:
        """The number of cells of an inverted file, 1 for any other index."""
        return int(self._inner.nlist) if self._cells else 1

    def all_exact(self, count: int, allowed: RowFilter | None = None) -> bool:
        """Return whether a search for `count` rows scores every row that is allowed, and so misses none."""
        rows = int(self._index.ntotal)
        there = rows if allowed is None else len(allowed)
        return rows == 0 or self._scans(there / rows, rows, self._asked(count, there))

    def walks(self, count: int) -> bool:
        """Return whether a search for `count` rows uses the index, and does not score every row: there are so few."""
        rows = int(self._index.ntotal)
        return rows > 0 and not self._scans(1.0, rows, count)

    def exactly(self) -> Planner:
        """Return a planner of the same index that scores every allowed row, whatever the index is."""
        exact = copy.copy(self)
        exact._flat = True
        return exact

    def without_rows(self, rows: Rows) -> Planner:
        """Return a planner of the same index that no walk through a graph leads to these rows; others are the same."""
        if not self._graph or not len(rows):
            return self
        beside = self.features if self._storage is None else None
        return Planner(graph_without(self._index, rows, self.features), beside, self._spare)

    @contextmanager
    def as_set(self) -> Iterator[None]:
        """Search with the effort that is set, whatever it finds: rows that it lacks stay -1.

        For tuning: an effort that finds next to nothing would else seem to find all, by what is looked through instead
        of it or after it. A graph is walked however few rows it has: others may read its file.
        """
        self._helps = False
        try:
            yield
        finally:
            self._helps = True

    def set_effort(self, name: str, value: int, *, k: int = 1) -> None:
        """Set what trades recall for time: `ef_search`, `nprobe`, or `candidates`, of a search for k rows."""
        if name == "ef_search":
            self._inner.hnsw.efSearch = value
        elif name == "nprobe":
            self._inner.nprobe = value
        elif name == "candidates":
            self._spare = Spare.of(value, k)
        else:
            raise ConfigError(f"{name!r} is no effort of a search; one of ef_search, nprobe, candidates")

    def find(self, features: Float32, count: int, allowed: RowFilter | None) -> Found:
        """Return at least `count` candidates of every query [q, f]; there must be as many allowed rows."""
        rows = int(self._index.ntotal)
        share = 1.0 if allowed is None else len(allowed) / rows
        asked = self._asked(count, rows if allowed is None else len(allowed))
        if self._scans(share, rows, asked):
            return self._scanned(features, count, allowed)
        growth = 1.0 / share if self._helps else 1.0
        found = self._walked(features, asked, allowed, growth)
        short = np.flatnonzero(found.rows[:, count - 1] < 0)
        while len(short) and self._helps:
            growth *= 2.0
            # A graph ends exact at once: what it did not reach is mostly not reached by a longer walk either.
            ended = self._graph or growth >= self._most_growth()
            again = features[short]
            more = self._scanned(again, asked, allowed) if ended else self._walked(again, asked, allowed, growth)
            found.values[short], found.rows[short] = more.values, more.rows
            short = short[more.rows[:, count - 1] < 0]
        return found

    def _asked(self, count: int, there: int) -> int:
        """Return how many candidates to look for where `count` of the `there` allowed rows are wanted."""
        return count if self._storage is not None else min(count + self._spare.beyond(count), there)

    def _scans(self, share: float, rows: int, asked: int) -> bool:
        """Return whether the allowed rows are scored exactly, one by one."""
        if self._flat:
            return True
        if self._helps and asked > rows * _GRAPH_SHARE:
            return True
        few = share * rows <= _SCAN_ROWS
        if self._graph:
            return share < _GRAPH_SHARE or (few and self._helps)
        return share < FEW or few

    def _most_growth(self) -> float:
        return self.cells / max(1, int(self._inner.nprobe)) if self._cells else 1.0

    def _walked(self, features: Float32, asked: int, allowed: RowFilter | None, growth: float) -> Found:
        faiss = load_faiss()
        selector = None if allowed is None else allowed.selector()
        if self._graph:
            # Rows that the filter leaves out take places among the ef nearest, so there must be more of those.
            ef = int(np.ceil(max(asked, int(self._inner.hnsw.efSearch)) * growth))
            parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=ef)
        elif self._cells:
            nprobe = min(int(self._inner.nlist), int(np.ceil(int(self._inner.nprobe) * growth)))
            parameters = faiss.SearchParametersIVF(sel=selector, nprobe=nprobe)
        else:
            parameters = faiss.SearchParameters(sel=selector)
        if self._wrapped:
            parameters = faiss.SearchParametersPreTransform(index_params=parameters)
        values, rows = _searched(self._index, features, asked, parameters)
        return Found(values, rows, exact=self._storage is not None)

    def _scanned(self, features: Float32, count: int, allowed: RowFilter | None) -> Found:
        if len(features) >= MULTIPLIED:
            found = _multiplied(self.features, features, count, allowed, l2=self._l2)
            if not np.isnan(found.values).any():
                return found
        if self._storage is not None:
            selector = None if allowed is None else load_faiss().SearchParameters(sel=allowed.selector())
            return Found(*_searched(self._storage, features, count, selector), exact=True)
        return _nearest(self.features, features, count, allowed, int(self._index.metric_type))


def _multiplied(items: Float32, queries: Float32, count: int, allowed: RowFilter | None, *, l2: bool) -> Found:
    """Return the nearest allowed rows by products; which of two that rounding parts is among them is chance."""
    rows = None if allowed is None else allowed.rows()
    near, best = np.empty((len(queries), count), np.int64), np.empty((len(queries), count), np.float32)
    for start in range(0, len(queries), TOGETHER):
        block = np.s_[start : start + TOGETHER]
        places, values = largest_products(in_blocks(items, rows), queries[block], count, l2=l2)
        order = np.argsort(-values, axis=1, kind="stable")
        near[block], best[block] = np.take_along_axis(places, order, axis=1), np.take_along_axis(values, order, axis=1)
    if l2:
        best = np.sum(np.square(queries, dtype=np.float64), axis=1)[:, None].astype(np.float32) - best
    return Found(best, near if rows is None else rows[near], exact=True)


def _nearest(items: Float32, queries: Float32, count: int, allowed: RowFilter | None, metric: int) -> Found:
    """Return the nearest allowed rows of a file of features, block by block, ties to the lower row."""
    faiss = load_faiss()
    knn = getattr(faiss, "knn_numpy", faiss.knn)  # as for `search` below
    rows = None if allowed is None else allowed.rows()
    sign = -1.0 if metric == faiss.METRIC_INNER_PRODUCT else 1.0
    best, near, start = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64), 0
    for block in in_blocks(items, rows):
        values, places = knn(queries, np.ascontiguousarray(block), min(count, len(block)), metric=metric)
        best, near = np.concatenate([best, values], axis=1), np.concatenate([near, places + start], axis=1)
        order = np.argsort(sign * best, axis=1, kind="stable")[:, :count]
        best, near = np.take_along_axis(best, order, axis=1), np.take_along_axis(near, order, axis=1)
        start += len(block)
    return Found(best, near if rows is None else rows[near], exact=True)


def _searched(index: Any, features: Float32, count: int, parameters: Any) -> tuple[Float32, Rows]:
    values, found = of_numpy(index, "search")(features, count, params=parameters)
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
        raise IntegrityError(
            f"a {type(index).__name__} does not store its features; use an index over a flat storage, or pass the "
            "file of features that was written with it"
        )
    return storage

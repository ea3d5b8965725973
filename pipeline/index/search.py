"""Searching a FAISS index: candidates in float32, then exact scores in float64."""

from __future__ import annotations

import copy
import mmap
import os
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import ConfigError, IntegrityError
from .faiss_module import load_faiss
from .features_file import Source, read_features
from .filters import RowFilter
from .latents import Float32, Float64, LatentArrays, Rows
from .metric import Metric
from .metrics import metric_of_index
from .planner import Found, Planner, Spare

_PAIR_BLOCK = 1 << 22  # float64 values of a temporary array of candidates
_SPARE = 16  # rows looked at beyond k where float32 may have put a nearer one behind, and
_WIDER = 4  # how much further when these were not enough; where terms do not cancel, not further than
_COPIES = 4096  # rows: what is then still as near as the last one kept are copies of it


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


class SearchIndex:
    """A FAISS index and its metric; safe to search from several threads at once.

    Row i of the index is row i of the latents it was built from. The exact scores are computed from its features,
    which the index stores (flat, or a graph over a flat storage) or which lie in a file beside it (codes).
    """

    def __init__(
        self, index: Any, metric: Metric, features: Float32 | None = None, *, spare: Spare | None = None
    ) -> None:
        """index: a CPU FAISS index. features: float32 [n, f] of an index of codes; spare: see `Planner`.

        Raises IntegrityError when the index does not fit the metric, or has no features or others'.
        """
        faiss = load_faiss()
        wanted = faiss.METRIC_L2 if metric.geometry == "l2" else faiss.METRIC_INNER_PRODUCT
        if index.metric_type != wanted:
            raise IntegrityError(
                f"the FAISS index was built for metric type {index.metric_type}, but {metric.name!r} searches by "
                f"{metric.geometry} (type {wanted}); the manifest and the index do not belong together"
            )
        if metric.width is not None and int(index.d) != metric.width:
            raise IntegrityError(
                f"the FAISS index holds {int(index.d)} features a row, {metric.name!r} has {metric.width}; "
                "the manifest and the index do not belong together"
            )
        self.metric = metric
        # Also what is not there yet has a width: an empty index refuses queries of another.
        self.latent_dim = int(metric.recover(np.ones((1, int(index.d)), np.float32)).mean.shape[1])
        self._index = index
        self._whole = True  # not one of the copies below, which are of this process alone
        self.planner = Planner(index, features, spare)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as the bytes of FAISS's file, with the effort that is set; where these are not packed, as a mapped
        file of them, which is then searched where it lies. Raises TypeError for one that was made from another."""
        if not self._whole:
            raise TypeError("an index that searches otherwise than its file says does not travel; send the plain one")
        beside = None if self.planner.stored else self.planner.features
        metric = self.metric if self.metric.name == "codes" else self.metric.name  # the one that is not all in its name
        return _unpacked, (pickle.PickleBuffer(_filed(self._index)), metric, beside, self.planner.spare)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        """The number of features a row."""
        return int(self._index.d)

    def exactly(self) -> SearchIndex:
        """Return this index as one whose every search scores every allowed row: slow, and the truth."""
        exact = copy.copy(self)
        exact._whole = False
        exact.planner = self.planner.exactly()
        return exact

    def without_rows(self, rows: Rows) -> SearchIndex:
        """Return this index as if a graph of it did not hold these rows, which a filter has to leave out besides."""
        apart = copy.copy(self)
        apart._whole = False
        apart.planner = self.planner.without_rows(rows)
        return apart

    @property
    def features(self) -> Float32:
        """The exact features of all rows, float32 [n, f]."""
        return self.features_of(np.s_[:])

    def latents(self, rows: Any) -> LatentArrays:
        """Return what the index knows of the latents of `rows`: enough to query with and to score exactly.

        For `cosine` the means at length 1, for `codes` the bags at length 1, otherwise the latents themselves; those
        that a mask leaves out are 0.
        """
        return self.metric.recover(self.features_of(rows))

    def features_of(self, rows: Any) -> Float32:
        """Return the exact features of `rows` [...], float32 [..., f]."""
        features: Float32 = self.planner.features[rows]
        return features

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
        past = self.metric.cancels or self.planner.all_exact(count, allowed)
        fetch = min(most, count + _SPARE) if past else count
        waiting = [np.arange(len(queries))]
        while waiting:
            asking = waiting.pop()
            asked = queries.take(asking)
            found = self.planner.find(features[asking], fetch, allowed)
            near = self._best(asked, found, count)
            ids[asking, :count], scores[asking, :count] = near
            worst = near.scores[:, -1]
            beyond = worst
            if found.exact and found.rows.shape[1] < most:
                beyond = self.metric.ceiling(found.values[:, -1].astype(np.float64), asked, features[asking])
            if count < most:
                # Candidates that were scored and are not returned score no higher than the last that is.
                ceilings[asking] = beyond if found.rows.shape[1] == count else np.maximum(beyond, worst)
            unsure = asking[beyond >= worst]  # =: a row that is as near, and lower
            if not len(unsure) or fetch == most or not self.planner.all_exact(fetch, allowed):
                continue
            if self.metric.cancels or fetch < _COPIES:
                waiting.append(unsure)
                fetch = min(most, _WIDER * fetch)
            elif len(asking) > 1:  # copies of one photo: for a query alone FAISS mostly keeps the first of them
                waiting.extend(np.split(unsure, len(unsure)))
        return BoundedHits(ids, scores, ceilings)

    def _best(self, queries: LatentArrays, found: Found, count: int) -> Hits:
        """Return the `count` best of every query's candidates, by their exact scores."""
        ids, scores = np.empty((len(queries), count), np.int64), np.empty((len(queries), count))
        step = max(1, _PAIR_BLOCK // max(1, found.rows.shape[1] * self.dim))
        for start in range(0, len(queries), step):
            block = np.s_[start : start + step]
            near, exact = self._ordered(queries.take(block), found.rows[block])
            ids[block], scores[block] = near[:, :count], exact[:, :count]
        return Hits(ids, scores)

    def _query_features(self, queries: LatentArrays) -> Float32:
        missing = queries.missing(self.metric.needs)
        if missing:
            raise ConfigError(
                f"the metric {self.metric.name!r} compares {', '.join(missing)}, which the queries lack; ask with "
                "LatentArrays that hold it, or by item_id"
            )
        if len(queries.not_finite(self.metric.needs)):
            raise ConfigError("a query vector holds NaN or infinity; every value must be finite")
        if self.metric.width is None and queries.mean.shape[1] != self.latent_dim:
            raise ConfigError(
                f"queries of shape {list(queries.mean.shape)} do not fit an index of {self.latent_dim} features a row; "
                "pass rows [q, d] of the release's own model's latents"
            )
        return self.metric.query_features(queries)

    def _ordered(self, queries: LatentArrays, found: Rows) -> tuple[Rows, Float64]:
        exact = self.metric.pair_scores(queries.take(np.s_[:, None]), self.latents(found))
        exact = np.where(found >= 0, exact, -np.inf)
        order = np.lexsort((found, -exact), axis=-1)
        return np.take_along_axis(found, order, axis=1), np.take_along_axis(exact, order, axis=1)


def _filed(index: Any) -> mmap.mmap:
    """Return FAISS's file of an index, mapped and without a name: memory holds no second index."""
    with tempfile.NamedTemporaryFile(prefix="index-") as file:
        load_faiss().write_index(index, file.name)
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _unpacked(data: Any, metric: Metric | str, features: Float32 | None, spare: Spare) -> SearchIndex:
    faiss, held = load_faiss(), np.frombuffer(data, np.uint8)
    index = faiss.read_index(faiss.ZeroCopyIOReader(faiss.swig_ptr(held), len(held)))
    index.referenced_objects = [held]  # as FAISS's own wrappers say it: the index reads from these bytes
    known = metric_of_index(metric, {}, int(index.ntotal)) if isinstance(metric, str) else metric
    return SearchIndex(index, known, features, spare=spare)


def open_index(
    source: Source,
    metric: str,
    *,
    features: Source | Float32 | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> SearchIndex:
    """Return an index from its serialised bytes, or from a local file, which is then mapped and not read.

    metric: its name, as a manifest has it. features: the same of the features' file that was written with an index of
    codes, or its rows; parameters: what the manifest says of how it was built. Raises ConfigError for an unknown
    metric, IntegrityError when the bytes are no index or do not fit the metric.
    """
    faiss = load_faiss()
    said = parameters or {}
    try:
        if isinstance(source, bytes | memoryview):
            index = faiss.deserialize_index(np.frombuffer(source, np.uint8))
        else:
            index = faiss.read_index(os.fspath(Path(source)), faiss.IO_FLAG_MMAP_IFC)
    except (RuntimeError, MemoryError, ValueError) as error:
        raise IntegrityError(f"this is not a FAISS index that can be read here: {error}") from error
    held = features if features is None or isinstance(features, np.ndarray) else read_features(features)
    known = metric_of_index(metric, said, int(index.ntotal))
    spare = Spare.of(int(said["candidates"]), int(said["k"])) if "candidates" in said else None
    return SearchIndex(index, known, held, spare=spare)

"""Searching an index that is made of segments: every segment answers, and their answers merge into one.

A row here is a row of items. Each is one row of one segment; what else a segment holds is dead: it was removed or
changed since the segment was written, and is left out of every search of it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, IntegrityError
from ..forks import FreshLock, renewed_in_children
from .filters import RowFilter
from .latents import Float32, Float64, LatentArrays, Rows
from .planner import Planner
from .search import BoundedHits, SearchIndex

Numbers = NDArray[np.int32]


class SegmentedIndex(SearchIndex):
    """Segments of one metric, searched as one index; safe to search from several threads at once.

    Besides the mapped segments it holds 12 bytes a row, and of a segment with dead rows which of them live.
    """

    def __init__(self, segments: Sequence[SearchIndex], numbers: Numbers, places: Numbers) -> None:
        """numbers, places: int32 [n], of each row of items its segment and the row in that.

        Raises IntegrityError where two rows are one row of a segment, or one that it has not.
        """
        self.metric = segments[0].metric
        self.latent_dim = segments[0].latent_dim
        self._segments, self._numbers, self._places = tuple(segments), numbers, places
        self._whole = True
        self.source: tuple[Any, ...] | None = None  # what opens it from a store's files, and with what
        self._rows_of = tuple(self._rows_in(number) for number in range(len(segments)))
        self._living = tuple(None if (rows >= 0).all() else RowFilter(rows >= 0) for rows in self._rows_of)
        self.planner = _Planners([segment.planner for segment in segments], self._living)
        self._lock = FreshLock()
        self.renew_after_fork()
        renewed_in_children(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as what it was opened with, or as its segments do; as `SearchIndex`."""
        if not self._whole:
            return super().__reduce__()
        return self.source or (SegmentedIndex, (self._segments, self._numbers, self._places))

    def renew_after_fork(self) -> None:
        """Forget the filters: a thread of the parent may have been about to keep one."""
        self._splits: WeakKeyDictionary[RowFilter, tuple[RowFilter, ...]] = WeakKeyDictionary()

    def _rows_in(self, number: int) -> Numbers:
        """Return the row of items that each row of a segment is, int32 [its rows]; -1 where none is."""
        mine = np.flatnonzero(self._numbers == number)
        rows, places = np.full(self._segments[number].rows, -1, np.int32), self._places[mine]
        if len(mine) and (places.min() < 0 or places.max() >= len(rows)):
            raise IntegrityError(
                f"segment {number} of the index has {len(rows):,} rows, but items names its rows {places.min()} to "
                f"{places.max()}; the two do not belong together, roll the channel back"
            )
        rows[places] = mine
        if np.count_nonzero(rows >= 0) != len(mine):
            raise IntegrityError(
                f"two rows of items name one row of segment {number} of the index; the table was not written by a "
                "refresh, roll the channel back"
            )
        return rows

    @property
    def rows(self) -> int:
        """The number of rows that live."""
        return len(self._numbers)

    @property
    def dim(self) -> int:
        """The number of features a row."""
        return self._segments[0].dim

    def exactly(self) -> SegmentedIndex:
        """Return this index as one whose every search scores every allowed row of every segment."""
        exact = copy.copy(self)
        exact._segments = tuple(segment.exactly() for segment in self._segments)
        exact.source, exact._whole = None, False
        exact.planner = _Planners([segment.planner for segment in exact._segments], self._living)
        return exact

    def without_rows(self, rows: Rows) -> SegmentedIndex:
        """Return this index as if no graph of a segment held these rows; a filter has to leave them out."""
        apart = copy.copy(self)
        apart.source, apart._whole = None, False
        numbers, places = self._numbers[rows], self._places[rows]
        apart._segments = tuple(
            segment.without_rows(places[numbers == number]) for number, segment in enumerate(self._segments)
        )
        apart.planner = _Planners([segment.planner for segment in apart._segments], self._living)
        return apart

    def features_of(self, rows: Any) -> Float32:
        """Return the exact features of `rows` [...], float32 [..., f]."""
        wanted = np.arange(self.rows)[rows] if isinstance(rows, slice) else np.asarray(rows)
        numbers, places = self._numbers[wanted], self._places[wanted]
        features = np.empty((*wanted.shape, self.dim), np.float32)
        for number in np.unique(numbers).tolist():
            mine = numbers == number
            features[mine] = self._segments[number].features_of(places[mine])
        return features

    def search_bounded(self, queries: LatentArrays, k: int, *, allowed: Rows | RowFilter | None = None) -> BoundedHits:
        """Return the k nearest rows of every query, and how near a row beyond them could be; as `SearchIndex`."""
        self._query_features(queries)
        if isinstance(allowed, np.ndarray):
            allowed = RowFilter.of_rows(allowed, self.rows)
        if allowed is not None and allowed.size != self.rows:
            raise ConfigError(f"the filter was made for {allowed.size} rows, the index has {self.rows}")
        filters = self._living if allowed is None else self._split(allowed)
        ids = np.full((len(queries), k), -1, np.int64)
        scores = np.full(ids.shape, -np.inf)
        ceilings = np.full(len(queries), -np.inf)
        if k <= 0:
            return BoundedHits(ids, scores, ceilings)
        for number, (segment, within) in enumerate(zip(self._segments, filters, strict=True)):
            if within is not None and not len(within):
                continue
            found = segment.search_bounded(queries, k, allowed=within)
            rows = np.where(found.ids >= 0, self._rows_of[number][found.ids], -1)
            ids, scores, dropped = _merged((ids, scores), (rows, found.scores), k)
            ceilings = np.maximum.reduce([ceilings, found.ceilings, dropped])
        return BoundedHits(ids, scores, ceilings)

    def _split(self, allowed: RowFilter) -> tuple[RowFilter, ...]:
        """Return a filter as one for each segment, remembered while the filter itself is."""
        with self._lock:
            kept = self._splits.get(allowed)
        if kept is not None:
            return kept
        rows = allowed.rows()
        numbers, places = self._numbers[rows], self._places[rows]
        made = tuple(
            RowFilter.of_rows(places[numbers == number], segment.rows) for number, segment in enumerate(self._segments)
        )
        with self._lock:
            self._splits[allowed] = made
        return made


class _Planners(Planner):
    """The planners of all segments, set and asked together."""

    def __init__(self, planners: Sequence[Planner], living: Sequence[RowFilter | None]) -> None:
        self._planners, self._living = planners, living

    @property
    def cells(self) -> int:
        """The most cells that a segment has."""
        return max(planner.cells for planner in self._planners)

    def all_exact(self, count: int, allowed: RowFilter | None = None) -> bool:
        """Return whether a search for `count` rows scores every row that lives; a filter's share is not known here."""
        pairs = zip(self._planners, self._living, strict=True)
        return allowed is None and all(planner.all_exact(count, within) for planner, within in pairs)

    def walks(self, count: int) -> bool:
        """Return whether a search for `count` rows uses the index of any segment."""
        return any(planner.walks(count) for planner in self._planners)

    @contextmanager
    def as_set(self) -> Iterator[None]:
        """Search every segment with the effort that is set, whatever it finds."""
        with ExitStack() as stack:
            for planner in self._planners:
                stack.enter_context(planner.as_set())
            yield

    def set_effort(self, name: str, value: int, *, k: int = 1) -> None:
        """Set what trades recall for time, of every segment."""
        for planner in self._planners:
            planner.set_effort(name, value, k=k)


def _merged(left: tuple[Rows, Float64], right: tuple[Rows, Float64], k: int) -> tuple[Rows, Float64, Float64]:
    """Return the k best of two answers, ids and scores [q, k], ties by row; and the best score that is not among them.

    That score is -inf where nothing was left out.
    """
    ids, scores = (np.concatenate(pair, axis=1) for pair in zip(left, right, strict=True))
    order = np.lexsort((ids, ids < 0, -scores), axis=-1)
    ids, scores = np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)
    return ids[:, :k], scores[:, :k], scores[:, k]

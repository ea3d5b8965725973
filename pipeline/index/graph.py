"""A graph without some of its rows: what photos find that the index does not hold."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .faiss_module import load_faiss
from .latents import Float32, Rows

_ROWS = 1 << 16  # rows whose links are looked at, and
_LINKS = 1 << 11  # lost links that are mended, at a time

Links = NDArray[np.int32]


def graph_without(index: Any, rows: Rows, features: Float32) -> Any:
    """Return a copy of a FAISS graph whose walks never meet these rows; row numbers stay.

    index: an HNSW index, perhaps behind a rotation. features: float32 [n, f], by which rows are near. A link to a row
    that goes is given to the nearest of those which that row was linked to, as graphs are mended that forget rows; one
    built without them would find about as much or a little more (measured: README, Kinds).
    """
    faiss = load_faiss()
    copied = faiss.deserialize_index(faiss.serialize_index(index))
    graph = (faiss.downcast_index(copied.index) if isinstance(copied, faiss.IndexPreTransform) else copied).hnsw
    gone = np.zeros(int(copied.ntotal) + 1, np.bool_)  # the last: of no link, -1
    gone[rows] = True
    links: Links = faiss.rev_swig_ptr(graph.neighbors.data(), int(graph.neighbors.size()))
    starts = faiss.vector_to_array(graph.offsets)[:-1].astype(np.int64)
    heights = faiss.vector_to_array(graph.levels).astype(np.int64)  # on how many levels a row is
    near = _Nearness(features, inner_product=int(index.metric_type) == faiss.METRIC_INNER_PRODUCT)
    for level in range(int(heights.max(initial=0))):
        begin, width = int(graph.cum_nb_neighbors(level)), int(graph.nb_neighbors(level))
        _mend(links, starts + begin, np.flatnonzero((heights > level) & ~gone[:-1]), width, gone, near)
    left = np.flatnonzero(~gone[:-1])
    if len(left) and gone[int(graph.entry_point)]:
        highest = int(left[np.argmax(heights[left])])
        graph.entry_point, graph.max_level = highest, int(heights[highest]) - 1
    return copied


class _Nearness:
    """How near rows of features are by what FAISS computes; larger is nearer."""

    def __init__(self, features: Float32, *, inner_product: bool) -> None:
        self._features, self._inner = features, inner_product

    def of(self, rows: Rows, others: Links) -> Float32:
        """Return it of rows [p] and others [p, w], float32 [p, w]."""
        held = self._features[others]
        products: Float32 = np.einsum("pf,pwf->pw", self._features[rows], held)
        return products if self._inner else 2 * products - np.einsum("pwf,pwf->pw", held, held)


def _mend(links: Links, starts: Rows, rows: Rows, width: int, gone: NDArray[np.bool_], near: _Nearness) -> None:
    """Replace on one level the links of `rows` to rows that go; starts: where in `links` each row's begin."""
    slots = np.arange(width)
    for begin in range(0, len(rows), _ROWS):
        some = rows[begin : begin + _ROWS]
        held = links[starts[some, None] + slots]
        some = some[gone[held].any(axis=1)]
        held = links[starts[some, None] + slots]
        mended = held.copy()
        lost = np.argwhere(gone[held])
        for first in range(0, len(lost), _LINKS):
            at, slot = lost[first : first + _LINKS].T
            heirs = links[starts[held[at, slot], None] + slots]
            unfit = gone[heirs] | (heirs < 0) | (heirs == some[at, None])
            unfit |= (heirs[:, :, None] == held[at, None, :]).any(axis=2)
            best = np.where(unfit, -np.inf, near.of(some[at], heirs)).argmax(axis=1)
            chosen = heirs[np.arange(len(at)), best]
            mended[at, slot] = np.where(unfit.all(axis=1), -1, chosen)
        # A walk ends at the first empty slot.
        order = np.argsort(mended < 0, axis=1, kind="stable")
        links[starts[some, None] + slots] = np.take_along_axis(mended, order, axis=1)

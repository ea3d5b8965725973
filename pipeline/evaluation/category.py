"""Does an item's category follow from its latents? A first look where the catalogue names categories.

A category is a weak teacher: a customer may want the colour. So these are measures beside a release, and no gates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from ..ordering import as_numpy, ranks, run_starts
from .knn import label_hits
from .probe import linear_probe
from .retrieval import retrieve

GALLERY = 60_000  # items that stand for the catalogue in retrieval: a similarity matrix of more would not fit
QUERIES = 1_000
PROBED = 3_000  # items of the probe, a fifth of them asked
KINDS = 20  # the most frequent categories, which the probe tells apart
_ASKED = 0.2
# One strength and few steps: with hundreds of dimensions each fit takes seconds, and releases are compared with each
# other. Tables that compare models choose the strength (`linear_probe`).
_STRENGTH = 0.1
_STEPS = 60


@dataclass(frozen=True, slots=True)
class Answers:
    """How well items were answered for: values float64 [q] of the items whose first photos are at rows int64 [q]."""

    rows: NDArray[np.int64]
    values: NDArray[np.float64]


def category_answers(items: pa.Table, vectors: ArrayLike, category: str, *, seed: int) -> dict[str, Answers]:
    """Return how well each asked item is answered for, by the names of measures; nothing below two items with one.

    items: sorted by item_id, one row a photo, with the column `category`; vectors: float [n, d], one row a photo. Only
    an item's first photo takes part: others would vote for their own item's category. category_knn: of a seeded sample,
    k-NN as `knn.label_knn`. category_precision_at_10, category_map_at_r, category_ndcg_at_10: of up to QUERIES seeded
    items among up to GALLERY ones, cosine, the query's own item left out; over queries whose category another item has.
    category_probe: `linear_probe` of a fifth of up to PROBED items of the KINDS most frequent categories, fitted on the
    others, where these hold two categories. Precision and MAP@R depend on the size of the gallery: compare releases of
    about one size.
    """
    rows, labels = first_photos(items, category)
    if len(labels) < 2:
        return {}
    matrix = _taken(vectors, rows)
    asked, hits = label_hits(matrix, labels, seed=seed)
    found = {"category_knn": Answers(asked, hits.astype(np.float64))}
    found |= {**_retrieved(matrix, labels, seed), **_probed(matrix, labels, seed)}
    return {name: Answers(rows[one.rows], one.values) for name, one in found.items()}


def first_photos(items: pa.Table, category: str) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return the rows [a] of items' first photos that have a category, and its number [a] among the texts in order."""
    if not items.num_rows:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    known = run_starts(items["item_id"]) & as_numpy(pc.is_valid(items[category])).astype(np.bool_)
    return np.flatnonzero(known), ranks(items[category].filter(pa.array(known)).cast(pa.string()))[0]


def _taken(vectors: ArrayLike, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Return these rows of a matrix, without a copy where they are all of them."""
    matrix = np.asarray(vectors)
    return matrix if len(rows) == len(matrix) else np.asarray(matrix[rows])


def _retrieved(matrix: NDArray[Any], labels: NDArray[Any], seed: int) -> dict[str, Answers]:
    """Return the retrieval measures of each query by its place; nothing where every item has its own category."""
    picked = np.sort(np.random.default_rng([seed, 0]).permutation(len(labels))[:GALLERY])
    kinds, numbers, counts = np.unique(labels[picked], return_inverse=True, return_counts=True)
    if len(kinds) == len(picked):
        return {}
    paired = np.flatnonzero(counts[numbers] > 1)
    asked = np.sort(np.random.default_rng([seed, 1]).permutation(paired)[:QUERIES])
    gallery = matrix[picked]
    found = retrieve(
        gallery, numbers, gallery[asked], numbers[asked], gallery_ids=np.arange(len(picked)), query_ids=asked, seed=seed
    )
    places = picked[asked[found.rows]]
    return {
        "category_precision_at_10": Answers(places, found.precision),
        "category_map_at_r": Answers(places, found.average_precision),
        "category_ndcg_at_10": Answers(places, found.ndcg),
    }


def _probed(matrix: NDArray[Any], labels: NDArray[Any], seed: int) -> dict[str, Answers]:
    """Return whether the probe names each asked item's category, by its place; nothing where too few are known."""
    picked = np.random.default_rng([seed, 2]).permutation(len(labels))[:GALLERY]
    kinds, counts = np.unique(labels[picked], return_counts=True)
    frequent = kinds[np.argsort(-counts, kind="stable")[:KINDS]]
    picked = picked[np.isin(labels[picked], frequent)][:PROBED]
    asked, known = np.split(picked, [max(1, round(_ASKED * len(picked)))])
    if len(np.unique(labels[known])) < 2:
        return {}
    probe = linear_probe(
        matrix[known], labels[known], matrix[asked], labels[asked], strengths=[_STRENGTH], steps=_STEPS, seed=seed
    )
    return {"category_probe": Answers(asked, probe.correct.astype(np.float64))}

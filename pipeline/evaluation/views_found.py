"""What a space is worth where nothing is known of the photos: does it know a product again?

An item's other photos, and views of one photo: mirrored, nearer, a little darker. Both say less than categories do: a
space can know each photo again and still not tell a boot from a shoe.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .retrieval import retrieve

Float64 = NDArray[np.float64]

VIEW_MEASURES = ("item_found", "view_found")


def ask_items(vectors: ArrayLike, items: Sequence[str], asked: NDArray[np.bool_], *, seed: int = 0) -> Float64:
    """Return whether another photo of its item is among each asked photo's nearest ten, float64 [n] of 0 and 1.

    vectors: float [n, d]; items: [n]; asked: bool [n]. By cosine, of all other photos, itself left out by its row. NaN
    for photos that are not asked or are their item's only one.
    """
    matrix, names = np.asarray(vectors, np.float32), np.asarray(items, np.str_)
    _, places, counts = np.unique(names, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(np.asarray(asked, np.bool_) & (counts[places] > 1))
    found = np.full(len(matrix), np.nan)
    if len(rows):
        near = retrieve(
            matrix, names, matrix[rows], names[rows], gallery_ids=np.arange(len(matrix)), query_ids=rows, seed=seed
        )
        found[rows[near.rows]] = near.hit
    return found


def ask_views(vectors: ArrayLike, views: ArrayLike, asked: NDArray[np.bool_], *, seed: int = 0) -> Float64:
    """Return whether a view of each asked photo has that photo as its nearest, float64 [n] of 0 and 1, NaN elsewhere.

    vectors: float [n, d] of the photos; views: float [asked, d], one of each asked photo in their order; by cosine, of
    all photos.
    """
    matrix, shown = np.asarray(vectors, np.float32), np.asarray(views, np.float32)
    rows = np.flatnonzero(np.asarray(asked, np.bool_))
    found = np.full(len(matrix), np.nan)
    if len(rows):
        near = retrieve(matrix, np.arange(len(matrix)), shown, rows, k=1, seed=seed)
        found[rows[near.rows]] = near.hit
    return found

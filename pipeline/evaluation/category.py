"""Does an item's category follow from its neighbours'? A first look at latents where the catalogue names categories."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike

from .knn import label_knn


def category_knn(items: pa.Table, vectors: ArrayLike, category: str, *, seed: int) -> float | None:
    """Return the k-NN accuracy of categories over a seeded sample of items, in 0..1, or None below two known ones.

    items: sorted by item_id, one row a photo, with the column `category`; vectors: float [n, d], one row a photo. Only
    an item's first photo takes part: others would vote for their own item's category. k-NN as `knn.label_knn`.
    """
    if items.num_rows < 2:
        return None
    ids = items["item_id"].combine_chunks()
    first = pa.concat_arrays([pa.array([True]), pc.not_equal(ids.slice(1), ids.slice(0, len(ids) - 1))])
    asked = pc.and_(first, pc.is_valid(items[category]).combine_chunks())
    labels = np.asarray(items[category].filter(asked).cast(pa.string()).to_pylist())
    if len(labels) < 2:
        return None
    return label_knn(np.asarray(vectors)[np.asarray(asked)], labels, seed=seed)

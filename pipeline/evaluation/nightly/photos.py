"""Which photos are looked at once more: of few stretches of the files that hold their pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...ordering import as_numpy, ranks, take_rows
from .sampling import hashes, topped_up
from .tonight import Tonight

Rows = NDArray[np.int64]

_STRETCH = 1024  # photos that are read together: a row group of a part
_STRETCHES = 32  # so at most 32 x 1,024 photos are read, and at most 32 parts
_EACH = 30  # photos of each frequent category
_PLACES = ["pixels_part", "pixels_row", "latents_part", "latents_row"]


def chosen_photos(tonight: Tonight) -> tuple[Rows, int]:
    """Return the rows of photos to look at, and how many of them, the first, are the uniform sample.

    The first photos of `queries` items, and up to _EACH of each of the most frequent categories. Where pixels lie in
    more than _STRETCHES stretches of 1,024, those with the lowest hashes are chosen first and the items among theirs: a
    hundred gigabytes are not read for a thousand photos. Of photos whose pixels are not kept there are no more than
    `fetched`: the sample ends before the next one, or it would be of the kept ones; where it is 0 these alone count.
    """
    order = tonight.firsts[tonight.order]
    candidates = order[np.isin(order, _within_reach(tonight))]
    kept = as_numpy(tonight.night.items["pixels_part"].is_valid()).astype(np.bool_)
    if not tonight.config.fetched:
        candidates = candidates[kept[candidates]]
    within = np.cumsum(~kept[candidates]) <= tonight.config.fetched
    chosen = candidates[within][: tonight.config.queries]
    return topped_up(chosen, candidates[kept[candidates]], tonight.labels, each=_EACH), len(chosen)


def _within_reach(tonight: Tonight) -> Rows:
    rows = tonight.firsts
    places = take_rows(tonight.night.items.select(_PLACES), rows)
    kept, names = ranks(places["pixels_part"])
    others, other_names = ranks(places["latents_part"])  # photos whose pixels are not kept lie apart as their latents
    numbers = np.where(kept >= 0, kept, len(names) + others)
    held = [as_numpy(places[name], missing=0).astype(np.int64) for name in ("pixels_row", "latents_row")]
    stretches = numbers << 32 | np.where(kept >= 0, held[0], held[1]) // _STRETCH
    found, own = np.unique(stretches, return_inverse=True)
    if len(found) <= _STRETCHES:
        return rows
    every = [*names, *other_names]
    texts = [f"{every[one >> 32]}:{one & 0xFFFFFFFF}" for one in found.tolist()]
    chosen = np.argsort(hashes(texts, tonight.config.seed), kind="stable")[:_STRETCHES]
    near: Rows = rows[np.isin(own, chosen)]
    return near

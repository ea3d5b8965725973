"""Items that look the same to the model: placeholders saved anew, one product listed twice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..measured import Measured
from .intervals import wilson
from .tonight import Found, LeftOut, Tonight

CLOSE = 0.01  # of the median distance between two items
_PAIRS = 20_000
_EXAMPLES = 10


def near_duplicates(tonight: Tonight) -> Found:
    """Return `near_duplicate_share` of the asked items in tonight's index, and `largest_near_share` of the sampled.

    Near is a distance of latents' means (for cosine of their directions) below CLOSE of the median between two sampled
    items. A group is what such pairs join among each sampled item's nearest ten. Examples: of the nearest pairs, and
    of the group.
    """
    rows, seed = tonight.sample, tonight.config.seed
    if len(rows) < 3:
        return LeftOut(f"{len(rows)} items have no usual distance; it takes 3")
    vectors = tonight.vectors(rows)
    limit = CLOSE * usual_distance(vectors, seed=seed)
    asked = tonight.firsts[tonight.asked.items]
    apart = _nearest_distance(tonight)
    close = np.flatnonzero(apart <= limit)
    closest = tonight.names(asked[close[np.argsort(apart[close], kind="stable")[:_EXAMPLES]]])
    share, ends = len(close) / len(asked), wilson(len(close), len(asked))
    group = largest_group(vectors, tonight.sample_near, limit)
    group_ends = wilson(len(group), len(rows))
    members = tonight.names(rows[group[:_EXAMPLES]])
    return [
        Measured("near_duplicate_share", share, *ends, n=len(asked), examples=closest),
        Measured("largest_near_share", len(group) / len(rows), *group_ends, n=len(rows), examples=members),
    ]


def usual_distance(vectors: NDArray[np.float64], *, seed: int) -> float:
    """Return the median distance between seeded pairs of different rows of vectors [n, d]."""
    count = len(vectors)
    dice = np.random.default_rng(seed)
    one = dice.integers(count, size=_PAIRS)
    other = (one + dice.integers(1, count, size=_PAIRS)) % count
    return float(np.median(np.linalg.norm(vectors[one] - vectors[other], axis=1)))


def largest_group(vectors: NDArray[np.float64], near: NDArray[np.int64], limit: float) -> NDArray[np.int64]:
    """Return the rows of the largest group that pairs (a row and one of its near [n, k]) within the limit join, none
    where there is no pair."""
    # scipy is there wherever a release is made (scikit-learn brings it); whoever reads one need not have it.
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count, width = near.shape
    one, other = np.repeat(np.arange(count), width), near.ravel()
    close = np.linalg.norm(vectors[one] - vectors[other], axis=1) <= limit
    pairs = coo_matrix((np.ones(int(close.sum())), (one[close], other[close])), shape=(count, count))
    labels = connected_components(pairs, directed=False)[1]
    found: NDArray[np.int64] = np.flatnonzero(labels == np.argmax(np.bincount(labels)))
    return found if len(found) > 1 else found[:0]


def _nearest_distance(tonight: Tonight) -> NDArray[np.float64]:
    """Return the distance of each asked item to the nearest photo of its neighbours, float64 [q], inf without any."""
    asked, sizes = tonight.asked, tonight.groups.sizes
    places, columns = np.nonzero(asked.near >= 0)
    others = asked.near[places, columns]
    counts = sizes[others]
    own = np.repeat(places, counts)
    before = np.cumsum(counts) - counts
    rows = np.repeat(tonight.firsts[others], counts) + np.arange(len(own)) - np.repeat(before, counts)
    gaps = tonight.vectors(rows) - tonight.vectors(tonight.firsts[asked.items])[own]
    found = np.full(len(asked.items), np.inf)
    np.minimum.at(found, own, np.linalg.norm(gaps, axis=1))
    return found

"""Does a re-shot photo of a product find that product in tonight's index?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ...index import Grouping, LatentArrays, SearchIndex, nearest_groups
from ..measured import Measured
from .intervals import wilson
from .sampling import by_kind
from .tonight import NEAR, Found, LeftOut, Tonight

_EXAMPLES = 10


def photo_recall(tonight: Tonight) -> Found:
    """Return `photo_recall` and `photo_recall_at_1`, also by category; examples: items that were found the latest."""
    looked = tonight.looked
    if isinstance(looked, LeftOut):
        return looked
    owners = tonight.groups.numbers[looked.rows]
    places = own_ranks(tonight.night.index, tonight.groups, looked.first, owners)
    return list(_measured(tonight, places))


def own_ranks(
    index: SearchIndex, groups: Grouping, views: LatentArrays, owners: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the rank, from 1, of each view's own item among the items that the index finds, NEAR + 1 beyond NEAR.

    views: latents [q]; owners: int64 [q], their items' numbers. Only the view asks; its photo is in the index, and is
    what should be found.
    """
    answers = nearest_groups(index, views, np.arange(len(views)), NEAR, groups)
    found = np.full(len(views), NEAR + 1, np.int64)
    for place, (own, hits) in enumerate(zip(owners.tolist(), answers, strict=True)):
        at = np.flatnonzero(hits.groups == own)
        if len(at):
            found[place] = at[0] + 1
    return found


def _measured(tonight: Tonight, places: NDArray[np.int64]) -> Iterator[Measured]:
    looked = tonight.looked
    assert not isinstance(looked, LeftOut)  # noqa: S101 - said by the caller, for the types
    whole = np.arange(looked.uniform)
    for name, within in (("photo_recall", NEAR), ("photo_recall_at_1", 1)):
        for category, asked in [(None, whole), *by_kind(tonight.labels, tonight.kinds, looked.rows)]:
            hits = int((places[asked] <= within).sum())
            low, high = wilson(hits, len(asked))
            lost = asked[places[asked] > within]
            worst = lost[np.argsort(-places[lost], kind="stable")][:_EXAMPLES]
            examples = tonight.names(looked.rows[worst])
            yield Measured(name, hits / len(asked), low, high, category, len(asked), examples)

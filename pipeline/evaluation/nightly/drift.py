"""Are tonight's new items like the others of their categories, and changed photos like those they replace?"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ...catalogue.difference import pair_keys
from ...index.kept_space import release_latents
from ...ordering import as_numpy, take_rows
from ...release import read_table
from ..measured import Measured
from .sampling import hashes
from .tonight import Found, LeftOut, Tonight
from .two_samples import classifier_auc, mmd

Rows = NDArray[np.int64]
Float64 = NDArray[np.float64]

FEWEST = 50  # of fewer new ones nothing can be said
MOST = 1000  # of each side
_EXAMPLES = 10


def drift(tonight: Tonight) -> Found:
    """Return `drift_auc`, `drift_mmd` and `drift_mmd_p` of added items against unchanged ones.

    Of each category there are as many of both, since a week of shoes is no drift; a category that nothing unchanged has
    is left out. Examples: the added items that are the surest told.
    """
    if tonight.night.parent is None:
        return LeftOut("there is no parent, so everything is added")
    added, others = added_and_others(tonight)
    if min(len(added), len(others)) < FEWEST:
        return LeftOut(f"{len(added)} added items and {len(others)} unchanged ones; it takes {FEWEST} of both")
    return _compared("drift", tonight, tonight.vectors(others), added)


def added_and_others(tonight: Tonight) -> tuple[Rows, Rows]:
    """Return the first photos of up to MOST added items, and of as many unchanged ones of the same categories, rows.

    Of a category of which there are fewer unchanged items, only so many added ones are taken.
    """
    new = tonight.change_counts("added") == tonight.groups.sizes
    rows = tonight.firsts[tonight.order]
    new, old = rows[new[tonight.order]], rows[~tonight.fresh[tonight.order]]
    if tonight.labels is None:
        return new[:MOST], old[:MOST]
    labels, sides = tonight.labels, ([np.empty(0, np.int64)], [np.empty(0, np.int64)])
    for kind in np.unique(labels[new]).tolist():
        own, others = new[labels[new] == kind], old[labels[old] == kind]
        # Of more than MOST added items each category has the share of them that it has of all.
        count = min(len(own), len(others), round(len(own) * min(1.0, MOST / len(new))))
        sides[0].append(own[:count])
        sides[1].append(others[:count])
    added, unchanged = (np.concatenate(side) for side in sides)
    return added, unchanged


def drift_changed(tonight: Tonight) -> Found:
    """Return `drift_changed_auc`, `drift_changed_mmd` and `drift_changed_mmd_p` of changed photos, before and after.

    One photo for another of the same product is no drift: some are lighter and some are darker. A new camera, or a
    category that lies on its side, is. Examples: the items whose new photos are the surest told.
    """
    night = tonight.night
    if night.parent is None:
        return LeftOut("there is no parent")
    if night.parent.model_id != night.model_id:
        return LeftOut(f"the parent {night.parent.release_id} is of another bundle, whose latents are not comparable")
    changed = night.changes.filter(pc.equal(night.changes["change"], "changed"))
    if changed.num_rows < FEWEST:
        return LeftOut(f"{changed.num_rows} photos have changed; it takes {FEWEST}")
    order = np.argsort(hashes(changed["item_id"].to_pylist(), tonight.config.seed), kind="stable")
    keys = pair_keys(take_rows(changed, np.sort(order[:MOST])))
    columns = ["item_id", "uri", "latents_part", "latents_row"]
    ids = pc.unique(changed["item_id"])
    old = read_table(tonight.store, night.parent, "items", columns=columns, of_items=ids)
    before, now = _places(old, keys), _places(night.items.select(["item_id", "uri"]), keys)
    both = (before >= 0) & (now >= 0)
    if both.sum() < FEWEST:
        return LeftOut(f"{int(both.sum())} changed photos are in both releases; it takes {FEWEST}")
    former = release_latents(tonight.store, night.parent, take_rows(old, before[both])).mean
    return _compared("drift_changed", tonight, tonight.directed(former), now[both], paired=True)


def _compared(name: str, tonight: Tonight, one: Float64, rows: Rows, *, paired: bool = False) -> list[Measured]:
    """Return the measures of the photos at these rows against other vectors [m, d], or those they had before."""
    vectors, seed = tonight.vectors(rows), tonight.config.seed
    value, low, high, scores = classifier_auc(one, vectors, paired=paired, seed=seed)
    surest = tonight.names(rows[np.argsort(-scores, kind="stable")[:_EXAMPLES]])
    distance = mmd(one, vectors, paired=paired, seed=seed)
    return [
        Measured(f"{name}_auc", value, low, high, n=len(rows), examples=surest),
        Measured(f"{name}_mmd", distance.value, n=len(rows)),
        Measured(f"{name}_mmd_p", distance.p, n=len(rows)),
    ]


def _places(table: pa.Table, keys: pa.Array | pa.ChunkedArray) -> Rows:
    """Return the row of each key (item and photo) in a table, -1 where it has none."""
    return as_numpy(pc.index_in(keys, value_set=_joined(pair_keys(table))), missing=-1).astype(np.int64)


def _joined(keys: pa.Array | pa.ChunkedArray) -> pa.Array:
    return keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys

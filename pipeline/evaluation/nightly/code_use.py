"""Are a model's codes used, and do tonight's photos use the same ones as the others?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from ...index import gather_latents
from ...ordering import ranks, take_rows
from ..measured import Measured
from .drift import FEWEST, added_and_others
from .sampling import hashes
from .tonight import Found, LeftOut, Tonight

Rows = NDArray[np.int64]
Codes = NDArray[np.int32]

_PARTS = 32  # files that codes are read from at most
_PERMUTATIONS = 200


def code_use(tonight: Tonight) -> Found:
    """Return `code_perplexity` and `code_dead_share` of the sampled photos' codes, and how those of added ones differ.

    Codes are read from up to 32 parts; of a larger catalogue the sample is what of it lies in these.
    """
    if not tonight.code_levels:
        return LeftOut("the model has no codes")
    rows = readable(tonight, tonight.sample)
    codes = codes_of(tonight, rows)
    used = sum(len(np.unique(codes[:, places])) for places in tonight.code_levels.values())
    spread = np.mean([perplexity(codes[:, places]) for places in tonight.code_levels.values()])
    found = [
        Measured("code_perplexity", float(spread), n=len(rows)),
        Measured("code_dead_share", 1 - used / max(used, tonight.num_codes), n=len(rows)),
    ]
    if tonight.night.parent is not None:
        added, others = (readable(tonight, side) for side in added_and_others(tonight))
        if min(len(added), len(others)) >= FEWEST:
            sides = codes_of(tonight, others), codes_of(tonight, added)
            value, p = use_difference(*sides, tonight.code_levels, seed=tonight.config.seed)
            found.append(Measured("drift_code_use", value, n=len(added)))
            found.append(Measured("drift_code_use_p", p, n=len(added)))
    return found


def perplexity(codes: Codes) -> float:
    """Return exp of the entropy of how often codes [n, cells] are used: 1 where all are one, K where K are even."""
    counts = np.unique(codes, return_counts=True)[1]
    shares = counts / counts.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def use_difference(one: Codes, other: Codes, levels: Mapping[str, Rows], *, seed: int) -> tuple[float, float]:
    """Return the Jensen-Shannon divergence of two sides' code use in bits, mean over levels, and its p-value.

    one, other: codes [n, cells] and [m, cells]; 0 where codes are used alike, 1 where none is used by both. Of few
    photos it is above 0 also where nothing differs, so the p-value says more: the share of seeded relabellings of
    photos, this one too, with at least as large a value.
    """
    pooled = np.concatenate([one, other])
    dense = [np.unique(pooled[:, places], return_inverse=True)[1] for places in levels.values()]
    tables = [table.reshape(len(pooled), -1) for table in dense]
    sides = np.arange(len(pooled)) < len(one)
    dice = np.random.default_rng(seed)
    value = _divergence(tables, sides)
    others = [_divergence(tables, dice.permutation(sides)) for _ in range(_PERMUTATIONS)]
    return value, float(np.mean([value, *others] >= np.float64(value - 1e-12)))


def _divergence(tables: Iterable[Rows], sides: NDArray[np.bool_]) -> float:
    found = []
    for table in tables:
        width = int(table.max()) + 1
        p, q = (np.bincount(table[side].ravel(), minlength=width) for side in (sides, ~sides))
        p, q = p / p.sum(), q / q.sum()
        middle = (p + q) / 2
        found.append(0.5 * sum(float(np.sum(s[s > 0] * np.log2(s[s > 0] / middle[s > 0]))) for s in (p, q)))
    return float(np.mean(found))


def readable(tonight: Tonight, rows: Rows) -> Rows:
    """Return those rows whose latents lie in the _PARTS parts of the lowest hashes; all where there are no more."""
    if tonight.night.latents.codes is not None:
        return rows
    numbers, names = ranks(take_rows(tonight.night.items.select(["latents_part"]), rows)["latents_part"])
    chosen = np.argsort(hashes(names, tonight.config.seed), kind="stable")[:_PARTS]
    return rows[np.isin(numbers, chosen)]


def codes_of(tonight: Tonight, rows: Rows) -> Codes:
    """Return the codes of rows, int32 [n, cells]."""
    held = tonight.night.latents.codes
    if held is not None:
        return held[rows]
    places = take_rows(tonight.night.items.select(["item_id", "latents_part", "latents_row"]), rows)
    found = gather_latents(tonight.store, places, columns=("codes",)).codes
    return np.empty((0, 0), np.int32) if found is None else found

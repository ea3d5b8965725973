"""How good semantic IDs are: how evenly codes are used, and whether near items share the first of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from ..index import METRICS, LatentArrays, nearest_exact
from ..index.latents import Float64, Rows
from ..index.sids import FACT
from .quantizer import Codes
from .slots import bucket_numbers
from .stored_vectors import Vectors

_ASKED, _AMONG = 1000, 100_000  # items whose neighbours are looked at, and among how many
_NEAR = 10


def usage_measures(codes: Codes, sizes: tuple[int, ...]) -> dict[str, float]:
    """Return how codes [n, levels] are used, by name; sizes: the codes of every level. n is at least 1.

    sid_unique: different sequences / items; sid_alone: share of items whose sequence nobody else has; sid_largest:
    items of the commonest one; sid_gini: of the items of the sequences in use, 0 where all have as many; sid_entropy:
    of the sequences, as a share of log n. By level: sid_perplexity_1, exp of the entropy of its codes, and sid_dead_1,
    the codes that no item has.
    """
    sizes_of = np.bincount(bucket_numbers(codes)).astype(np.int64)
    items = int(sizes_of.sum())
    measures = {
        "sid_unique": len(sizes_of) / items,
        "sid_alone": float(sizes_of[sizes_of == 1].sum() / items),
        "sid_largest": float(sizes_of.max()),
        "sid_gini": gini(sizes_of),
        "sid_entropy": _entropy(sizes_of) / float(np.log(items)) if items > 1 else 1.0,
    }
    for level, size in enumerate(sizes):
        counts = np.bincount(codes[:, level], minlength=size)
        measures[f"sid_perplexity_{level + 1}"] = float(np.exp(_entropy(counts)))
        measures[f"sid_dead_{level + 1}"] = float((counts == 0).sum())
    return measures


def gini(counts: Rows) -> float:
    """Return the Gini coefficient of counts [m], each at least 1: half the mean difference of two, over their mean."""
    ordered = np.sort(counts).astype(np.float64)
    ranks = np.arange(1, len(ordered) + 1)
    return float(((2 * ranks - len(ordered) - 1) * ordered).sum() / (len(ordered) * ordered.sum()))


def purity_measures(codes: Codes, categories: pa.ChunkedArray) -> dict[str, float]:
    """Return by prefix length, sid_purity_1 ..., the share of items of the commonest category of their prefix.

    Items without a category are left out; without any there are no measures.
    """
    encoded = categories.combine_chunks().dictionary_encode()
    encoded = encoded if isinstance(encoded, pa.Array) else pa.concat_arrays(encoded.chunks)
    known = np.asarray(encoded.is_valid())
    if not known.any():
        return {}
    named = encoded.indices.to_numpy(zero_copy_only=False)[known].astype(np.int64)
    categories = len(encoded.dictionary)
    measures = {}
    for length in range(1, codes.shape[1] + 1):
        buckets = bucket_numbers(codes[:, :length] if known.all() else codes[known, :length])
        pairs, counts = np.unique(buckets * categories + named, return_counts=True)
        buckets = pairs // categories
        commonest = np.zeros(int(buckets[-1]) + 1, np.int64)
        np.maximum.at(commonest, buckets, counts)
        measures[f"sid_purity_{length}"] = float(commonest.sum() / len(named))
    return measures


def neighbour_measures(codes: Codes, vectors: Vectors, *, metric: str, seed: int) -> dict[str, float]:
    """Return how much more often the nearest 10 share a prefix than any two items do, of a seeded sample.

    sid_shared_1 ...: share of (item, neighbour) pairs that have the first codes in common, at most 1,000 items asked
    among 100,000. sid_chance_1 ...: the same of all pairs of two different items.
    """
    generator = np.random.default_rng(seed)
    among = np.sort(generator.choice(len(codes), min(len(codes), _AMONG), replace=False))
    if len(among) < 2:
        return {}
    asked = np.sort(generator.choice(len(among), min(len(among), _ASKED), replace=False))
    held = LatentArrays(mean=vectors[among])
    compared = METRICS["cosine" if metric == "cosine" else "l2"]  # of one vector an item, whatever of its photos
    near, _ = nearest_exact(compared, held, held.take(asked), _NEAR, exclude=asked)
    mine, theirs = codes[among][asked][:, None], codes[among][near]
    measures = {}
    for length in range(1, codes.shape[1] + 1):
        measures[f"sid_shared_{length}"] = float((mine[..., :length] == theirs[..., :length]).all(axis=-1).mean())
        counts = np.bincount(bucket_numbers(codes[:, :length])).astype(np.float64)
        measures[f"sid_chance_{length}"] = float((counts * (counts - 1)).sum() / (len(codes) * (len(codes) - 1.0)))
    return measures


def sid_lines(measures: Mapping[str, float], inputs: Mapping[str, Any]) -> list[str]:
    """Return a release's semantic IDs for people, a line a matter; none where it has none. inputs: of its manifest."""
    if FACT not in inputs:
        return []
    levels = range(1, len(inputs[FACT]["levels"]) + 1)

    def by_level(name: str, form: str) -> str:
        return ", ".join(form.format(measures[f"sid_{name}_{level}"]) for level in levels)

    alone, largest = measures["sid_alone"], measures["sid_largest"]
    evenness = f"Gini {measures['sid_gini']:.3f}, entropy {measures['sid_entropy']:.3f}"
    lines = [
        f"epoch {inputs[FACT]['epoch']}; {measures['sid_unique']:.3f} different IDs an item",
        f"{alone:.3f} of the items have one alone, at most {largest:.0f} have the same; {evenness}",
        f"perplexity by level {by_level('perplexity', '{:.0f}')}; dead codes {by_level('dead', '{:.0f}')}",
    ]
    if "sid_purity_1" in measures:
        lines.append(f"one category in a prefix, by its length: {by_level('purity', '{:.3f}')}")
    if "sid_shared_1" in measures:
        shared, chance = by_level("shared", "{:.3f}"), by_level("chance", "{:.4f}")
        lines.append(f"nearest items that share a prefix: {shared}; any two items: {chance}")
    return lines


def _entropy(counts: Rows) -> float:
    """Return the entropy of counts in nats."""
    shares: Float64 = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())

"""Semantic IDs on real photos: the measures, nights of churn, what a refit would have moved.

    python tests/benchmarks/bench_sids.py --data ../shared/data --json sids.json [--items 20000] [--catalogue clothing]

Vectors are the first 64 principal components of the photos' pixels, of clothing of their gradients at 64 pixels, at
length 1; clothing, a tenth as many photos, has levels of fewer codes. All but 1 in 100 are sold at first;
then on each of ten nights 1 in 100 goes and as many come, at random, some of them back.
"""

from __future__ import annotations

import io
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bench_refresh import clothing_rows
from options import NEEDED, Options
from PIL import Image
from record import made_on, tell, write
from sklearn.decomposition import PCA

from pipeline.evaluation.baselines import hog_features
from pipeline.images import ImagesConfig, decode
from pipeline.index import METRICS, LatentArrays, nearest_exact
from pipeline.tables.code_map import matched
from pipeline.tables.quantizer import Codebooks, encode, fit_codebooks
from pipeline.tables.sid_measures import neighbour_measures, purity_measures, usage_measures
from pipeline.tables.slots import Slots, bucket_numbers, give_slots

LEVELS = {
    "fashion_mnist": {"3x256": (256, 256, 256), "1024,256,256": (1024, 256, 256)},
    "clothing": {"3x64": (64, 64, 64), "256,64,64": (256, 64, 64)},
}
NIGHTS = 10


def read_clothing(data: Path) -> tuple[np.ndarray, pa.ChunkedArray]:
    rows = clothing_rows(data)
    config = ImagesConfig(size=64)
    pixels = np.stack([decode((data / "clothing" / row["image"]).read_bytes(), config) for row in rows])
    vectors = PCA(64, random_state=0).fit_transform(hog_features(pixels, cell=8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), pa.chunked_array([pa.array([row["category"] for row in rows])])


def read_vectors(data: Path, items: int) -> tuple[np.ndarray, pa.ChunkedArray]:
    table = pq.read_table(data / "fashion-mnist" / "train.parquet").slice(0, items)
    photos = [np.asarray(Image.open(io.BytesIO(photo))).reshape(-1) for photo in table["image"].to_pylist()]
    vectors = PCA(64, random_state=0).fit_transform(np.stack(photos).astype(np.float32) / 255)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), pa.chunked_array([table["category"].combine_chunks().cast(pa.string())])


def measured(vectors: np.ndarray, categories: pa.ChunkedArray, levels: tuple[int, ...]) -> tuple[Codebooks, Any]:
    began = time.process_time()
    books = fit_codebooks(vectors, levels, seed=0)
    fitted = time.process_time()
    codes = encode(vectors, books)
    ended = time.process_time()
    found = {
        **usage_measures(codes, levels),
        **purity_measures(codes, categories),
        **neighbour_measures(codes, vectors, metric="cosine", seed=0),
    }
    rounded = {name: round(value, 4) for name, value in found.items()}
    return books, {"fit_s": round(fitted - began, 1), "encode_s": round(ended - fitted, 2), **rounded}


def churned(vectors: np.ndarray, books: Codebooks) -> dict[str, Any]:
    """Return what ten nights of churn move, and what suffixes counted anew each night would have moved."""
    generator, churn = np.random.default_rng(0), len(vectors) // 100
    ids = np.array([f"{number:05d}" for number in range(len(vectors))])
    nearest = encode(vectors, books)
    sale = np.ones(len(vectors), np.bool_)
    sale[generator.choice(len(vectors), churn, replace=False)] = False
    slots, moved, anew, owners = Slots.none(3), 0, 0, {}
    before: dict[str, tuple[int, ...]] = {}
    counted: dict[str, tuple[int, ...]] = {}
    handed_on = 0
    for _ in range(NIGHTS + 1):
        rows = np.flatnonzero(sale)
        column = pa.chunked_array([pa.array(ids[rows])])
        given = give_slots(column, nearest[rows], np.empty((0, 0)), books, slots, None)
        now = dict(zip(ids[rows].tolist(), zip(*given.codes.T.tolist(), given.suffixes.tolist(), strict=True),
                       strict=True))  # fmt: skip
        moved += sum(before[item] != slot for item, slot in now.items() if item in before)
        handed_on += sum(owners.setdefault(slot, item) != item for item, slot in now.items())
        by_order = dict(zip(ids[rows].tolist(), zip(*given.codes.T.tolist(), in_order(nearest[rows]), strict=True),
                            strict=True))  # fmt: skip
        anew += sum(counted[item] != slot for item, slot in by_order.items() if item in counted)
        before, counted, gone = now, by_order, given.gone
        text = pa.chunked_array(
            [pa.array([*ids[rows].tolist(), *(slots.item_ids[at].as_py() for at in gone.tolist())])]
        )
        retired = pa.chunked_array([pa.array([None] * len(rows) + ["x"] * len(gone), pa.string())])
        slots = Slots(
            text,
            np.concatenate([given.codes, slots.codes[gone]]),
            np.concatenate([nearest[rows], slots.nearest[gone]]),
            np.concatenate([given.suffixes, slots.suffixes[gone]]),
            text,
            retired,
        )
        going = generator.choice(rows, churn, replace=False)
        sale[generator.choice(np.flatnonzero(~sale), churn, replace=False)] = True
        sale[going] = False
    return {
        "nights": NIGHTS,
        "items_a_night": len(before),
        "moved": moved,
        "slots_given_to_another_item": handed_on,
        "moved_if_suffixes_were_counted_anew": anew,
        "retired_slots_at_the_end": int(len(slots) - len(before)),
    }


def in_order(codes: np.ndarray) -> list[int]:
    """Return suffixes by the order of items alone."""
    numbers = bucket_numbers(codes)
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    suffixes = np.empty(len(codes), np.int64)
    suffixes[order] = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return suffixes.tolist()


def refitted(vectors: np.ndarray, books: Codebooks, seed: int) -> dict[str, float]:
    """Return what a refit after 1 in 100 items have gone leaves in place; level 1 also under the best relabelling."""
    kept = np.delete(vectors, np.arange(0, len(vectors), 100), axis=0)
    old, new = encode(kept, books), encode(kept, fit_codebooks(kept, books.sizes, seed=seed))
    was, now, counts = matched(old[:, 0], new[:, 0], (books.sizes[0], books.sizes[0]))
    return {
        "same_ids": round(float((old == new).all(axis=1).mean()), 5),
        "same_level_1": round(float((old[:, 0] == new[:, 0]).mean()), 4),
        "same_level_1_relabelled": round(float(counts[was, now].sum() / len(kept)), 4),
    }


def batched(vectors: np.ndarray, books: Codebooks) -> dict[str, int]:
    """Return how many of 4,000 vectors get other codes by another batch, here and by an argmin in float32."""
    vectors = vectors[:4000]
    whole = encode(vectors, books)
    found = {}
    for rows in (1, 7, 256):
        pieces = [encode(vectors[start : start + rows], books) for start in range(0, len(vectors), rows)]
        found[f"by_{rows}"] = int((np.concatenate(pieces) != whole).any(axis=1).sum())
    level = books.levels[0]
    usual = (np.sum(level * level, axis=1) - 2 * vectors @ level.T).argmin(axis=1)
    return {**found, "float32_level_1": int((usual != whole[:, 0]).sum())}


def next_items(vectors: np.ndarray, codes: np.ndarray) -> dict[str, float]:
    """Return how often the item bought next is among 100 of all, from a made-up log: with IDs, and with random ones.

    A pair of the log is an item and one of its nearest 20. Learned from 5,000 pairs is how often a first code follows a
    first code; asked are 1,000 pairs of items that the log never began with. The random IDs are the same ones dealt out
    anew, so that only what they say is gone.
    """
    generator = np.random.default_rng(0)
    pairs = min(6000, len(vectors))
    asked = pairs // 6
    begun, learned = generator.choice(len(vectors), pairs, replace=False), pairs - asked
    held = LatentArrays(mean=vectors)
    near, _ = nearest_exact(METRICS["cosine"], held, held.take(begun), 20, exclude=begun)
    following = near[np.arange(pairs), generator.integers(20, size=pairs)]
    dealt = generator.permutation(codes)
    found = {}
    for name, ids in (("hit_rate_with_ids", codes), ("hit_rate_with_random_ids", dealt)):
        first = ids[:, 0].astype(np.int64)
        sizes = np.bincount(first).astype(np.float64)
        counts = np.zeros((len(sizes), len(sizes)))
        np.add.at(counts, (first[begun[:learned]], first[following[:learned]]), 1)
        hits = 0
        for item, wanted in zip(begun[learned:].tolist(), following[learned:].tolist(), strict=True):
            scores = (counts[first[item]] / sizes)[first]
            scores[item] = -1
            scores += 1e-9 * generator.random(len(scores))  # what scores the same comes in random order
            hits += int((scores > scores[wanted]).sum() < 100)
        found[name] = round(hits / asked, 4)
    return {**found, "by_chance": round(100 / len(vectors), 4)}


def main() -> None:
    parser = Options(__doc__, data=NEEDED, json=NEEDED, items=60_000)
    parser.add_argument("--catalogue", choices=sorted(LEVELS), default="fashion_mnist")
    options = parser.parse_args()
    if options.catalogue == "clothing":
        vectors, categories = read_clothing(options.data)
    else:
        vectors, categories = read_vectors(options.data, options.items)
    results: dict[str, Any] = {"items": len(vectors), "dim": vectors.shape[1], "levels": {}}
    books = None
    for name, levels in LEVELS[options.catalogue].items():
        books, results["levels"][name] = measured(vectors, categories, levels)
    assert books is not None
    results["batches_4000"] = batched(vectors, books)
    results["churn_of_1_percent"] = churned(vectors, books)
    results["next_item_in_100"] = next_items(vectors, encode(vectors, books))
    results["refit_without_1_percent"] = refitted(vectors, books, seed=0)
    write(options.json, {**made_on(f"no GPU, Python {platform.python_version()}"), "results": results})
    tell(results, None)


if __name__ == "__main__":
    main()

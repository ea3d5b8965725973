"""A small open benchmark: neighbours of diagonal Gaussians by KL, reverse KL, Jeffreys and W2, and how fast they are.

--set FOLDER is written once: latents of Fashion-MNIST by the preset `vae_fashion_mnist`, trained on a third of the
training photos (all of these are the items, test photos ask), the truth in float64 from the definitions, by NumPy, and
a README of the format. Then every kind of index is held to that truth; and exact KL search over --rows items (the set's
own, drawn again with a jitter of a hundredth of their spread) is timed against torch: the divergence element by
element, and as one matrix product. A B A B, one thread, the same queries; ratios of processor seconds a query, median
and range of all pairs.

    python tests/benchmarks/bench_divergence.py --data ../shared/data --set FOLDER --json results/divergence.json
        [--epochs 3] [--rows 1000000] [--pairs 7] [--only set,kinds,speed]
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_metrics import latents_of
from model_measures import both_parts, preset_config, train
from options import NEEDED, Given, Options, absent, names_of
from record import DATA, add, made_on
from side_by_side import CACHE
from timing import spread

from pipeline.errors import CodebooksError
from pipeline.index import IndexConfig, LatentArrays, build_index

QUERIES, DEPTH, K = 1000, 100, 10
TRAINED_ON = 20_000
SIGMA, WIDEST = 0.01, 20.0  # the narrowest deviation and the widest log variance, part of every metric
MASKS = ("none", "query_median")
Terms = tuple[np.ndarray, np.ndarray, np.ndarray]  # mean, variance, log variance, float64 [.., d]

README = """# Neighbours of diagonal Gaussians: a small open benchmark

Latents of Fashion-MNIST (MIT licence) by a variational autoencoder of {dims} numbers: {items:,} items (its training
photos), {queries:,} queries (test photos, none of them an item). NumPy's own format; row n of `items_*` is item n.

| file | shape | type | what |
|---|---|---|---|
| `items_mean.npy`, `items_log_var.npy` | {items} x {dims} | float32 | means and log variances of the items |
| `queries_mean.npy`, `queries_log_var.npy` | {queries} x {dims} | float32 | those of the queries |
| `items_label.npy`, `queries_label.npy` | | uint8 | the category, of 10 |
| `truth_<metric>[_query_median].npy` | {queries} x {depth} | int32 | the nearest items, nearest first, ties by number |
| `value_<metric>[_query_median].npy` | {queries} x {depth} | float64 | their values, computed from the definition |

Log variances count as no less than 2 ln {sigma} and no more than {widest:g}. Query q, item x, all sums over latents:

- `kl`: sum (ln vx - ln vq + (vq + (mq - mx)^2) / vx - 1) / 2, in nats; `reverse_kl` with q and x changed about;
- `jeffreys`: their sum; `w2`: the root of sum (mq - mx)^2 + (sq - sx)^2, s the deviations;
- `_query_median`: the sum only over latents whose log variance in the query lies below the median of its {dims} (where
  none does, those at it).

Recall@10 is the share of the first ten of `truth` that are among the ten returned. `set.json` has each file's sha256.
"""


def terms(mean: np.ndarray, log_var: np.ndarray) -> Terms:
    wide = np.clip(log_var.astype(np.float64), 2 * np.log(SIGMA), WIDEST)
    return mean.astype(np.float64), np.exp(wide), wide


def _kl(q: Terms, x: Terms) -> np.ndarray:
    return 0.5 * (x[2] - q[2] + (q[1] + (q[0] - x[0]) ** 2) / x[1] - 1.0)


DEFINITIONS: dict[str, Callable[[Terms, Terms], np.ndarray]] = {
    "kl": _kl,
    "reverse_kl": lambda q, x: _kl(x, q),
    "jeffreys": lambda q, x: _kl(q, x) + _kl(x, q),
    "w2": lambda q, x: (q[0] - x[0]) ** 2 + (np.sqrt(q[1]) - np.sqrt(x[1])) ** 2,
}


def truth_of(name: str, mask: str, queries: Terms, items: Terms) -> tuple[np.ndarray, np.ndarray]:
    """Return the DEPTH nearest items of every query and their values, from the definition, a query at a time."""
    ids, values = np.empty((len(queries[0]), DEPTH), np.int32), np.empty((len(queries[0]), DEPTH))
    for at in range(len(queries[0])):
        own = tuple(term[at] for term in queries)
        kept = np.ones(len(own[0]), np.bool_)
        if mask == "query_median":
            middle = np.median(own[2])
            kept = own[2] < middle if (own[2] < middle).any() else own[2] <= middle
        mine = DEFINITIONS[name](tuple(t[kept] for t in own), tuple(t[:, kept] for t in items)).sum(axis=1)  # type: ignore[arg-type]
        value = np.sqrt(mine) if name == "w2" else mine
        near = np.argpartition(value, DEPTH)[:DEPTH]
        order = np.lexsort((near, value[near]))
        ids[at], values[at] = near[order], value[near[order]]
    return ids, values


def write_latents(folder: Path, options: Given) -> None:
    """Train, encode, and write the set's latents."""
    folder.mkdir(parents=True, exist_ok=True)
    source, bank, held = both_parts(options.data, options.cache, "fashion_mnist", 28)
    chosen = np.arange(len(bank.items)) < TRAINED_ON
    model, _ = train(preset_config("vae_fashion_mnist", options.epochs), 0, options.cache, source, bank, chosen=chosen)
    names = sorted(set(bank.categories))
    for side, photos, count in (("items", bank, None), ("queries", held, QUERIES)):
        found = latents_of(model, photos.pixels[:count])
        np.save(folder / f"{side}_mean.npy", found.mean)
        np.save(folder / f"{side}_log_var.npy", found.log_var)
        np.save(folder / f"{side}_label.npy", np.array([names.index(c) for c in photos.categories[:count]], np.uint8))


def write_truth(folder: Path) -> dict[str, Any]:
    """Write the truth of every metric and mask, the README and the digests; what is there is not computed again."""
    items, queries = (terms(*arrays(folder, side)) for side in ("items", "queries"))
    for name in DEFINITIONS:
        for mask in MASKS:
            if (folder / f"value_{file_name(name, mask)}.npy").exists():
                continue
            ids, values = truth_of(name, mask, queries, items)
            np.save(folder / f"truth_{file_name(name, mask)}.npy", ids)
            np.save(folder / f"value_{file_name(name, mask)}.npy", values)
            print(f"truth of {name}, {mask}", flush=True)
    about = {"items": len(items[0]), "queries": len(queries[0]), "dims": items[0].shape[1], "depth": DEPTH}
    (folder / "README.md").write_text(README.format(**about, sigma=SIGMA, widest=WIDEST))
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.npy"))}
    (folder / "set.json").write_text(json.dumps({**about, "sha256": digests}, indent=1) + "\n")
    return {**about, "sha256": digests}


def file_name(metric: str, mask: str) -> str:
    return metric if mask == "none" else f"{metric}_{mask}"


def arrays(folder: Path, side: str) -> tuple[np.ndarray, np.ndarray]:
    return np.load(folder / f"{side}_mean.npy"), np.load(folder / f"{side}_log_var.npy")


def latents(folder: Path, side: str) -> LatentArrays:
    mean, log_var = arrays(folder, side)
    return LatentArrays(mean=mean, log_var=log_var)


# --- every kind held to the truth


def kinds(folder: Path) -> Iterator[dict[str, Any]]:
    items, queries = latents(folder, "items"), latents(folder, "queries")
    # What is exact and two codes of every metric that has terms of single latents, then more kinds under KL.
    both = [(metric, mask) for metric in DEFINITIONS for mask in MASKS if (metric, mask) != ("w2", "none")]
    asked = [(*each, kind) for each in both for kind in ("flat", "ivf_sq8", "ivf_pairs")]
    asked += [("kl", "none", "flat_codes"), ("kl", "none", "ivf_pq")]
    asked += [("w2", "none", "flat"), ("w2", "none", "ivf_sq8")]
    for metric, mask, kind in asked:
        truth = np.load(folder / f"truth_{file_name(metric, mask)}.npy")[:, :K]
        values = np.load(folder / f"value_{file_name(metric, mask)}.npy")[:, :K]
        config = IndexConfig.model_validate(
            {"kind": kind, "metric": metric, "mask": mask, "threads": 1, "target_recall": 0.98, "queries": 300}
        )
        about = {"metric": metric, "mask": mask, "kind": kind}
        yield {**about, **one_kind(items, queries, truth, values, config)}


def one_kind(
    items: LatentArrays, queries: LatentArrays, truth: np.ndarray, values: np.ndarray, config: IndexConfig
) -> dict[str, Any]:
    begun = time.process_time()
    try:
        built = build_index(items, config)
    except CodebooksError as error:
        return {"refused": " ".join(str(error).split())[:200]}
    seconds = time.process_time() - begun
    index = built.index
    index.search(queries.take(np.s_[:10]), K)
    spent, alone = [], []
    for _ in range(5):
        begun = time.process_time()
        hits = index.search(queries, K)
        spent.append(1e3 * (time.process_time() - begun) / len(queries))
    for number in range(len(queries)):
        begun = time.process_time()
        index.search(queries.take(np.s_[number : number + 1]), K)
        alone.append(1e3 * (time.process_time() - begun))
    shared = [len(np.intersect1d(*each)) / truth.shape[1] for each in zip(hits.ids, truth, strict=True)]
    # A value beside the one of the definition is what says that the exact kinds are exact, ties or not.
    wrong = float(np.max(np.abs(-hits.scores - values) / np.maximum(values, 1e-9))) if config.kind == "flat" else None
    return {
        "recall_at_10": round(float(np.mean(shared)), 4),
        "recall_se": round(float(np.std(shared) / len(shared) ** 0.5), 4),
        "reported_recall": round(built.recall_low, 4),
        "mean_recall": round(built.recall, 4),
        "largest_relative_error": wrong,
        "bytes_per_item": round(len(built.data) / len(items), 1),
        "effort": {name: built.parameters[name] for name in ("candidates", "nprobe") if name in built.parameters},
        "batch_cpu_ms": round(float(np.median(spent)), 3),
        "alone_cpu_ms": round(float(np.median(alone)), 3),
        "build_cpu_s": round(seconds, 1),
    }


# --- exact KL beside torch


def speed(folder: Path, rows: int, pairs: int) -> dict[str, Any]:
    """Return seconds a query of ours, of torch element by element, and of torch as one product, and their ratios."""
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    mean, log_var = arrays(folder, "items")
    drawn = generator.integers(len(mean), size=rows)
    many = [
        each[drawn] + (0.01 * each.std(axis=0) * generator.standard_normal((rows, each.shape[1]), np.float32))
        for each in (mean, log_var)
    ]
    items = LatentArrays(mean=many[0].astype(np.float32), log_var=many[1].astype(np.float32))
    queries = latents(folder, "queries").take(np.s_[:64])
    index = build_index(items, IndexConfig(kind="flat", metric="kl", threads=1, queries=1)).index
    ways = {"elementwise": Elementwise(items), "product": Product(items)}
    asked = {"one": 1, "batch_of_64": 64}
    found: dict[str, Any] = {"rows": rows, "dims": items.mean.shape[1], "pairs": pairs}
    for name, count in asked.items():
        for way, theirs in ways.items():
            found[f"{way}_{name}"] = alternated(index, theirs, queries, count, pairs)
            print(way, name, found[f"{way}_{name}"], flush=True)
    return found


def alternated(index: Any, theirs: Any, queries: LatentArrays, count: int, pairs: int) -> dict[str, Any]:
    # Of the processor, on one thread: by the clock other work on the machine would decide.
    ours_s, theirs_s, overlap = [], [], []
    for pair in range(-1, pairs):  # the first warms
        own = queries.take(np.s_[0:64]) if count > 1 else queries.take(np.s_[pair + 1 : pair + 2])
        begun = time.process_time()
        hits = index.search(own, K)
        between = time.process_time()
        near = theirs.search(own.take(np.s_[: theirs.most]), K)
        ended = time.process_time()
        if pair >= 0:
            ours_s.append((between - begun) / count)
            theirs_s.append((ended - between) / len(near))
            overlap.append(np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(hits.ids, near, strict=False)]))
    ratio, *ends = spread(np.array(theirs_s) / np.array(ours_s), 0, 100)
    return {
        "ours_ms": round(1e3 * float(np.median(ours_s)), 3),
        "torch_ms": round(1e3 * float(np.median(theirs_s)), 3),
        "ratio_median": ratio,
        "ratio_range": ends,
        "overlap_at_10": round(float(np.mean(overlap)), 4),
    }


class Elementwise:
    """KL by `torch.distributions`, summed over latents, a query at a time, as it is usually written."""

    most = 4  # of a batch: each takes as long

    def __init__(self, items: LatentArrays) -> None:
        assert items.log_var is not None
        deviation = torch.from_numpy(np.exp(0.5 * items.log_var)).clamp(min=SIGMA)
        self.items = torch.distributions.Normal(torch.from_numpy(items.mean), deviation)

    @torch.inference_mode()
    def search(self, queries: LatentArrays, k: int) -> np.ndarray:
        assert queries.log_var is not None
        found = []
        for mean, log_var in zip(queries.mean, queries.log_var, strict=True):
            own = torch.distributions.Normal(
                torch.from_numpy(mean), torch.from_numpy(np.exp(0.5 * log_var)).clamp(min=SIGMA)
            )
            values = torch.distributions.kl_divergence(own, self.items).sum(dim=1)
            found.append(torch.topk(values, k, largest=False).indices.numpy())
        return np.stack(found)


class Product:
    """KL as one matrix product of the same features, in float32, and `topk`."""

    most = 64

    def __init__(self, items: LatentArrays) -> None:
        mean, var, log_var = terms(items.mean, items.log_var)  # type: ignore[arg-type]
        last = (mean * mean / var + log_var).sum(axis=1, keepdims=True)
        self.items = torch.from_numpy(np.concatenate([1.0 / var, mean / var, last], axis=1).astype(np.float32))

    @torch.inference_mode()
    def search(self, queries: LatentArrays, k: int) -> np.ndarray:
        mean, var, _ = terms(queries.mean, queries.log_var)  # type: ignore[arg-type]
        own = np.concatenate([var + mean * mean, -2.0 * mean, np.ones((len(mean), 1))], axis=1).astype(np.float32)
        return torch.topk(torch.from_numpy(own) @ self.items.T, k, dim=1, largest=False).indices.numpy()


def main() -> None:
    options = Options(
        __doc__, data=DATA, cache=CACHE, set=NEEDED, json=NEEDED, epochs=int, rows=1_000_000, pairs=7,
        only="set,kinds,speed",
    ).parse_args()  # fmt: skip
    parts = names_of(options.only, ("set", "speed", "kinds"), "parts")
    if not (options.set / "queries_label.npy").exists():
        if absent(options.data):
            return
        write_latents(options.set, options)
    said = made_on("one thread, shared with other work")
    if "set" in parts:
        epochs = preset_config("vae_fashion_mnist", options.epochs).train.epochs
        add(options.json, {**write_truth(options.set), "epochs": epochs, **said}, "set")
    if "speed" in parts:
        add(options.json, {**speed(options.set, options.rows, options.pairs), **said}, "speed")
    if "kinds" in parts:
        rows = []
        for row in kinds(options.set):
            print(json.dumps(row), flush=True)
            rows.append({**row, **said})
            add(options.json, rows, "kinds")


if __name__ == "__main__":
    main()

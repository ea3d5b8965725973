"""Every metric and mask of the index on Gaussian latents: do the latents of low variance alone find best?

The presets `vae` and `cvae` of a catalogue, three seeds each, trained on the photos to learn from; the held-out photos
are asked of those (of `--gallery` of them, drawn once), exactly, by `index/metrics.py`: k-NN (k = 10, majority, ties
to the nearest), precision at 10, MAP@R. A CVAE is told no category, neither of what is asked nor of what is there.
Masks by the catalogue are those of the photos that answer. Values of a query are averaged over seeds; intervals and
differences (95 %, bootstrap) over queries, of clothing over contributors. Clothing is split as of old, 279 held out.

    python tests/benchmarks/bench_metrics.py --data ../shared/data --json results/metrics.json [--catalogues clothing]
        [--models vae,cvae] [--seeds 0,1,2] [--epochs 3] [--gallery 20000] [--queries 1000]
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from model_measures import SIZES, Photos, both_parts, preset_config, train
from options import NEEDED, Given, Options, absent, names_of
from record import DATA, add, made_on
from side_by_side import CACHE

from jobs.config import Config
from pipeline.evaluation.folds import group_difference, group_mean
from pipeline.evaluation.knn import elected
from pipeline.index import MASKED, LatentArrays, Metric, fitted_metric, nearest_exact, needs_of
from pipeline.models import Batch, Model

MEASURES = ("knn", "precision_at_10", "map_at_r")
K, BLOCK = 10, 128


@dataclass(frozen=True)
class Asked:
    """What answers and what is asked: photos with their categories as numbers; groups: of those asked."""

    gallery: Photos
    queries: Photos
    known: np.ndarray
    truth: np.ndarray
    groups: list[str]


def drawn(photos: Photos, most: int, seed: int) -> Photos:
    """Return at most so many photos, drawn by a seed."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(photos.items))[:most])
    names = ([held[row] for row in rows] for held in (photos.categories, photos.items, photos.groups))
    return Photos(photos.pixels[rows], *names)


@torch.inference_mode()
def latents_of(model: Model, pixels: np.ndarray) -> LatentArrays:
    """Return the latents of photos uint8 [n, s, s, 3]; a conditional model is told no category."""
    model.eval()
    told = torch.zeros(BLOCK, dtype=torch.long) if getattr(model, "conditional", False) else None
    means, log_vars = [], []
    for start in range(0, len(pixels), BLOCK):
        images = torch.from_numpy(pixels[start : start + BLOCK].transpose(0, 3, 1, 2).copy())
        found = model.encode_batch(Batch(images, None if told is None else told[: len(images)]))
        assert found.log_var is not None
        means.append(found.mean.numpy())
        log_vars.append(found.log_var.numpy())
    return LatentArrays(mean=np.concatenate(means), log_var=np.concatenate(log_vars))


def ranked(metric: Metric, items: LatentArrays, queries: LatentArrays) -> Iterator[np.ndarray]:
    """Yield, a block of queries at a time, all rows from near to far, by the metric's features in float64."""
    known, asked = metric.item_features(items).astype(np.float64), metric.query_features(queries).astype(np.float64)
    for start in range(0, len(asked), BLOCK):
        near = asked[start : start + BLOCK] @ known.T
        if metric.geometry == "l2":
            near = 2.0 * near - np.sum(known * known, axis=1)
        yield np.argsort(-near, axis=1, kind="stable")


def values_of(metric: Metric, items: LatentArrays, queries: LatentArrays, asked: Asked) -> dict[str, np.ndarray]:
    """Return MEASURES of every query, float64 [q]."""
    near, scores = nearest_exact(metric, items, queries, K)
    correct = (elected(asked.known[near], scores, None) == asked.truth).astype(np.float64)
    precision, average, at = np.empty(len(correct)), np.empty(len(correct)), 0
    for order in ranked(metric, items, queries):
        for row in order:
            fits = asked.known[row] == asked.truth[at]
            relevant = int(fits.sum())
            hits = fits[:relevant]
            precision[at] = fits[:K].mean()
            average[at] = (np.cumsum(hits) / np.arange(1, relevant + 1) * hits).sum() / max(1, relevant)
            at += 1
    return {"knn": correct, "precision_at_10": precision, "map_at_r": average}


def of_seed(
    config: Config, seed: int, photos: tuple[str, Photos], asked: Asked, cache: Path
) -> dict[str, np.ndarray | float]:
    """Return every measure of every metric and mask, a value a query, of one training."""
    model, spent = train(config, seed, cache, *photos)
    items, queries = (latents_of(model, photos.pixels) for photos in (asked.gallery, asked.queries))
    assert queries.log_var is not None
    found: dict[str, np.ndarray | float] = {
        "train_cpu_s": spent["train_cpu_s"],
        "median_variance": float(np.median(np.exp(queries.log_var).mean(axis=0))),
        "dims": items.mean.shape[1],
    }
    for metric, masks in MASKED.items():
        for mask in masks:
            if not items.missing(needs_of(metric, mask)) and not metric.startswith("codes"):
                own = values_of(fitted_metric(metric, mask, items), items, queries, asked)
                found |= {f"{metric}|{mask}|{each}": values for each, values in own.items()}
    return found


def of_model(name: str, photos: tuple[str, Photos], asked: Asked, options: Given) -> dict[str, Any]:
    """Return the rows of one preset: every metric and mask, averaged over seeds; what is kept is not trained again."""
    config = preset_config(name, options.epochs)
    found: dict[tuple[str, str], list[dict[str, np.ndarray]]] = {}
    seconds, low_var = [], []
    for seed in map(int, options.seeds.split(",")):
        kept = (
            options.cache / "metrics" / f"{name}-{seed}-{config.train.epochs}-{len(asked.known)}-{len(asked.truth)}.npz"
        )
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            np.savez(kept, **of_seed(config, seed, photos, asked, options.cache))
        values = dict(np.load(kept))
        seconds.append(round(float(values.pop("train_cpu_s")), 1))
        low_var.append(round(float(values.pop("median_variance")), 4))
        dims = int(values.pop("dims"))
        for key in dict.fromkeys(each.rpartition("|")[0] for each in values):
            metric, mask = key.split("|")
            own = {each: values[f"{key}|{each}"] for each in MEASURES}
            found.setdefault((metric, mask), []).append(own)
        print(name, seed, seconds[-1], f"{np.mean(found['cosine', 'none'][-1]['knn']):.3f}", flush=True)
    means = {
        key: {each: np.mean([one[each] for one in own], axis=0) for each in MEASURES} for key, own in found.items()
    }
    rows = [
        {
            "metric": metric, "mask": mask,
            **{each: spread(means[metric, mask][each], asked.groups) for each in MEASURES},
            "knn_by_seed": [round(100 * float(one["knn"].mean()), 2) for one in found[metric, mask]],
            "to_no_mask": ahead(means[metric, mask], means[metric, "none"], asked.groups),
            "to_cosine": ahead(means[metric, mask], means["cosine", "none"], asked.groups),
        }
        for metric, mask in found
    ]  # fmt: skip
    about = {"preset": name, "dims": dims, "epochs": config.train.epochs, "train_cpu_s": seconds}
    return {**about, "median_variance": low_var, "gallery": len(asked.known), "queries": len(asked.truth), "rows": rows}


def spread(values: np.ndarray, groups: list[str]) -> list[float]:
    """Return mean and 95 % interval in per cent."""
    told = group_mean(values, groups)
    return [round(100 * value, 2) for value in (told.mean, told.low, told.high)]


def ahead(values: dict[str, np.ndarray], base: dict[str, np.ndarray], groups: list[str]) -> dict[str, list[float]]:
    """Return how far values are above others by the same queries, in points, with 95 % intervals."""
    differences = {each: group_difference(values[each], base[each], groups) for each in MEASURES}
    return {
        each: [round(100 * value, 2) for value in (one.mean, one.low, one.high)] for each, one in differences.items()
    }


def main() -> None:
    options = Options(
        __doc__, data=DATA, cache=CACHE, json=NEEDED, catalogues=",".join(SIZES), models="vae,cvae", seeds="0,1,2",
        epochs=int, gallery=20_000, queries=1000,
    ).parse_args()  # fmt: skip
    catalogues = names_of(options.catalogues, SIZES, "catalogues")
    if absent(options.data):
        return
    torch.set_num_threads(1)
    said = made_on()
    for catalogue in catalogues:
        folder, bank, held = both_parts(options.data, options.cache, catalogue, SIZES[catalogue])
        gallery, queries = drawn(bank, options.gallery, 0), drawn(held, options.queries, 1)
        names = sorted(set(bank.categories))
        known, truth = (np.array([names.index(one) for one in side.categories]) for side in (gallery, queries))
        asked = Asked(gallery, queries, known, truth, queries.groups)
        for model in options.models.split(","):
            begun = time.perf_counter()
            own = of_model(f"{model}_{catalogue}", (folder, bank), asked, options)
            own["seconds"] = round(time.perf_counter() - begun)
            add(options.json, {**own, **said}, catalogue, model)


if __name__ == "__main__":
    main()

"""Clothing photos by a pretrained network whose last blocks learn on: SimCLR, MoCo, and told categories.

The folds by contributor of `bench_folds`, one seed, photos of 128 pixels: each epoch passes two views of every photo
through the network, which takes minutes a fold. The row that learns nothing is the same network, read in the same way.

    python tests/benchmarks/bench_tuned.py --data ../shared/data --weights lite0.pth [--epochs 2] [--rows NAMES]
        [--cache FOLDER] [--json tuned.json] [--table]
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_folds import FLOOR, Shown, over_folds, photos_file, shown_photos, told
from folds_trained import InMemory, rows_of
from model_measures import preset_config
from model_tables import tuned_table
from options import Given, Options, names_of
from record import DATA, RESULTS, ROOT, read, renewed, today, write_runs

from jobs.config import Config
from pipeline.evaluation.folds import ask_fold
from pipeline.images import ImagesConfig, decode
from pipeline.models import Batch, Model, build_model
from pipeline.models.conditions import FIRST_CATEGORY
from pipeline.training import Loop

SIZE = 128
UNTRAINED = "as it is"
ROWS = {
    UNTRAINED: None,
    "fine-tuned, no labels": ("simclr", "none"),
    "fine-tuned, told categories": ("simclr", "category"),
    "fine-tuned by MoCo, no labels": ("moco", "none"),
}
OF_KIND = {"simclr": {}, "moco": {"queue": 1024}}  # fewer keys than photos: a photo's own older key is rarely there
BATCH = 64


def settings(weights: Path, kind: str, supervision: str, epochs: int) -> Config:
    """Return the config: Lite0's last two blocks and a new projector, its map read out in 3 x 3 cells, 64 numbers."""
    images = {"size": SIZE, "fit": "crop"}
    model = {
        "kind": kind,
        "backbone": {
            "recipe": "efficientnet_lite0", "weights": str(weights), "train_last": 2, "preprocessing": images,
        },
        "views": {"min_area": 0.5},
        "read_out": {"pool": "map", "cells": 3, "dims": 64, "invariant_to": None},
        **OF_KIND[kind],
    }  # fmt: skip
    more = [
        f"images={json.dumps(images)}", f"model={json.dumps(model)}", "train.learning_rate=0.0001",
        "train.batch_size=128", "train.validation=0", f"train.supervision={supervision}",
    ]  # fmt: skip
    return preset_config(f"{kind}_clothing", epochs, more)


def vectors_of(model: Model, images: torch.Tensor) -> np.ndarray:
    """Return the latents of photos uint8 [n, 3, SIZE, SIZE], float32 [n, 64]."""
    with torch.inference_mode():
        return torch.cat([model.encode(part).mean for part in images.split(BATCH)]).numpy()


def vectors_by_fold(
    shown: Shown, images: torch.Tensor, weights: Path, how: tuple[str, str] | None, epochs: int, asked: np.ndarray
) -> tuple[np.ndarray, float]:
    """Return the latents of all photos by a network that has not seen the asked ones, bool [n], and the CPU seconds of
    its training: how is the kind of model and what it is told, None for no training.
    """
    kind, supervision = how or ("simclr", "none")
    config = settings(weights, kind, supervision, epochs)
    names = sorted(set(shown.labels))
    torch.manual_seed(0)
    model = build_model(config.model, image_size=SIZE)
    model.use_file(weights.read_bytes(), str(weights))
    told = torch.tensor([FIRST_CATEGORY + names.index(label) for label in shown.labels])
    known = rows_of(Batch(images, told), np.flatnonzero(~asked))
    begun = time.process_time()
    if how is not None:
        model.supervised = supervision == "category"
        loader = InMemory(known, batch_size=config.train.batch_size, seed=0)
        model = Loop(model, loader, config.train, labels=tuple(names)).run()
    spent = time.process_time() - begun
    with torch.inference_mode():
        model.eval().fit(Batch(part) for part in known.images.split(BATCH))
    return vectors_of(model, images), spent


def measure(name: str, shown: Shown, images: torch.Tensor, given: Given) -> dict[str, Any]:
    """Return a row: FOLD_MEASURES over all folds, differences to what is in the cache, CPU seconds of the trainings."""
    spent = []

    def ask(known: np.ndarray) -> dict[str, np.ndarray]:
        vectors, trained_s = vectors_by_fold(shown, images, given.weights, ROWS[name], given.epochs, ~known)
        spent.append(trained_s)
        found = ask_fold(vectors, shown.labels, shown.groups, ~known)
        print(f"{name}, fold {len(spent)}: k-NN {np.nanmean(found['knn']):.4f}, {trained_s:.0f} CPU s", flush=True)
        return found

    values = over_folds(ask, shown.groups)
    np.savez_compressed(photos_file(given.cache, name, 0), **values)
    result = {"dims": 64, "train_cpu_s": round(sum(spent), 1), "photos": len(shown.labels)}
    for than, key in ((FLOOR, "ahead"), (UNTRAINED, "gain")):
        kept = photos_file(given.cache, than, 0)
        found = told(values, dict(np.load(kept)) if kept.exists() and than != name else None, shown.groups)
        result |= {each.replace("ahead", key): value for each, value in found.items()}
    return result


def main() -> int:
    """Run the benchmark."""
    given = Options(
        __doc__,
        data=DATA,
        weights=(Path, "EfficientNet-Lite0 as .pth"),
        epochs=2,
        rows=(str, "names with semicolons between; all by default"),
        cache=(ROOT / ".cache" / "bench-folds", "that of bench_folds"),
        json=RESULTS / "tuned.json",
        table=(False, "only print what is in --json"),
    ).parse_args()
    if not given.table:
        if not given.data.exists() or given.weights is None:
            print(
                f"nothing measured: it takes the catalogues ({given.data}) and --weights, a .pth of EfficientNet-Lite0"
            )
            return 0
        torch.set_num_threads(1)
        given.cache.mkdir(parents=True, exist_ok=True)
        shown = shown_photos(given.data)
        config = ImagesConfig(size=SIZE, fit="crop")
        pixels = np.stack([decode(file.read_bytes(), config) for file in shown.files])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        for name in names_of(given.rows or None, ROWS, "rows", apart=";"):
            facts = {"name": name, "seed": 0, "epochs": given.epochs, "date": today()}
            result = {**facts, **measure(name, shown, images, given)}
            write_runs(given.json, renewed(read(given.json), result, "name"))
            print(f"{name}: k-NN {result['knn']:.4f}, {result['train_cpu_s']} CPU s", flush=True)
    print(tuned_table(read(given.json)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

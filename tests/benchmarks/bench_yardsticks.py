"""Yardsticks beside the quality table: what labels would give, what fewer numbers cost, the bank that others used.

- labels: the network of the SimCLR presets trained on categories instead (cross entropy, one view of each photo), for
  as many CPU seconds as a SimCLR training takes, read out alike: what no training without labels should pass.
- numbers: k-NN by the first d numbers of a model's latents, whose components are in order: one bundle serves all.
- sample: k-NN with a bank of 500 photos a category, k = 5 for components and 10 for the VAE, as a well-known notebook
  (github.com/snakers4/playing_with_vae) has it, and both with both k.
- nuisance: of rendered designs whose photos differ in angle, shade, width or view alone, how many of a photo's nearest
  are of its design; the floors and every preset whose bundle is in the cache, with its own table. Trains nothing; to
  measure bundles that came later take its rows out of the results.
- words: codes of VQ models as words, weighted by TF-IDF, beside the same models' latents: neighbours, groups by
  k-means, customers who have bought several products, with its own table (word_measures.py).

Queries are the held-out photos; nothing is chosen by them. Bundles of the presets are those of `bench_quality.py` in
the cache, trained where they are missing, but by nuisance; one thread.

    python tests/benchmarks/bench_yardsticks.py --data ../shared/data [--catalogue fashion_mnist|clothing] [--seeds 0]
        [--presets labels,numbers,sample,nuisance,words] [--limit 500] [--json yardsticks.json] [--table]
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from model_measures import SIZES, Photos, preset_config
from model_tables import yardstick_tables
from options import Given, absent, names_of
from quality_measures import UNTRAINED, bundle_of, kept_bundle, photos_of, presets_of
from record import read
from side_by_side import model_options, parsed, record_presets
from torch import nn
from word_measures import words

from pipeline.evaluation.baselines import model_latents, photo_batches, pixel_features, principal_components
from pipeline.evaluation.knn import knn_accuracy
from pipeline.evaluation.nuisance import nuisance_photos, nuisance_purity
from pipeline.evaluation.quality import label_quality
from pipeline.evaluation.spaces import baseline_spaces, model_space, thumbnails
from pipeline.images import ImagesConfig
from pipeline.images.render import NUISANCES
from pipeline.models import Batch, Model, build_model, load_bundle
from pipeline.models.base import to_float
from pipeline.storage import open_store
from pipeline.training.ranks import Ranks
from pipeline.training.worker import fix_process

NUMBERS = (512, 256, 128, 64, 32, 16, 10)
PER_CATEGORY = 500
READ_OUT = ("read_out.", "reduction.")  # names of fitted components in a model's state
Results = list[dict[str, Any]]


def labels(seed: int, asked: Given) -> Results:
    """Train on categories what the SimCLR presets train without, for as many CPU seconds, and measure both alike."""
    folder, bank, held = photos_of(asked)
    results = []
    for name in ("simclr", "simclr_gradients"):
        _, spent = bundle_of(f"{name}_{asked.catalogue}", seed, asked, folder, bank)
        config = preset_config(f"{name}_{asked.catalogue}", asked.epochs)
        fix_process(config.train.model_copy(update={"seed": seed, "threads": 1}), Ranks().device)
        torch.manual_seed(seed)
        model = build_model(config.model, image_size=config.images.size)
        begun = time.process_time()
        seen = supervise(model, bank, config.train.batch_size, config.train.learning_rate, spent["train_cpu_s"])
        seconds = time.process_time() - begun
        model.eval().fit([Batch(images) for images in photo_batches(bank.pixels)])
        known, found = (model_latents(model, photos.pixels) for photos in (bank, held))
        quality = label_quality(known, bank.categories, bank.groups, found, held.categories, seed=0)
        results.append({"name": f"labels: network of {name}", "dims": known.shape[1], "train_cpu_s": seconds,
                        "epochs": seen / len(bank.items), **quality.numbers()})  # fmt: skip
    return results


def supervise(model: Any, bank: Photos, batch_size: int, learning_rate: float, seconds: float) -> int:
    """Train a model's network on categories until CPU seconds are spent; return how many photos it saw.

    AdamW, the learning rate falling to 0 along half a cosine of the time; a linear layer on the map's mean; the first
    of the two views that the model itself would make.
    """
    names, targets = np.unique(bank.categories, return_inverse=True)
    pixels = torch.from_numpy(bank.pixels.transpose(0, 3, 1, 2))
    wanted = torch.from_numpy(targets)
    head = nn.Linear(model.network.shape[0], len(names))
    optimiser = torch.optim.AdamW([*model.network.parameters(), *head.parameters()], learning_rate, weight_decay=1e-4)
    begun, seen = time.process_time(), 0
    for chosen in drawn(len(pixels), batch_size):
        gone = (time.process_time() - begun) / seconds
        if gone >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * 0.5 * (1 + np.cos(np.pi * gone))
        view = model.augmented(pixels[chosen])[: len(chosen)]
        features = model.network(model.inputs(to_float(view))).mean(dim=(2, 3))
        loss = F.cross_entropy(head(features), wanted[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        seen += len(chosen)
    return seen


def drawn(count: int, batch_size: int) -> Iterator[torch.Tensor]:
    """Yield batches of positions, epoch after epoch without end."""
    while True:
        yield from torch.randperm(count).split(batch_size)


def numbers(seed: int, asked: Given) -> Results:
    """Measure k-NN by the first numbers of latents that are components in their order."""
    folder, bank, held = photos_of(asked)
    results = []
    for name in ("descriptor_views", "simclr_gradients", "simclr"):
        model_id, _ = bundle_of(f"{name}_{asked.catalogue}", seed, asked, folder, bank)
        model = wider(load_bundle(open_store(str(asked.cache)), model_id).model, bank)
        known, found = (model_latents(model, photos.pixels) for photos in (bank, held))
        for dims in [dims for dims in NUMBERS if dims <= known.shape[1]]:
            accuracy = knn_accuracy(known[:, :dims], bank.categories, found[:, :dims], held.categories)
            results.append({"name": f"first {dims} of {name}", "dims": dims, "knn": accuracy})
    return results


def wider(model: Any, bank: Photos) -> Model:
    """Return a model of the same weights whose read-out keeps as many components as there are, up to NUMBERS[0]."""
    config = model.config
    read_out = config.read_out.model_copy(update={"dims": None, "whiten": False, "invariant_to": None})
    given = build_model(config.model_copy(update={"read_out": read_out}), image_size=model.image_size).latent_dim
    read_out = config.read_out.model_copy(update={"dims": min(given, NUMBERS[0], len(bank.items) - 1)})
    wide = build_model(config.model_copy(update={"read_out": read_out}), image_size=model.image_size)
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith(READ_OUT)}
    missing = wide.load_state_dict(weights, strict=False).missing_keys
    assert all(name.startswith(READ_OUT) for name in missing)
    wide.eval().fit([Batch(images) for images in photo_batches(bank.pixels)])
    return wide


def sample(seed: int, asked: Given) -> Results:
    """Measure k-NN with a bank of some photos a category, drawn by seed."""
    folder, bank, held = photos_of(asked)
    names = np.asarray(bank.categories)
    generator = np.random.default_rng(seed)
    chosen = np.concatenate([
        generator.permutation(np.flatnonzero(names == name))[:PER_CATEGORY] for name in np.unique(names)
    ])  # fmt: skip
    spaces = {"raw pixels": tuple(pixel_features(thumbnails(photos.pixels)) for photos in (bank, held))}
    components = principal_components(spaces["raw pixels"][0], 64)
    known, found = (components.project(rows) for rows in spaces["raw pixels"])
    spaces |= {f"PCA-{dims}": (known[:, :dims], found[:, :dims]) for dims in (10, 64)}
    preset = {"fashion_mnist": "vae10_fashion_mnist", "clothing": "vae_clothing"}[asked.catalogue]
    model = load_bundle(open_store(str(asked.cache)), bundle_of(preset, seed, asked, folder, bank)[0]).model
    spaces[preset.split("_")[0]] = tuple(model_latents(model, photos.pixels) for photos in (bank, held))
    return [
        {"name": f"{PER_CATEGORY} a category, k = {k}: {name}", "dims": rows.shape[1],
         "knn": knn_accuracy(rows[chosen], names[chosen], others, held.categories, k=k)}
        for name, (rows, others) in spaces.items() for k in (5, 10)
    ]  # fmt: skip


def nuisance(seed: int, asked: Given) -> Results:
    """Measure `nuisance_purity` of the floors and of the presets whose bundles are there."""
    size = SIZES[asked.catalogue]
    photos = nuisance_photos(ImagesConfig(size=size), seed=0)
    _, bank, _ = photos_of(asked)
    untrained = preset_config(UNTRAINED[asked.catalogue], None).model
    spaces = [*baseline_spaces(bank.pixels, seed=seed, untrained=untrained, side=size)]
    for name in presets_of(asked.catalogue):
        # The file of a pretrained network's weights is not part of the project.
        if not name.startswith("pretrained") and (kept := kept_bundle(name, seed, asked)) is not None:
            model = load_bundle(open_store(str(asked.cache)), kept[0]).model
            spaces.append(model_space(name.removesuffix(f"_{asked.catalogue}"), model))
    return [
        {"name": space.name, "dims": space.dims, **nuisance_purity(space.encode, photos, seed=0)} for space in spaces
    ]


YARDSTICKS: dict[str, Callable[[int, Given], Results]] = {
    "labels": labels,
    "numbers": numbers,
    "sample": sample,
    "nuisance": nuisance,
    "words": words,
}


def main() -> int:
    """Run the benchmark."""
    asked = parsed(model_options(__doc__, SIZES, "yardsticks.json", stamps=False))
    if asked.one:
        Path(asked.out).write_text(json.dumps(YARDSTICKS[asked.one](int(asked.seeds), asked)))
        return 0
    names = names_of(asked.presets, YARDSTICKS, "yardsticks")
    failed = 0
    if not asked.table:
        if absent(asked.data):
            return 0
        there = {(run["preset"], run["seed"], run["catalogue"], run["limit"]) for run in read(asked.json)}
        tasks = [(name, int(seed)) for seed in asked.seeds.split(",") for name in names]
        todo = [(name, seed) for name, seed in tasks if (name, seed, asked.catalogue, asked.limit) not in there]
        failed = record_presets(Path(__file__), todo, dict.fromkeys(names, ""), asked, told)
    print(
        yardstick_tables(
            [run for run in read(asked.json) if (run["catalogue"], run["limit"]) == (asked.catalogue, asked.limit)]
        )
    )
    return 1 if failed else 0


def told(result: dict[str, Any]) -> str:
    """Return a few words about a result."""
    if "knn" in result:
        return f"k-NN {result['knn']:.4f}"
    return "purity " + ", ".join(f"{name} {result[f'purity_{name}']:.3f}" for name in NUISANCES)


if __name__ == "__main__":
    sys.exit(main())

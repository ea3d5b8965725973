"""What bench_claims.py measures in the process of one training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from claim_experiments import RENDERED, Variant
from model_measures import Photos, both_parts, preset_config, train
from options import Given
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jobs.config import Config
from pipeline.encoding.actors import Encoder
from pipeline.evaluation.baselines import hog_features, pixel_features
from pipeline.evaluation.knn import knn_accuracy
from pipeline.evaluation.latents import code_measures, gaussian_measures
from pipeline.evaluation.reconstruction import category_errors, reconstruct_errors, reconstruction_measures
from pipeline.models import Latents, Model
from pipeline.models.conditions import condition_of
from pipeline.models.pretraining import copy_convolutions
from pipeline.models.quantizers import FSQConfig

SEED = 0
PROBE_ROWS = 10_000  # photos that a probe learns from
SWAPPED, KNOWN = 2000, 20_000  # photos whose category is swapped, and those that judge the pictures
CHANGED = 0.01  # mean change of a value, 0..1 scale, from which a picture counts as another one


@dataclass(frozen=True)
class Task:
    """A training with what it learns from and what it is asked about."""

    variant: Variant
    config: Config
    asked: Given
    folder: str
    bank: Photos
    held: Photos

    def train(
        self, *, chosen: np.ndarray | None = None, begin: Callable[[Model], object] | None = None
    ) -> tuple[Model, dict[str, Any]]:
        """Train as the settings say."""
        return train(self.config, SEED, self.asked.cache, self.folder, self.bank, chosen=chosen, begin=begin)


def config_of(variant: Variant, epochs: int | None) -> Config:
    """Return a variant's settings. epochs: instead of its own."""
    config = preset_config(variant.preset, epochs or variant.epochs, variant.settings)
    if not variant.levels:
        return config
    return config.model_copy(
        update={"model": config.model.model_copy(update={"quantizer": FSQConfig(levels=variant.levels)})}
    )


def measure(variant: Variant, asked: Given) -> dict[str, Any]:
    """Train and measure one variant."""
    config = config_of(variant, asked.epochs)
    data = asked.rendered if variant.catalogue == RENDERED else asked.data
    photos = both_parts(data, asked.cache, variant.catalogue, config.images.size, asked.limit)
    return MEASURES[variant.measure](Task(variant, config, asked, *photos))


# --- Gaussian latents: losses, options, sizes, conditions


def gaussian(task: Task) -> dict[str, Any]:
    """Return k-NN, a probe of the category, what the latents use, and the errors of the drawings."""
    model, result = task.train()
    labels, truth = np.asarray(task.bank.categories), np.asarray(task.held.categories)
    own = [conditions(model, photos) for photos in (task.bank, task.held)]
    encoder = Encoder(model, batch_size=250)
    known, found = (
        encoder(photos.pixels, np.arange(len(photos.pixels)), told)
        for photos, told in zip((task.bank, task.held), own, strict=True)
    )
    result["knn"] = knn_accuracy(known.mean, labels, found.mean, truth)
    result["probe"] = probe(known.mean, labels, found.mean, truth)
    result |= gaussian_measures(found.mean, found.log_var)
    result |= reconstruction_measures(reconstruct_errors(model, task.held.pixels, conditions=own[1]))
    if own[1] is not None:
        untold = [
            encoder(photos.pixels, np.arange(min(len(photos.pixels), PROBE_ROWS))) for photos in (task.bank, task.held)
        ]
        result["probe_untold"] = probe(untold[0].mean, labels[:PROBE_ROWS], untold[1].mean, truth[:PROBE_ROWS])
        result |= swapped(model, task)
    return {**result, "dims": model.latent_dim}


def conditions(model: Model, photos: Photos) -> np.ndarray | None:
    """Return the rows of the photos' own categories, or None for a model that is not told."""
    return condition_of(model.labels, photos.categories).numpy() if model.labels else None


def probe(known: np.ndarray, labels: np.ndarray, found: np.ndarray, truth: np.ndarray) -> float:
    """Return the accuracy of a logistic regression on standardised numbers, of the photos it has not seen."""
    rows = np.random.default_rng(SEED).permutation(len(known))[:PROBE_ROWS]
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(known[rows], labels[rows])
    return float(fitted.score(found, truth))


def swapped(model: Model, task: Task) -> dict[str, float]:
    """Draw photos from their own latents, told another category, drawn at random, and see what becomes of them.

    changed: share of the pictures that are another one than with their own category. told_seen, own_seen: share of
    the swapped pictures that the k nearest photos (pixels) take for the category told, and still for their own.
    """
    held = Photos(*(values[:SWAPPED] for values in (task.held.pixels, task.held.categories, [], [])))
    own = condition_of(model.labels, held.categories)
    steps = torch.randint(1, len(model.labels), own.shape, generator=torch.Generator().manual_seed(SEED))
    told = (own - 2 + steps) % len(model.labels) + 2
    latents = Encoder(model, batch_size=250)(held.pixels, np.arange(len(own)), own.numpy())
    with torch.inference_mode():
        given = Latents(torch.from_numpy(latents.mean))
        before, after = model.decode(given, own), model.decode(given, told)
    change = (before - after).abs().flatten(1).mean(dim=1)
    known = pixel_features(task.bank.pixels[:KNOWN], grey=True)
    labels = np.asarray(task.bank.categories[:KNOWN])
    drawn = pixel_features((after * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy(), grey=True)
    return {
        "changed": float((change > CHANGED).float().mean()),
        "change": float(change.mean()),
        "told_seen": knn_accuracy(known, labels, drawn, np.asarray(model.labels)[told.numpy() - 2]),
        "own_seen": knn_accuracy(known, labels, drawn, np.asarray(held.categories)),
    }


# --- codes


def codes(task: Task) -> dict[str, Any]:
    """Return the codes that the held-out photos use, the codebook's own measures, and the errors of the drawings."""
    model, result = task.train()
    found = Encoder(model, batch_size=250)(task.held.pixels, np.arange(len(task.held.pixels)))
    quantizer = model.quantizer
    cells, number = found.codes.shape[1], quantizer.num_codes
    result |= {"cells": cells, "num_codes": number, "bits": cells * float(np.log2(number))}
    result |= code_measures(found.codes, number)
    return result | reconstruction_measures(reconstruct_errors(model, task.held.pixels))


def codes_probe(task: Task) -> dict[str, Any]:
    """Return what a linear probe reads of colour and category in codes, and in floors that know one of them well."""
    model, result = task.train()
    both = (task.bank, task.held)
    encoder = Encoder(model, batch_size=250)
    coded = [encoder(photos.pixels, np.arange(len(photos.pixels))) for photos in both]
    number = model.quantizer.num_codes
    ways = {
        "histogram of codes": [histograms(found.codes, number) for found in coded],
        "codes in their places (`Latents.mean`)": [found.mean for found in coded],
        "floor: mean colour": [photos.pixels.mean(axis=(1, 2)) / 255 for photos in both],
        "floor: gradient histograms": [hog_features(photos.pixels, cell=16) for photos in both],
    }
    facts = {"colour": [np.asarray(photos.groups) for photos in both]}
    facts["category"] = [np.asarray(photos.categories) for photos in both]
    result["probes"] = {
        way: {"numbers": known.shape[1]}
        | {fact: probe(known, labels, found, truth) for fact, (labels, truth) in facts.items()}
        for way, (known, found) in ways.items()
    }
    most = {fact: float(np.mean(truth == mode(labels))) for fact, (labels, truth) in facts.items()}
    result["probes"]["floor: the most frequent"] = {"numbers": 0, **most}
    return {**result, "test_photos": len(task.held.items)}


def histograms(codes: np.ndarray, number: int) -> np.ndarray:
    """Return how often each code is used by each photo, float32 [n, number], of codes [n, cells]."""
    counts = np.zeros((len(codes), number), np.float32)
    np.add.at(counts, (np.arange(len(codes))[:, None], codes), 1.0)
    return counts


def mode(labels: np.ndarray) -> str:
    names, counts = np.unique(labels, return_counts=True)
    return str(names[np.argmax(counts)])


# --- trainings: pretrained convolutions, categories of unequal numbers


def pretraining(task: Task) -> dict[str, Any]:
    """Return the held-out loss after every epoch, of an autoencoder's convolutions where they begin it."""
    if not task.variant.pretrained:
        return task.train()[1]
    settings = ["train.validation=0.1", f"model.latent_dim={task.config.model.latent_dim}"]
    config = preset_config("autoencoder_fashion_mnist", task.config.train.epochs, settings)
    source, before = train(config, SEED, task.asked.cache, task.folder, task.bank)
    copied: list[str] = []
    _, result = task.train(begin=lambda model: copied.extend(copy_convolutions(model, source)))
    return {**result, "copied": len(copied), "before_cpu_s": before["train_cpu_s"]}


def imbalance(task: Task) -> dict[str, Any]:
    """Return every category's error over the test photos, which have as many of each."""
    categories = np.asarray(task.bank.categories)
    common = sorted(set(task.bank.categories))[0]
    chosen = unequal(categories, common, task.variant.share or 0.9)
    model, result = task.train(chosen=chosen)
    errors = reconstruct_errors(model, task.held.pixels)
    means = {each.category: each.mse for each in category_errors(errors, task.held.categories)}
    result |= {"common": common, "photos": int(chosen.sum()), "rare": int((chosen & (categories != common)).sum())}
    return {**result, **reconstruction_measures(errors), "categories": means}


def unequal(categories: np.ndarray, common: str, share: float) -> np.ndarray:
    """Return a choice of photos, bool [n], `share` of which is of one category and the rest evenly of the others.

    As many whatever the share: all of the common category are nine tenths of them.
    """
    total = np.count_nonzero(categories == common) / 0.9
    names = np.unique(categories)
    chosen = np.zeros(len(categories), np.bool_)
    draw = np.random.default_rng(SEED)
    for name in names:
        part = share if name == common else (1 - share) / (len(names) - 1)
        rows = draw.permutation(np.flatnonzero(categories == name))
        chosen[rows[: max(1, round(total * part))]] = True
    return chosen


MEASURES: dict[str, Callable[[Task], dict[str, Any]]] = {
    "gaussian": gaussian,
    "codes": codes,
    "codes_probe": codes_probe,
    "pretraining": pretraining,
    "imbalance": imbalance,
}

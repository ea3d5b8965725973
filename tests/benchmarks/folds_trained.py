"""Rows of `bench_folds` that are trained, anew in every fold: models that see a pretrained network's features, or learn
to give them.

The trainings are the presets' own, by the real loop, with photos and features in memory; but nothing is held out: every
photo of the training folds is trained on.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from model_measures import preset_config

from pipeline.evaluation.folds import FOLD_MEASURES
from pipeline.evaluation.words import cluster_quality, fitted_words
from pipeline.images import ImagesConfig
from pipeline.models import Batch, Latents, Model, build_model
from pipeline.models.base import Taught
from pipeline.models.conditions import FIRST_CATEGORY
from pipeline.models.descriptor import DescriptorConfig
from pipeline.training import Loop
from pipeline.training.row_draws import Balanced, EveryRow, Sampling

BATCH = 64
Space = Literal["latents", "kl", "words"]


@dataclass(frozen=True)
class Trained:
    """A row: a preset's model, on `dims` components of a teacher's features. space: how photos are then compared: by
    the cosine of their latents, by the KL divergence of the known photo's Gaussian from the asked one's, or as texts of
    codes. more: settings that differ from the preset's.
    """

    preset: str
    teacher: str = "hx3"
    dims: int = 64
    space: Space = "latents"
    more: tuple[str, ...] = ()
    licence: str = "-"


@dataclass(frozen=True)
class Encoded:
    """What a trained row's model says of all photos, and the CPU seconds that each took.

    codes: by level, as `Model.code_levels` tells them apart. model: itself.
    """

    mean: np.ndarray
    log_var: np.ndarray | None
    codes: Mapping[str, np.ndarray]
    photo_s: float
    model: Model


class InMemory:
    """One rank's batches of what is in memory, each photo once an epoch, or each category equally often; but for those
    that fill the last batch.
    """

    num_held_out = 0

    def __init__(self, batch: Batch, *, batch_size: int, seed: int, balance: bool = False) -> None:
        self.batch, self.batch_size, self.seed = batch, batch_size, seed
        self.sampling: Sampling = EveryRow([len(batch.images)])
        if balance:
            assert batch.condition is not None
            self.sampling = Balanced([batch.condition.numpy().astype(np.int32)], seed=seed)
        self.steps_per_epoch = -(-self.sampling.total // batch_size)

    def batches(self, start: int, stop: int) -> Generator[Batch]:
        """Yield the batches of steps start..stop - 1."""
        for step in range(start, stop):
            epoch, at = divmod(step, self.steps_per_epoch)
            places = self.sampling.places(epoch, 0)
            order = places[np.random.default_rng((self.seed, epoch)).permutation(len(places))]
            order = np.resize(order, self.steps_per_epoch * self.batch_size)
            yield rows_of(self.batch, order[at * self.batch_size : (at + 1) * self.batch_size])

    def validation(self) -> Generator[Batch]:
        """Yield nothing."""
        yield from ()


def rows_of(batch: Batch, rows: np.ndarray) -> Batch:
    """Return some rows of a batch."""
    at = torch.from_numpy(rows)
    parts = (batch.condition, batch.features)
    condition, features = (None if part is None else part[at] for part in parts)
    return Batch(batch.images[at], condition, features=features)


def encoded(
    row: Trained, pixels: np.ndarray, features: np.ndarray, labels: list[str], known: np.ndarray, seed: int
) -> Encoded:
    """Return what a row's model, trained on known photos, bool [n], says of all: pixels uint8 [n, 64, 64, 3], features
    float32 [n, D].

    A conditional model is told the category in training only: asked with it, it would tell what is asked.
    """
    config = preset_config(row.preset, None, [*row.more, "train.validation=0", f"train.seed={seed}"])
    stand_in = DescriptorConfig(features="pixels")  # the features are there: no photo is shown to a teacher
    teacher = Taught("0" * 64, stand_in, (ImagesConfig(size=16),), 16, features.shape[1], 1)
    names = tuple(sorted(set(labels)))
    torch.manual_seed(seed)
    model = build_model(config.model.taught(teacher), image_size=pixels.shape[1], labels=names)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    told = torch.tensor([FIRST_CATEGORY + names.index(label) for label in labels]) if config.model.conditional else None
    everything = Batch(images, told, features=torch.from_numpy(features))
    taught_on = rows_of(everything, np.flatnonzero(known))
    model.prepare([taught_on])
    if model.trains:
        loader = InMemory(taught_on, batch_size=config.train.batch_size, seed=seed, balance=config.train.balance)
        model = Loop(model, loader, config.train, labels=names).run()
    if model.fits:
        order = np.random.default_rng(seed).permutation(len(taught_on.images))
        model.eval().fit([rows_of(taught_on, order)])
    if told is not None:
        everything = Batch(images, torch.zeros_like(told), features=everything.features)
    begun = time.process_time()
    found = _all(model, everything)
    photo_s = (time.process_time() - begun) / len(images)
    codes = {} if found.codes is None else {name: own.numpy() for name, own in model.code_levels(found.codes).items()}
    log_var = None if found.log_var is None else found.log_var.numpy()
    return Encoded(found.mean.numpy(), log_var, codes, photo_s, model)


@torch.inference_mode()
def _all(model: Model, everything: Batch) -> Latents:
    parts = []
    for start in range(0, len(everything.images), BATCH):
        rows = np.arange(start, min(start + BATCH, len(everything.images)))
        parts.append(model.encode_batch(rows_of(everything, rows)))
    log_var = [part.log_var for part in parts if part.log_var is not None]
    codes = [part.codes for part in parts if part.codes is not None]
    return Latents(
        torch.cat([part.mean for part in parts]),
        torch.cat(log_var) if log_var else None,
        torch.cat(codes) if codes else None,
    )


def texts(found: Encoded, known: np.ndarray) -> np.ndarray:
    """Return photos as texts of their codes, float32 [n, V], the words' weights by the known photos."""
    words = fitted_words({level: codes[known] for level, codes in found.codes.items()}, regions=1)
    return words.vectors(words.counts(found.codes))


def asked_by_kl(found: Encoded, labels: list[str], asked: np.ndarray) -> dict[str, np.ndarray]:
    """Return FOLD_MEASURES of the asked photos, float64 [n], neighbours by KL(asked || known), in float64."""
    assert found.log_var is not None
    mean, log_var = found.mean.astype(np.float64), found.log_var.astype(np.float64)
    own, other = np.flatnonzero(asked), np.flatnonzero(~asked)
    precision = np.exp(-log_var[other])
    squares = np.exp(log_var[own]) + mean[own] ** 2
    far = squares @ precision.T - 2 * mean[own] @ (mean[other] * precision).T
    far += (mean[other] ** 2 * precision + log_var[other]).sum(axis=1)  # what the asked photo adds orders nothing
    truth = np.array(labels)
    values = {name: np.full(len(labels), np.nan) for name in FOLD_MEASURES}
    for row, distances in zip(own, far, strict=True):
        order = other[np.argsort(distances, kind="stable")]
        same = truth[order] == truth[row]
        near = truth[order[:10]].tolist()
        # The most frequent of the ten; of several the one whose first is nearest.
        values["knn"][row] = max(near, key=lambda name: (near.count(name), -near.index(name))) == truth[row]
        relevant = int(same.sum())
        if relevant:
            values["precision_at_10"][row] = same[:10].mean()
            hits = same[:relevant]
            values["map_at_r"][row] = (np.cumsum(hits) / np.arange(1, relevant + 1) * hits).sum() / relevant
    return values


@dataclass(frozen=True)
class Headed:
    """A row that knows categories: `dims` components of features `of`, and a line for each category of the known photos
    (logistic regression, C = 1, of numbers brought to one spread). A photo is what these say of it: an upper yardstick.
    """

    of: str
    dims: int
    licence: str = "-"


def headed(vectors: np.ndarray, labels: list[str], known: np.ndarray) -> np.ndarray:
    """Return what lines fitted on known photos, bool [n], say of all vectors [n, d], float32 [n, categories]."""
    from sklearn.linear_model import LogisticRegression

    scaled = (vectors - vectors[known].mean(axis=0)) / vectors[known].std()
    lines = LogisticRegression(C=1.0, max_iter=500).fit(scaled[known], np.asarray(labels)[known])
    return np.asarray(lines.decision_function(scaled), np.float32)


def purities(
    vectors: np.ndarray, codes: Mapping[str, np.ndarray], labels: list[str], known: np.ndarray
) -> dict[str, float]:
    """Return how pure groups and codes are, fitted on known photos, bool [n].

    purity: of known photos in as many groups by k-means as there are categories, beside `purity_chance` and `nmi`.
    code_purity: share of the other photos whose category is the most frequent one of the known photos with the same
    code, a mean over codes of a photo, beside `code_chance`, that of the most frequent category.
    """
    truth = np.asarray(labels)
    groups = cluster_quality(vectors[known], truth[known], seed=0)
    found = {"purity": groups.purity, "purity_chance": groups.chance, "nmi": groups.nmi}
    shares = []
    for level in codes.values():
        for column in level.reshape(len(truth), -1).T:
            told = {code: _most_frequent(truth[known & (column == code)]) for code in np.unique(column[known])}
            shares.append(
                np.mean([told.get(code) == own for code, own in zip(column[~known], truth[~known], strict=True)])
            )
    if shares:
        found |= {"code_purity": float(np.mean(shares)),
                  "code_chance": float(np.mean(truth[~known] == _most_frequent(truth[known])))}  # fmt: skip
    return found


def _most_frequent(names: np.ndarray) -> str:
    values, counts = np.unique(names, return_counts=True)
    return str(values[counts.argmax()])

"""The metrics of an index side by side on one release's latents: which finds what customers would call alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import ConfigError, InputError
from ..index import (
    FITTED,
    MASKED,
    LatentArrays,
    Metric,
    code_features,
    fitted_metric,
    gather_latents,
    metric_of_index,
    nearest_exact,
    needs_of,
)
from ..models import build_model
from ..models.base import stored_transforms
from ..models.bundle import stored_config
from ..models.codebooks import codebook_sizes
from ..ordering import run_starts
from ..parts import part_columns
from ..release import Manifest
from ..release.tables import read_table
from ..storage import Store
from .category import GALLERY, QUERIES, first_photos
from .knn import elected
from .retrieval import interval, retrieve_rows

_K = 10
Interval = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class MetricScore:
    """What one metric under one mask finds.

    churn: of the ten nearest by the release's own metric, the share that is not among the ten nearest by this one.
    knn, precision, map_at_r: mean and both ends of its 95 % interval over queries; None where no category is known.
    """

    metric: str
    mask: str
    own: bool
    churn: float
    knn: Interval | None = None
    precision: Interval | None = None
    map_at_r: Interval | None = None

    def row(self) -> dict[str, object]:
        """Return it as plain values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def compare_metrics(store: Store, manifest: Manifest, *, category: str | None, seed: int = 0) -> list[MetricScore]:
    """Return every metric under every mask that a release's latents allow, in the order of the table.

    An item is its first photo. Up to GALLERY seeded items stand for the catalogue, up to QUERIES of them ask, each
    without itself, exactly. category: the column of `items` that says what is alike, None for the churn alone. Raises
    ConfigError for a column that the release does not have, InputError for fewer than two items.
    """
    items = read_table(store, manifest, "items")
    if category is not None and category not in items.column_names:
        raise ConfigError(
            f"release {manifest.release_id} has no column {category!r}; one of {', '.join(items.column_names)}"
        )
    rows = np.flatnonzero(run_starts(items["item_id"]))
    picked = np.sort(np.random.default_rng([seed, 0]).permutation(rows)[:GALLERY])
    if len(picked) < 2:
        raise InputError(f"release {manifest.release_id} has {len(picked)} items; neighbours need two at least")
    known = part_columns(store, manifest.parts[0].name)
    chosen = items.take(pa.array(picked))
    latents = gather_latents(store, chosen, columns=[name for name in ("mean", "log_var", "codes") if name in known])
    own = metric_of_index(manifest.metric, manifest.index_parameters, items.num_rows)
    one_codebook = "codes" in known and len(_codebooks(store, manifest.model_id)) == 1
    return metric_scores(latents, own, *_labelled(chosen, category), seed=seed, one_codebook=one_codebook)


def _codebooks(store: Store, model_id: str) -> tuple[int, ...]:
    """Return how many codes each codebook of a bundle's model has."""
    config, images = stored_config(store, model_id)
    return codebook_sizes(build_model(config, image_size=stored_transforms(images)[0].size))


def _labelled(items: pa.Table, category: str | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows that have a category, and its number."""
    if category is None:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return first_photos(items, category)


def metric_scores(
    latents: LatentArrays,
    own: Metric,
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    *,
    seed: int = 0,
    one_codebook: bool = True,
) -> list[MetricScore]:
    """Return `compare_metrics` of latents [n], one an item, of which `rows` [a] have the labels [a].

    one_codebook: whether equal numbers among the codes say the same, without which `codes` is left out. A metric of
    codes that would be too wide for an index is left out too.
    """
    asked = np.sort(np.random.default_rng([seed, 1]).permutation(len(latents))[:QUERIES])
    before = _nearest(own, latents, asked)
    kinds, counts = np.unique(labels, return_counts=True)
    paired = rows[np.isin(labels, kinds[counts > 1])]
    queries = np.sort(np.random.default_rng([seed, 2]).permutation(paired)[:QUERIES])
    numbers = np.full(len(latents), -1, np.int64)
    numbers[rows] = labels
    found = []
    for name, masks in MASKED.items():
        for mask in masks:
            if latents.missing(needs_of(name, mask)):
                continue
            if name in FITTED and not _fits(name, latents, one_codebook=one_codebook):
                continue
            metric = fitted_metric(name, mask, latents)
            measured = _of_labels(metric, latents.take(rows), numbers[rows], np.searchsorted(rows, queries), seed)
            churn = 1.0 - _shared(before, _nearest(metric, latents, asked))
            found.append(MetricScore(name, mask, metric.name.split(":")[0] == own.name.split(":")[0], churn, *measured))
    return found


def _fits(name: str, latents: LatentArrays, *, one_codebook: bool) -> bool:
    codes = latents.codes
    if codes is None or (name == "codes" and not one_codebook):
        return False
    try:
        return code_features(name, codes.shape[1], int(codes.max(initial=0)) + 1) > 0
    except ConfigError:
        return False


def _nearest(metric: Metric, latents: LatentArrays, asked: NDArray[np.int64]) -> NDArray[np.int64]:
    return nearest_exact(metric, latents, latents.take(asked), _K, exclude=asked)[0]


def _shared(left: NDArray[np.int64], right: NDArray[np.int64]) -> float:
    return float(np.mean([len(np.intersect1d(*pair)) for pair in zip(left, right, strict=True)]) / left.shape[1])


def _of_labels(
    metric: Metric, known: LatentArrays, labels: NDArray[np.int64], asked: NDArray[np.int64], seed: int
) -> tuple[Interval, Interval, Interval] | tuple[()]:
    """Return k-NN accuracy, precision at 10 and MAP@R of the rows asked among all that are known; () without any."""
    if not len(asked):
        return ()
    queries = known.take(asked)
    near, scores = nearest_exact(metric, known, queries, _K, exclude=asked)
    correct = (elected(labels[near], scores, None) == labels[asked]).astype(np.float64)
    found = retrieve_rows(metric, known, labels, asked, k=_K, seed=seed)
    return _told(correct, seed), _told(found.precision, seed), _told(found.average_precision, seed)


def _told(values: NDArray[np.float64], seed: int) -> Interval:
    return float(values.mean()), *interval(values, seed=seed)


def comparison_text(scores: Sequence[MetricScore]) -> str:
    """Return the table for people: shares in per cent, the release's own metric marked."""
    head = f"  {'metric':<11}{'mask':<18}{'k-NN':>20}{'P@10':>20}{'MAP@R':>20}{'churn':>8}"
    lines = [head, *(_line(score) for score in scores)]
    return "\n".join(line.rstrip() for line in lines)


def _line(score: MetricScore) -> str:
    cells = "".join(f"{_cell(value):>20}" for value in (score.knn, score.precision, score.map_at_r))
    return f"{'*' if score.own else ' '} {f'{score.metric:<10} {score.mask}':<29}{cells}{100 * score.churn:>8.1f}"


def _cell(value: Interval | None) -> str:
    return "-" if value is None else f"{100 * value[0]:.1f} ({100 * value[1]:.1f}..{100 * value[2]:.1f})"

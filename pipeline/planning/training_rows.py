"""What of a plan is trained on: which photos, of which categories, and which are held out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..encoding import FeaturePart, LivingRows
from ..errors import ConfigError, InputError
from ..models import MODELS
from ..models.conditions import FIRST_CATEGORY, NO_CATEGORY, UNKNOWN_CATEGORY
from ..ordering import as_numpy, ranks
from ..schema import attribute_fields
from ..training import FeatureRows, PartRows, TrainConfig
from ..training.split import choose_labels, held_out
from .settings import NightSettings

_SHARDS = 12  # a stream of random numbers of its own


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """pixels: the living rows by part; labels: the categories that the condition rows from 2 on stand for.

    unseen: photos left out because their teacher said nothing of them.
    """

    pixels: list[PartRows]
    labels: tuple[str, ...]
    unseen: int = 0

    @property
    def photos(self) -> int:
        """Return the photos that are trained on."""
        return sum(len(part.rows) for part in self.pixels) - self.held_out

    @property
    def held_out(self) -> int:
        """Return the photos that are for validation only."""
        return sum(int(part.held_out.sum()) for part in self.pixels if part.held_out is not None)


def check_training_columns(rows: pa.Table, config: NightSettings) -> None:
    """Refuse a training that names columns which the catalogue lacks, before any photo is fetched for it.

    rows: schema.plan_schema. Raises ConfigError.
    """
    split_by, columns = config.train.split_by, columns_of(rows)
    if split_by is not None and split_by not in columns:
        raise ConfigError(
            f"train.split_by is {split_by!r}, and the catalogue has no such column; it has: {', '.join(columns)}"
        )
    if config.train.balance and config.catalogue.category is None:
        raise ConfigError(
            "train.balance draws every category equally often, and catalogue.category is not set; set it to one of "
            f"the columns {', '.join(columns)}, or set train.balance to false"
        )
    if config.train.supervision == "none":
        return
    if not MODELS[config.model.kind][1].takes_categories:
        kinds = ", ".join(name for name, (_, model) in MODELS.items() if model.takes_categories)
        raise ConfigError(
            f"train.supervision is {config.train.supervision!r}, and model.kind {config.model.kind!r} does not learn "
            f"from categories; name one of {kinds}, or set train.supervision to none"
        )
    if config.catalogue.category is None:
        raise ConfigError(
            "train.supervision is by category, and catalogue.category is not set; set it to one of the columns "
            f"{', '.join(columns)}, or set train.supervision to none"
        )


def training_rows(
    rows: pa.Table,
    living: Sequence[LivingRows],
    config: NightSettings,
    features: Mapping[str, Sequence[FeaturePart]] | None = None,
) -> TrainingRows:
    """Return the living rows of pixels parts with their categories and with who is held out.

    rows: schema.plan_schema, which `living` refers to. features: by pixels part, of a model with a teacher; a photo
    without any is left out. An item without a value in train.split_by is a group of its
    own. Labels are the categories that are trained on: one only seen in held-out photos counts as unknown. Raises
    ConfigError as `check_training_columns`, InputError when every photo would be held out.
    """
    check_training_columns(rows, config)
    photos = sum(len(part.rows) for part in living)
    named = [(part, None) for part in living] if features is None else _with_features(living, features)
    living = [part for part, _ in named]
    unseen = photos - sum(len(part.rows) for part in living)
    if photos and unseen == photos:
        raise InputError(
            f"the teacher says nothing of any of the {photos:,} photos; look at the quarantine of a refresh with the "
            "teacher as its model"
        )
    aside = held_out_rows(rows, config.train)
    if living and aside is not None and all(aside[part.plan_rows].all() for part in living):
        count = sum(len(part.rows) for part in living)
        raise InputError(
            f"all {count:,} photos would be held out for validation (train.validation {config.train.validation:g}, by "
            f"{config.train.split_by or 'item_id'}); lower train.validation, or split by a column of more values"
        )
    categories, labels = _categories(rows, living, aside, config.catalogue.category)
    pixels = [
        PartRows(
            part=part.part,
            rows=part.rows,
            category=None if categories is None else categories[part.plan_rows],
            held_out=None if aside is None else aside[part.plan_rows],
            features=seen,
        )
        for part, seen in named
    ]
    return TrainingRows(pixels, labels, unseen)


def _with_features(
    living: Sequence[LivingRows], features: Mapping[str, Sequence[FeaturePart]]
) -> list[tuple[LivingRows, FeatureRows | None]]:
    """Return the living rows that a teacher has seen, those of each of its latents parts for themselves."""
    found: list[tuple[LivingRows, FeatureRows | None]] = []
    for part in living:
        for seen in features.get(part.part, ()):
            _, at, rows = np.intersect1d(part.rows, seen.pixels_rows, assume_unique=True, return_indices=True)
            if len(at):
                chosen = LivingRows(part.part, part.rows[at], part.plan_rows[at])
                found.append((chosen, FeatureRows(seen.part, rows.astype(np.int32))))
    return found


def first_shards(rows: pa.Table, train: TrainConfig, photos: int) -> pa.Table:
    """Return the rows of a plan's seeded first shards, as many as hold so many photos that are not held out.

    What a model only fits, it fits on these; no more are fetched for it before the others are encoded. Of every attempt
    and any number of workers the same.
    """
    aside = held_out_rows(rows, train)
    numbers = as_numpy(rows["shard"], missing=-1).astype(np.int64)
    counts = np.bincount(numbers[(numbers >= 0) & (True if aside is None else ~aside)], minlength=numbers.max() + 1)
    order = np.random.default_rng([train.seed, _SHARDS]).permutation(len(counts))
    enough = int(np.searchsorted(np.cumsum(counts[order]), photos)) + 1
    return rows.filter(pa.array(np.isin(numbers, order[:enough])))


def columns_of(rows: pa.Table) -> list[str]:
    """Return the names of the columns that photos can be split and told by: item_id and the catalogue's own."""
    return ["item_id", *(field.name for field in attribute_fields(rows.schema))]


def held_out_rows(rows: pa.Table, train: TrainConfig) -> NDArray[np.bool_] | None:
    """Return which photos of a plan or release are held out, None when none is to be."""
    if not train.validation:
        return None
    values = rows["item_id"]
    if train.split_by is not None:
        values = pc.coalesce(rows[train.split_by].cast(pa.string()), values)
    return held_out(values, train.validation, train.seed)


def _categories(
    rows: pa.Table, living: Sequence[LivingRows], aside: NDArray[np.bool_] | None, column: str | None
) -> tuple[NDArray[np.int32] | None, tuple[str, ...]]:
    """Return the condition row of every photo of the plan (see `models.conditions.condition_of`), and the labels."""
    if column is None:
        return None, ()
    trained = [part.plan_rows if aside is None else part.plan_rows[~aside[part.plan_rows]] for part in living]
    labels = labels_of(rows[column], trained)
    return condition_rows(rows[column], labels), labels


def labels_of(column: pa.ChunkedArray, trained: Iterable[NDArray[np.integer]]) -> tuple[str, ...]:
    """Return the categories of the photos that are trained on, at most `split.MAX_LABELS`; trained: their positions."""
    codes, names = ranks(column.cast(pa.string()))
    counts = sum((np.bincount(codes[at] + 1, minlength=len(names) + 1) for at in trained), np.zeros(1, np.int64))
    return choose_labels(names, np.broadcast_to(counts, len(names) + 1)[1:])


def condition_rows(column: pa.ChunkedArray, labels: Sequence[str]) -> NDArray[np.int32]:
    """Return the condition rows, int32 [n] (see `models.conditions.condition_of`), of a column of categories."""
    codes, names = ranks(column.cast(pa.string()))
    number = {label: FIRST_CATEGORY + index for index, label in enumerate(labels)}
    # Rank -1, a photo without a category, is the last entry.
    table = np.array([*(number.get(name, UNKNOWN_CATEGORY) for name in names), NO_CATEGORY], np.int32)
    return table[codes]

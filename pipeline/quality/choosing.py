"""Candidates on a catalogue by folds: each is made without the photos it is asked, and every photo is asked once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from ..errors import ConfigError, InputError, NotFound, Unavailable
from ..evaluation.folds import ask_fold, deal_folds, refuse_crossing
from ..evaluation.views_found import ask_items, ask_views
from ..images import ImagesConfig
from ..images.augment import ViewsConfig, two_views
from ..keys import key_of, portable
from ..models import MODELS, Bundle, Model
from ..models.bundle import stored_config
from ..planning import NightSettings
from ..planning.training_rows import columns_of
from ..storage import Store
from .pictures import Pictures

FOLDER = "choices"
_FORMAT = 1
_VIEWS = ViewsConfig(min_area=0.5, brightness=0.2, contrast=0.2)  # of photos whose product is to be known again
_SPEED_BATCH, _SPEED_TRIES = 32, 3


@dataclass(frozen=True, slots=True)
class Candidate:
    """A named model to try. members: of a fusion, the names of other candidates; settings lack their model_ids then."""

    name: str
    settings: NightSettings
    members: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Made:
    """A candidate made without one fold. items: schema.items_schema of all living photos; vectors: float32, one each.

    store: where its pixels lie. fit_cpu_s: of training and fitting, 0 where it was made before.
    """

    bundle: Bundle
    store: Store
    items: pa.Table
    vectors: NDArray[np.float32]
    fit_cpu_s: float


class Make(Protocol):
    """Makes a candidate on the photos of a plan, and encodes all of them; the command brings the stages."""

    def plan(self, settings: NightSettings, apart: str) -> pa.Table:
        """Return the photos of the catalogue that a model of these settings is made of: schema.plan_schema."""

    def made(self, settings: NightSettings, apart: str, key: str, chosen: NDArray[np.bool_]) -> Made:
        """Return the model that answers `key`, made of the chosen photos, bool of the plan's rows, alone.

        apart: a word of the fold; what one fold makes under it is not found under another.
        """


@dataclass(frozen=True, slots=True)
class Photos:
    """The photos that all candidates are asked, in the plan's order, and which fold each is in.

    labels: None where the catalogue names no category, or a photo has none. by: the column of groups.
    """

    items: Sequence[str]
    uris: Sequence[str]
    tokens: Sequence[str]
    labels: Sequence[str | None] | None
    groups: Sequence[str]
    folds: NDArray[np.int64]
    by: str

    @property
    def digest(self) -> str:
        """Return what names these photos, their labels and folds."""
        return key_of([list(self.items), list(self.uris), list(self.tokens), self.labels and list(self.labels),
                       self.folds.tolist()])  # fmt: skip


class FoldResult(BaseModel):
    """What one candidate made without one fold was found to be; lies on the store under its key.

    values: by measure, one number for each photo of the catalogue, null where it was not asked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: int = _FORMAT
    values: dict[str, list[float | None]]
    dims: int
    bytes: int
    photos_per_s: float
    fit_cpu_s: float
    licences: list[str]
    model_id: str


@dataclass(frozen=True, slots=True)
class Measured:
    """A candidate over all folds. seeds: of its trainings; values: by measure float64 [photos], means over seeds."""

    name: str
    kind: str
    seeds: tuple[int, ...]
    values: Mapping[str, NDArray[np.float64]]
    by_seed: Mapping[int, Mapping[str, float]]
    dims: int
    bytes: int
    photos_per_s: float
    fit_cpu_s: float
    licences: tuple[str, ...]


def fold_photos(rows: pa.Table, settings: NightSettings, *, by: str | None, folds: int) -> Photos:
    """Return the usable photos of a plan, schema.plan_schema, dealt into folds by a column.

    by: None takes train.split_by, else item_id; a photo without a value is a group of its item. Raises ConfigError for
    a column that is not there, InputError where items cross groups or there are fewer groups than folds.
    """
    column, category = by or settings.train.split_by or "item_id", settings.catalogue.category
    for name, told in ((column, "--by"), (category, "catalogue.category")):
        if name is not None and name not in columns_of(rows):
            raise ConfigError(
                f"{told} is {name!r}, and the catalogue has no such column; it has: {', '.join(columns_of(rows))}"
            )
    items = rows["item_id"].to_pylist()
    groups = pc.coalesce(rows[column].cast(pa.string()), rows["item_id"]).to_pylist()
    dealt = deal_folds(groups, folds, seed=settings.train.seed)
    crossing = {item: set[int]() for item in items}
    for item, fold in zip(items, dealt.tolist(), strict=True):
        crossing[item].add(fold)
    if torn := [item for item, found in crossing.items() if len(found) > 1]:
        raise InputError(
            f"{len(torn)} items have photos of several values of {column!r}, the first {torn[0]!r}: one product would "
            "be on both sides; take --by item_id, or a column that is the same for all of an item's photos"
        )
    labels = None if category is None else rows[category].cast(pa.string()).to_pylist()
    return Photos(items, rows["uri"].to_pylist(), rows["token"].to_pylist(), labels, groups, dealt, column)


def measure_candidates(
    store: Store,
    candidates: Sequence[Candidate],
    photos: Photos,
    make: Make,
    *,
    seeds: Sequence[int],
    note: Callable[[str], None],
) -> list[Measured]:
    """Return every candidate measured over all folds; what is on the store for the same settings is not made again."""
    trial = _Trial(store, {each.name: each for each in candidates}, photos, make, note)
    return [trial.measured(candidate, seeds) for candidate in candidates]


class _Trial:
    """Makes and asks candidates, fold by fold."""

    def __init__(
        self, store: Store, candidates: Mapping[str, Candidate], photos: Photos, make: Make, note: Callable[[str], None]
    ) -> None:
        self.store, self.candidates, self.photos, self.make, self.note = store, candidates, photos, make, note
        self.digest = photos.digest
        self.speeds: dict[str, float] = {}

    def measured(self, candidate: Candidate, seeds: Sequence[int]) -> Measured:
        """Return a candidate over all folds and those seeds that mean something to it."""
        taken = tuple(seeds if self._trains(candidate) else seeds[:1])
        folds = range(int(self.photos.folds.max()) + 1)
        found = {seed: [self._fold(candidate, fold, seed) for fold in folds] for seed in taken}
        values = {seed: _joined(results) for seed, results in found.items()}
        every = [result for results in found.values() for result in results]
        return Measured(
            name=candidate.name,
            kind=candidate.settings.model.kind,
            seeds=taken,
            values={name: np.mean([own[name] for own in values.values()], axis=0) for name in values[taken[0]]},
            by_seed={
                seed: {name: float(np.nanmean(each)) for name, each in own.items()} for seed, own in values.items()
            },
            dims=every[0].dims,
            bytes=every[0].bytes,
            photos_per_s=every[0].photos_per_s,
            fit_cpu_s=float(np.mean([result.fit_cpu_s for result in every])),
            licences=tuple(every[0].licences),
        )

    def key(self, candidate: Candidate, fold: int, seed: int) -> str:
        """Return the key of a candidate made without one fold: all that decides what it is and what it is asked."""
        settings = candidate.settings
        trains = MODELS[settings.model.kind][1].trains
        facts = {
            "format": _FORMAT,
            "photos": self.digest,
            "by": self.photos.by,
            "fold": fold,
            "seed": seed,
            "images": settings.images.key_values(),
            "model": settings.model.model_dump(mode="json"),
            "train": {**settings.train.key_values(by_steps=trains), "version": settings.train.version},
            "precision": settings.encode.precision,
            "members": [self.key(self.candidates[member], fold, seed) for member in candidate.members],
        }
        return key_of(portable(facts))

    def _trains(self, candidate: Candidate) -> bool:
        own = MODELS[candidate.settings.model.kind][1].trains
        return own or any(self._trains(self.candidates[member]) for member in candidate.members)

    def _fold(self, candidate: Candidate, fold: int, seed: int) -> FoldResult:
        """Return what a candidate made without a fold is found to be, from the store where it was found before."""
        key = self.key(candidate, fold, seed)
        name = f"{FOLDER}/{key}.json"
        if self.store.exists(name):
            self.note(f"choose: {candidate.name}, fold {fold + 1}, seed {seed}: found")
            return FoldResult.model_validate_json(self.store.get(name))
        made = self._made(candidate, fold, seed)
        result = self._asked(candidate, made, fold)
        data = json.dumps(result.model_dump(mode="json"), allow_nan=False).encode()
        self.store.put_if_absent(name, data)
        shown = ", ".join(f"{measure} {np.nanmean(_numbers(own)):.3f}" for measure, own in result.values.items())
        self.note(f"choose: {candidate.name}, fold {fold + 1}, seed {seed}: {shown}")
        return FoldResult.model_validate_json(self.store.get(name))

    def _made(self, candidate: Candidate, fold: int, seed: int) -> Made:
        apart, chosen = f"fold-{fold}-{seed}", self.photos.folds != fold
        members = tuple(self._made(self.candidates[member], fold, seed).bundle.model_id for member in candidate.members)
        settings = _seeded(candidate.settings, seed, self.photos.by, members)
        rows = self.make.plan(settings, apart)
        if rows["item_id"].to_pylist() != list(self.photos.items) or rows["uri"].to_pylist() != list(self.photos.uris):
            raise Unavailable(
                "the catalogue has changed since the first candidate was planned; run again, finished folds are kept"
            )
        refuse_crossing(self.photos.groups, ~chosen)
        return self.make.made(settings, apart, self.key(candidate, fold, seed), chosen)

    def _asked(self, candidate: Candidate, made: Made, fold: int) -> FoldResult:
        """Return the measures of the fold's photos."""
        photos, model = self.photos, made.bundle.model
        rows = _places(made.items, photos)
        asked = photos.folds[rows] == fold
        groups = [photos.groups[row] for row in rows]
        if photos.labels is not None:
            labels = [photos.labels[row] for row in rows]
            found: dict[str, NDArray[np.float64]] = ask_fold(made.vectors, labels, groups, asked)
        else:
            found = {"item_found": ask_items(made.vectors, [photos.items[row] for row in rows], asked)}
            if (views := _views(made, asked)) is not None:
                found["view_found"] = ask_views(made.vectors, views, asked)
        values: dict[str, list[float | None]] = {}
        for name, numbers in found.items():
            wide = np.full(len(photos.items), np.nan)
            wide[rows] = numbers
            values[name] = [None if np.isnan(number) else float(number) for number in wide]
        if candidate.name not in self.speeds:
            self.speeds[candidate.name] = photos_per_s(model, sizes_of(made.bundle))
        stored = 4 * (model.latent_dim * (2 if model.has_log_var else 1) + model.num_latent_codes)
        return FoldResult(
            values=values,
            dims=model.latent_dim,
            bytes=stored,
            photos_per_s=self.speeds[candidate.name],
            fit_cpu_s=made.fit_cpu_s,
            licences=licences_of(made.bundle.config.model_dump(mode="json"), made.store),
            model_id=made.bundle.model_id,
        )


def photos_per_s(model: Model, sizes: Sequence[int]) -> float:
    """Return how many photos a model encodes in a second of one CPU, the best of a few tries; decoding is not in it.

    sizes: sides of its photos in pixels, several for a model that sees several.
    """
    dice = torch.Generator().manual_seed(0)
    pictures = tuple(
        torch.randint(0, 256, (_SPEED_BATCH, 3, size, size), dtype=torch.uint8, generator=dice) for size in sizes
    )
    before, spent = torch.get_num_threads(), list[float]()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for _ in range(1 + _SPEED_TRIES):  # the first one warms up
                begun = time.process_time()
                encode_pictures(model, pictures)
                spent.append(time.process_time() - begun)
    finally:
        torch.set_num_threads(before)
    return _SPEED_BATCH / max(min(spent[1:]), 1e-9)


def encode_pictures(model: Model, pictures: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return a model's latents, float [B, d]; pictures: uint8 [B, 3, H, W], one of each size it sees."""
    several: Any = pictures if len(pictures) > 1 else pictures[0]
    return model.encode(several).mean


def sizes_of(bundle: Bundle) -> list[int]:
    """Return the sides in pixels of the photos that a bundle's model sees."""
    images: Any = bundle.images
    several = [images] if isinstance(images, Mapping) else list(images)
    return [ImagesConfig.model_validate(each).size for each in several]


def licences_of(config: Any, store: Store | None = None) -> list[str]:
    """Return every licence that a model's config names, its parts' too, each once; own training has none.

    store: where the bundles of teachers lie, which a student names by their model_id and does not hold: what it learnt
    is of their licence. A teacher that is gone tells none.
    """
    if isinstance(config, Mapping):
        found = [config["licence"]] if isinstance(config.get("licence"), str) else []
        if store is not None and isinstance(teacher := config.get("teacher"), str):
            with suppress(NotFound):
                found += licences_of(stored_config(store, teacher)[0].model_dump(mode="json"), store)
        config = list(config.values())
    else:
        found = []
    if isinstance(config, list | tuple):
        found += [name for value in config for name in licences_of(value, store)]
    return list(dict.fromkeys(found))


def _views(made: Made, asked: NDArray[np.bool_]) -> NDArray[np.float32] | None:
    """Return the latents of a view of each asked photo, None where its pixels are not kept in one size."""
    sizes = sizes_of(made.bundle)
    rows = np.flatnonzero(asked).tolist()
    if len(sizes) > 1 or made.bundle.config.conditional:
        return None
    kept = Pictures(made.store, ImagesConfig(size=sizes[0])).read(made.items, rows)
    if len(kept) < len(rows):
        return None
    found = []
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        for start in range(0, len(rows), 256):
            pixels = np.stack([kept[row] for row in rows[start : start + 256]])
            photos = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
            views = two_views(photos, _VIEWS)[: len(photos)]
            found.append(made.bundle.model.encode(views).mean.float().numpy())
    return np.concatenate(found)


def _places(items: pa.Table, photos: Photos) -> NDArray[np.int64]:
    """Return which of the photos each row of items is, int64 [rows]."""
    place = {key: row for row, key in enumerate(zip(photos.items, photos.uris, strict=True))}
    pairs = zip(items["item_id"].to_pylist(), items["uri"].to_pylist(), strict=True)
    return np.array([place[pair] for pair in pairs], np.int64)


def _seeded(settings: NightSettings, seed: int, by: str, members: tuple[str, ...]) -> NightSettings:
    """Return settings with a training's seed, its held-out photos split as the folds are, and a fusion's members."""
    whole: Any = settings
    train = settings.train.model_copy(update={"seed": seed, "split_by": None if by == "item_id" else by})
    changed: dict[str, Any] = {"train": train}
    if members:
        changed["model"] = settings.model.model_validate({**settings.model.model_dump(), "members": members})
    seeded: NightSettings = whole.model_copy(update=changed)
    return seeded


def _joined(results: Sequence[FoldResult]) -> dict[str, NDArray[np.float64]]:
    """Return the folds' numbers of each photo in one row, float64 [photos] by measure; no photo is asked twice."""
    joined = {}
    for name in results[0].values:
        folds = np.array([_numbers(result.values[name]) for result in results])
        if (np.sum(~np.isnan(folds), axis=0) > 1).any():
            raise InputError("a photo was asked in two folds; report this")
        joined[name] = np.where(np.isnan(folds).all(axis=0), np.nan, np.nansum(folds, axis=0))
    return joined


def _numbers(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], np.float64)

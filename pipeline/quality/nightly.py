"""A night's measures put together: its tables and its bundle, and photos looked at once more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from ..encoding import Encoder
from ..errors import Forbidden, InputError, IntegrityError, NotReconstructing, Unavailable
from ..evaluation.likelihood import item_nats
from ..evaluation.measured import Measured, measures_table, whole_catalogue
from ..evaluation.nightly.asked import ROLE
from ..evaluation.nightly.lines import OF_PIXELS, Nightly, nightly_measures
from ..evaluation.nightly.photos import chosen_photos
from ..evaluation.nightly.sampling import hashes
from ..evaluation.nightly.tonight import LeftOut, Looked, Tonight
from ..images.reshot import drawn_reshot, reshot
from ..index import LatentArrays
from ..models import Bundle, Model
from ..models.base import to_float
from ..models.codebooks import codebook_sizes
from ..models.conditions import condition_of
from ..models.priors.stored import newest_prior
from ..ordering import take_column
from ..planning import NightSettings, Plan, category_told
from ..planning.training_rows import condition_rows
from ..release import ReleaseFile
from ..release.tables import table_files
from ..storage import Files, Store
from ..tables import Night
from .pictures import Pictures

Pixels = NDArray[np.uint8]
Codes = NDArray[np.int32]
Rows = NDArray[np.int64]

SECOND = 500  # photos of which there are two views
_BATCH = 64  # photos that are held and encoded at a time


def measure_night(
    store: Store, config: NightSettings, plan: Plan, bundle: Bundle, night: Night, files: Files | None
) -> Nightly:
    """Return what is measured of a night (`evaluation.nightly`). files: reads photos whose pixels are not kept."""
    return nightly_measures(tonight_of(store, config, plan.rows, bundle, night, files))


def tonight_of(
    store: Store, config: NightSettings, asked: pa.Table, bundle: Bundle, night: Night, files: Files | None
) -> Tonight:
    """Return what the measures look at. asked: the plan's rows."""
    named = [name for name in ("item_id", night.category) if name is not None and name in asked.column_names]
    return Tonight(
        config=config.measures,
        store=store,
        night=night,
        catalogue=asked.select(named),
        look=_Looking(store, config, asked, bundle, files),
        code_levels=code_places(bundle.model),
        num_codes=sum(codebook_sizes(bundle.model)),
        told=category_told(config) is not None,
        prior=_prior_of(store, bundle, night),
    )


def _prior_of(store: Store, bundle: Bundle, night: Night) -> Callable[[Rows, Codes], NDArray[np.float64]] | LeftOut:
    """Return what the bundle's newest prior says of photos; where there is none, why not."""
    if not bundle.model.num_latent_codes:
        return LeftOut("the model has no codes")
    try:
        stored = newest_prior(store, bundle.model_id)
    except (InputError, IntegrityError) as error:  # of another version, or damaged: no reason to publish nothing
        return LeftOut(f"the prior of this bundle cannot be read: {error}")
    if stored is None:
        return LeftOut("this bundle has no prior; `codebooks prior` trains one")
    prior, cells = stored.prior, stored.prior.grid[0] * stored.prior.grid[1]
    if cells != bundle.model.num_latent_codes:
        return LeftOut(f"the prior {stored.prior_id[:12]} is of {cells} codes a photo, not of this model's")
    told = night.category if prior.labels else None
    if prior.labels and (told is None or told not in night.items.column_names):
        return LeftOut(f"the prior {stored.prior_id[:12]} is told categories, and catalogue.category names none")

    def nats(rows: Rows, codes: Codes) -> NDArray[np.float64]:
        condition = None if told is None else condition_rows(take_column(night.items[told], rows), prior.labels)
        return item_nats(prior, codes.reshape(len(codes), *prior.grid), condition=condition) / cells

    return nats


def measured_files(found: Nightly, measures: Mapping[str, float]) -> dict[str, Iterator[ReleaseFile]]:
    """Return the table `measures` and what the next night compares with, as files by role.

    measures: all of the release by name; those that are not among the found stand first.
    """
    known = whole_catalogue(found.found)
    others = [Measured(name, value) for name, value in measures.items() if name not in known]
    tables = {"measures": table_files(measures_table([*others, *found.found]))}
    return tables if found.asked is None else {**tables, ROLE: table_files(found.asked)}


def code_places(model: Model) -> dict[str, Rows]:
    """Return where among a photo's codes each level's stand, by level; nothing for a model without codes."""
    if not model.num_latent_codes:
        return {}
    levels = model.code_levels(torch.arange(model.num_latent_codes)[None])
    return {name: level.flatten().numpy().astype(np.int64) for name, level in levels.items()}


@dataclass(frozen=True, slots=True)
class _Looking:
    """Reads photos once more and shows re-shot views of them to the bundle, on this machine's processors."""

    store: Store
    config: NightSettings
    plan_rows: pa.Table
    bundle: Bundle
    files: Files | None

    def __call__(self, tonight: Tonight) -> Looked | LeftOut:
        if set(OF_PIXELS) <= set(tonight.config.without):
            return LeftOut("it is off")
        rows, uniform = chosen_photos(tonight)
        show = _Show(tonight, self, rows)
        seen = [show(places, pixels) for places, pixels in self._batches(tonight, rows)]
        if not seen:
            return LeftOut("no photo's pixels are kept (images.keep), and none were fetched again (measures.fetched)")
        places = np.concatenate([one.places for one in seen])
        errors = [one.mse for one in seen if one.mse is not None]
        order, later = np.argsort(places), np.argsort(places[places < SECOND])
        return Looked(
            rows=rows[places[order]],
            uniform=int((places < uniform).sum()),
            first=joined([one.first for one in seen]).take(order),
            second=joined([one.second for one in seen]).take(later),
            mse=np.concatenate(errors)[order] if errors else None,
            missing=len(rows) - len(places),
        )

    def _batches(self, tonight: Tonight, rows: Rows) -> Iterator[tuple[Rows, list[Pixels]]]:
        """Yield places among the rows, and their photos in each of the model's sizes, of those that can be had."""
        items, catalogue = tonight.night.items, self.config.catalogue
        transforms = [images.under(self.config.images) for images in self.bundle.transforms]
        albums = [
            Pictures(self.store, images, number, self.files, catalogue, self.plan_rows)
            for number, images in enumerate(transforms)
        ]
        part, row = (take_column(items[name], rows).to_pylist() for name in ("pixels_part", "pixels_row"))
        reading = sorted(range(len(rows)), key=lambda place: (part[place] or "", row[place] or 0))
        for start in range(0, len(reading), _BATCH):
            wanted = np.array(reading[start : start + _BATCH], np.int64)
            try:
                found = [album.read(items, rows[wanted].tolist()) for album in albums]
            except (Unavailable, Forbidden):  # a release is as good without photos that cannot be had at this moment
                albums = [replace(album, files=None) for album in albums]  # nor are the others waited for
                found = [album.read(items, rows[wanted].tolist()) for album in albums]
            places = wanted[[all(one in each for each in found) for one in rows[wanted].tolist()]]
            if len(places):
                yield places, [np.stack([each[one] for one in rows[places].tolist()]) for each in found]


@dataclass(frozen=True, slots=True)
class _Seen:
    """A batch of photos: places among those asked for; otherwise as `Looked`."""

    places: Rows
    first: LatentArrays
    second: LatentArrays
    mse: NDArray[np.float64] | None


class _Show:
    """Shows photos to a bundle, each in two ways that follow from its item alone: the same each night."""

    def __init__(self, tonight: Tonight, looking: _Looking, rows: Rows) -> None:
        """rows: of items, those of all photos that may be shown."""
        model, self._seed = looking.bundle.model, tonight.config.seed
        self._model = model
        self._keys = hashes(tonight.names(rows), self._seed).tolist()
        told, self._condition = category_told(looking.config), None
        if told is not None:
            categories = take_column(tonight.night.items[told], rows).cast(pa.string()).to_pylist()
            self._condition = condition_of(model.labels, categories)
        self._encoder = Encoder(
            model,
            batch_size=min(_BATCH, max(1, len(rows))),
            precision=looking.config.encode.precision,
            threads=torch.get_num_threads(),
        )

    def __call__(self, places: Rows, pixels: Sequence[Pixels]) -> _Seen:
        """Return what the bundle says of photos at these places; pixels: uint8 [b, size, size, 3] of each size."""
        twice = np.flatnonzero(places < SECOND)
        second = self._views(places[twice], [each[twice] for each in pixels], 1)
        return _Seen(places, self._views(places, pixels, 0), second, self._errors(places, pixels[0]))

    def _views(self, places: Rows, pixels: Sequence[Pixels], view: int) -> LatentArrays:
        shown = []
        for each in pixels:
            hows = (drawn_reshot(self._keys[place], seed=self._seed, view=view) for place in places.tolist())
            taken = [reshot(photo, how) for photo, how in zip(each, hows, strict=True)]
            shown.append(np.stack(taken) if taken else each)
        condition = None if self._condition is None else self._condition[places].numpy()
        return self._encoder(shown, np.arange(len(places)), condition)

    def _errors(self, places: Rows, pixels: Pixels) -> NDArray[np.float64] | None:
        """Return each photo's mean squared error as the bundle draws it, or None where it draws nothing."""
        images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
        condition = None if self._condition is None else self._condition[places]
        try:
            with torch.inference_mode():
                drawn = self._model.reconstruct(images, condition).float()
        except NotReconstructing:
            return None
        return (drawn - to_float(images)).square().mean(dim=(1, 2, 3)).double().numpy()


def joined(parts: Sequence[LatentArrays]) -> LatentArrays:
    """Return the latents of several batches as one, of which each holds the same arrays."""
    first = parts[0]
    return LatentArrays(
        mean=np.concatenate([one.mean for one in parts]),
        log_var=None
        if first.log_var is None
        else np.concatenate([one.log_var for one in parts if one.log_var is not None]),
        codes=None if first.codes is None else np.concatenate([one.codes for one in parts if one.codes is not None]),
    )

"""What one actor does with one shard: fetch, decode, write pixels, encode, write latents. Plain classes, no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from ..errors import ConfigError, IntegrityError, PhotoRefused, Unavailable
from ..images import transform_id
from ..index import LatentArrays
from ..models.base import Model, stored_transforms
from ..models.bundle import load_bundle, stored_config
from ..models.conditions import condition_of
from ..models.seen import features_read
from ..ordering import as_numpy
from ..parts import PartFile, find_part, has_pixels, load_part, put_part, read_part, write_part
from ..refusals import KEPT
from ..schema import CATEGORY, latents_schema, pixels_column
from ..storage import Store
from .answers import answered, lacking_in, without
from .config import EncodeConfig, EncodeJob
from .decoding import PhotoDecoder, Pixels, pixel_array, without_pixels
from .encoder import Encoder
from .opened import Opened
from .shards import Shard, ShardResult, Unanswered, check_latents, features_part
from .unfit import Unfit, finite_rows, not_finite, with_unfit

_Killers = dict[tuple[str, str], PhotoRefused]


class ShardWorker:
    """Turns shards into parts; each part is written once, and whoever wrote it first is used by all others.

    stored: how many of the decoder's transforms, the first ones, a pixels part holds; by default all. own: the numbers
    of those that the encoder takes; by default those stored. A teacher's are not among them: its sizes are decoded in
    the same pass and not stored. teacher: the model_id and precision of one whose features are all that the encoder
    reads: where it has latents of a shard's photos, these are encoded, and no photo is fetched or decoded for it.
    """

    def __init__(
        self,
        store: Store,
        decoder: PhotoDecoder,
        encoder: Encoder | None,
        *,
        stored: int | None = None,
        own: Sequence[int] | None = None,
        teacher: tuple[str, str] | None = None,
    ) -> None:
        self.store = store
        self.decoder = decoder
        self.encoder = encoder
        self.stored = len(decoder.images) if stored is None else stored
        self.own = tuple(range(self.stored)) if own is None else tuple(own)
        self.teacher = teacher

    def __call__(self, shard: Shard) -> ShardResult:
        """Return what became of a shard. Raises Unavailable, IntegrityError."""
        opened = self.open(shard)
        return self.encode(opened) if isinstance(opened, Opened) else opened

    def open(self, shard: Shard) -> ShardResult | Opened:
        """Fetch, decode and write a shard's pixels, and return them for `encode`; what became of it where that is all.

        Raises Unavailable, IntegrityError.
        """
        count, fetched, pixels_file = shard.photos.num_rows, 0, None
        lacking: tuple[Unanswered, ...] = ()
        killers = _by_key(shard)
        if shard.from_pixels is not None:
            table, rows = self._kept(shard)
        else:
            pixels_file, table, fetched, lacking = self._pixels(shard)
            rows = np.flatnonzero(as_numpy(pc.is_null(table["stage"])).astype(np.bool_))
            shard = without(shard, lacking)
        refused, latents = count - len(rows), None
        if shard.photos.num_rows and shard.latents_name is not None and shard.latents_key is not None:
            latents = find_part(self.store, shard.latents_name, shard.latents_key)
            if latents is None:
                result = ShardResult(shard.number, pixels_file, None, count, refused, fetched, False, lacking)
                return self._opened(shard, table, rows, killers, result)
            refused += check_latents(self.store, latents, len(rows))
        return ShardResult(
            shard.number, pixels_file, latents, count, refused, fetched, reused=fetched == 0, unanswered=lacking
        )

    def encode(self, opened: Opened) -> ShardResult:
        """Encode and write the latents of a shard that `open` returned."""
        if self.encoder is None:
            raise ConfigError(
                f"shard {opened.result.number} asks for latents and this worker was built without a model"
            )
        labels = self.encoder.model.labels
        condition = None if opened.categories is None else condition_of(labels, opened.categories).numpy()
        if opened.features is None:
            arrays = self.encoder(opened.pixels, opened.places, condition)
        else:
            arrays = self.encoder.of_features(opened.features, opened.places, condition)
        finite = finite_rows((arrays.mean, arrays.log_var))
        unfit = [*opened.unfit, *(not_finite(int(row)) for row in opened.rows[~finite])]
        photos = opened.photos.filter(pa.array(finite))
        latents = with_unfit(_latents_table(photos, opened.rows[finite], arrays.take(finite)), unfit)
        part = write_part(self.store, opened.latents_name, latents, opened.latents_key)
        refused = opened.result.refused + check_latents(self.store, part, opened.usable)
        return replace(opened.result, latents=part, refused=refused)

    def rehearse(self, shard: Shard) -> None:
        """Do to a shard's photos all that could kill a process, and write nothing; without photos, to a black one."""
        if self.encoder is None:
            self.decoder(shard.photos)
            return
        if not shard.photos.num_rows:
            black = [np.zeros((1, size, size, 3), np.uint8) for size in self._sizes()]
            nothing = condition_of(self.encoder.model.labels, [None]).numpy() if shard.tells else None
            self.encoder(black, np.zeros(1, np.int64), nothing)
            return
        if shard.from_pixels is not None:
            table, rows = self._kept(shard)
        else:
            table = self.decoder(shard.photos)
            rows = np.flatnonzero(as_numpy(pc.is_null(table["stage"])).astype(np.bool_))
        self.encoder(self._arrays(table), rows, _conditions(shard, rows, self.encoder.model))

    def _sizes(self) -> list[int]:
        return [self.decoder.images[number].size for number in self.own]

    def _arrays(self, table: pa.Table) -> list[Pixels]:
        """Return the pixels that the encoder takes, of a table that has them."""
        return [pixel_array(table, size, number) for size, number in zip(self._sizes(), self.own, strict=True)]

    def _pixels(self, shard: Shard) -> tuple[PartFile | None, pa.Table, int, tuple[Unanswered, ...]]:
        """Return the pixels part on the store, its table, how many photos were fetched for it, and those it lacks.

        The table of photos fetched now has the pixels of all transforms, that of a part those the part stores. A part
        holds what the decoder said. What may pass (no answer, refused, changed on the way) is never written:
        the part would say it again to every later try, long after it has been put right.
        """
        fetched = 0
        found = load_part(self.store, shard.pixels_name, shard.pixels_key)
        lacking: tuple[Unanswered, ...] = ()
        if found is None:
            table, fetched = self.decoder(shard.photos, shard.killers), shard.photos.num_rows
            table, lacking = answered(table)
            if not table.num_rows:
                return None, table, fetched, lacking
            held = without_pixels(table, self.stored if has_pixels(shard.pixels_name) else 0)
            part, same = put_part(self.store, shard.pixels_name, held, shard.pixels_key)
            if same:
                return part, table, fetched, lacking
            found = load_part(self.store, shard.pixels_name, shard.pixels_key)
            if found is None:
                raise IntegrityError(f"{shard.pixels_name} is gone: something deletes parts while a run is alive")
        return *found, fetched, lacking_in(found[1], shard, lacking)

    def _kept(self, shard: Shard) -> tuple[pa.Table, npt.NDArray[np.int64]]:
        """Return the existing pixels part of carried photos, and their rows in it, checked photo by photo."""
        columns = ["item_id", "uri", "token", "digest", "stage", *(pixels_column(number) for number in self.own)]
        table = read_part(self.store, shard.pixels_name, columns)
        rows = as_numpy(shard.photos["pixels_row"]).astype(np.int64)
        if rows.max(initial=-1) >= table.num_rows:
            raise IntegrityError(f"{shard.pixels_name} has {table.num_rows} rows, the release names row {rows.max()}")
        keys = ["item_id", "uri", "token"]
        held = table.select([*keys, "stage"]).take(pa.array(rows))
        if held["stage"].null_count != len(rows) or not _same(held, shard.photos, keys):
            raise IntegrityError(
                f"{shard.pixels_name} does not hold the photos that the parent release names in it; "
                "refuse that release's pixels by raising images, or restore the file"
            )
        return table, rows

    def _opened(
        self, shard: Shard, table: pa.Table, rows: npt.NDArray[np.int64], killers: _Killers, result: ShardResult
    ) -> Opened:
        """Return the rows of a pixels table that are to be encoded, fetched again where it has no pixels for that."""
        usable, told = len(rows), _categories(shard, rows)
        unfit: list[Unfit] = []
        if killers:  # those whose pixels are in the part all the same: it was there before they killed the encoder
            held = table.select(["item_id", "uri"]).take(pa.array(rows)).to_pylist()
            found = {at: killers.get((row["item_id"], row["uri"])) for at, row in enumerate(held)}
            guilty = {at: refusal for at, refusal in found.items() if refusal is not None}
            unfit = [Unfit(int(rows[at]), refusal.reason, refusal.detail) for at, refusal in guilty.items()]
            told = None if told is None else [label for at, label in enumerate(told) if at not in guilty]
            rows = np.delete(rows, list(guilty))
        features = self._features(shard, rows)
        if features is not None:
            pixels, places = [], np.arange(len(rows))
        elif set(map(pixels_column, self.own)) <= set(table.column_names):
            pixels, places = self._arrays(table), rows
        else:
            result = replace(result, fetched=result.fetched + len(rows))
            pixels, refused = self._fetched_again(shard, table, rows)
            unfit += refused
            usable_rows = ~np.isin(rows, [one.pixels_row for one in refused])
            told = None if told is None else [label for label, keep in zip(told, usable_rows, strict=True) if keep]
            places, rows = np.flatnonzero(usable_rows), rows[usable_rows]
        photos = table.select(["item_id", "uri", "token", "digest"]).take(pa.array(rows))
        return Opened(
            result, str(shard.latents_name), str(shard.latents_key), photos, pixels, places, rows, told, tuple(unfit),
            usable, features,
        )  # fmt: skip

    def _features(self, shard: Shard, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32] | None:
        """Return what the model's teacher has said of photos, float32 [n, D]; None where it has not, of one or all.

        rows: theirs in the pixels part. The night that trains the model has asked the teacher of every photo just
        before; later nights find nothing, and show photos to the teacher in the bundle.
        """
        if self.teacher is None:
            return None
        found = load_part(self.store, *features_part(shard, *self.teacher))
        if found is None:
            return None
        held = as_numpy(found[1]["pixels_row"]).astype(np.int64)
        order = np.argsort(held)
        at = np.searchsorted(held, rows, sorter=order)
        if len(held) < len(rows) or (at == len(held)).any() or (held[order[at]] != rows).any():
            return None
        mean = found[1]["mean"].combine_chunks()
        return np.asarray(mean.flatten(), np.float32).reshape(len(held), -1)[order[at]]

    def _fetched_again(
        self, shard: Shard, table: pa.Table, rows: npt.NDArray[np.int64]
    ) -> tuple[list[Pixels], list[Unfit]]:
        """Return the pixels of photos whose part does not hold what the encoder takes, and those that are refused now.

        The part was written by another model's night, or by an attempt that ended before its latents. Raises
        Unavailable where a photo does not answer or has changed since: nothing may be written of that.
        """
        images = [self.decoder.images[number] for number in self.own]
        decode = PhotoDecoder(self.decoder.reader, *images, threads=self.decoder.threads)
        seen = decode(shard.photos.take(pa.array(rows)).combine_chunks())
        before = table["digest"].take(pa.array(rows)).to_pylist()
        said = seen.select(["uri", "digest", "reason", "detail"]).to_pylist()
        gone = [
            now for now, digest in zip(said, before, strict=True)
            if now["reason"] not in KEPT and now["digest"] != digest
        ]  # fmt: skip
        if gone:
            raise Unavailable(
                f"{len(gone)} of {len(rows)} photos that {shard.pixels_name} names, and holds no pixels of for this "
                f"model, cannot be had again (first: {gone[0]['uri']}: {gone[0]['reason'] or 'other bytes'}); finished "
                "parts are kept, run again"
            )
        refused = [
            Unfit(int(row), now["reason"], now["detail"]) for row, now in zip(rows, said, strict=True) if now["reason"]
        ]
        return [pixel_array(seen, each.size, number) for number, each in enumerate(images)], refused


def _by_key(shard: Shard) -> _Killers:
    """Return a shard's killers by (item_id, uri)."""
    items, uris = shard.photos["item_id"], shard.photos["uri"]
    return {(items[killer.row].as_py(), uris[killer.row].as_py()): killer.refusal for killer in shard.killers}


def _conditions(shard: Shard, rows: npt.NDArray[np.int64], model: Model) -> npt.NDArray[np.int64] | None:
    """Return the condition row of each encoded photo; rows: where they lie in the pixels part."""
    told = _categories(shard, rows)
    return None if told is None else condition_of(model.labels, told).numpy()


def _categories(shard: Shard, rows: npt.NDArray[np.int64]) -> list[str | None] | None:
    if not shard.tells:
        return None
    told = shard.photos[CATEGORY.name]
    # A part made for this shard has its rows; an existing one has others, and all the shard's photos are encoded.
    categories: list[str | None] = (told.take(pa.array(rows)) if shard.from_pixels is None else told).to_pylist()
    return categories


def make_worker(job: EncodeJob, *, encodes: bool = True) -> ShardWorker:
    """Return the worker of a job, with its bundle loaded; encodes: False for one that only opens shards, without it.

    What the bundle's model sees is decoded beside what the parts store; the limits are the job's.
    """
    images = list(job.transforms)
    if job.model_id is None:
        decoder = PhotoDecoder(job.reader(), *images, threads=job.encode.threads)
        return ShardWorker(job.store, decoder, None)
    bundle = load_bundle(job.store, job.model_id) if encodes else None
    config, images_seen = (bundle.config, bundle.images) if bundle else stored_config(job.store, job.model_id)
    seen_by_model, teacher = stored_transforms(images_seen), features_read(config)
    ids, own = [transform_id(each) for each in images], []
    for each in seen_by_model:
        seen = each.under(job.images)
        if transform_id(seen) not in ids:
            images.append(seen)
            ids.append(transform_id(seen))
        own.append(ids.index(transform_id(seen)))
    decoder = PhotoDecoder(job.reader(), *images, threads=job.encode.threads)
    encoder = make_encoder(bundle.model, job.encode) if bundle else None
    read = None if teacher is None else (teacher, job.encode.precision)
    return ShardWorker(job.store, decoder, encoder, stored=len(job.transforms), own=own, teacher=read)


def make_encoder(model: Model, config: EncodeConfig) -> Encoder:
    """Return the encoder that `config` describes. Raises ConfigError when it names a GPU and torch sees none."""
    # Not wherever CUDA is: an actor that asked for no GPU may see those of its machine, and others use them.
    sees = torch.cuda.is_available()
    if config.gpus_per_actor not in ("auto", 0) and not sees:
        raise ConfigError(
            f"encode.gpus_per_actor is {config.gpus_per_actor} and torch {torch.__version__} sees no CUDA device; "
            "install torch for CUDA on the workers or set it to 0"
        )
    device = "cuda" if config.gpus_per_actor and sees else "cpu"
    return Encoder(
        model,
        batch_size=config.batch_size,
        precision=config.precision,
        threads=config.threads,
        device=device,
        compiles=config.compile,
    )


def _latents_table(photos: pa.Table, rows: npt.NDArray[np.int64], arrays: LatentArrays) -> pa.Table:
    dim = arrays.mean.shape[1]
    num_codes = 0 if arrays.codes is None else arrays.codes.shape[1]
    schema = latents_schema(dim, log_var=arrays.log_var is not None, num_codes=num_codes)
    columns = [*photos.columns, pa.array(rows, pa.int32()), _vectors(arrays.mean)]
    columns += [_vectors(array) for array in (arrays.log_var, arrays.codes) if array is not None]
    return pa.Table.from_arrays(columns, schema=schema)


def _vectors(array: npt.NDArray[np.float32] | npt.NDArray[np.int32]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])


def _same(left: pa.Table, right: pa.Table, names: list[str]) -> bool:
    return all(left[name].combine_chunks().equals(right[name].combine_chunks()) for name in names)

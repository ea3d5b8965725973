"""What one actor does with one shard: fetch, decode, write pixels, encode, write latents. Plain classes, no Ray."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from ..catalogue.ordering import as_numpy
from ..errors import CodebooksError, ConfigError, IntegrityError, PhotoRefused
from ..images import ImagesConfig, decode
from ..index import LatentArrays
from ..keys import digest_of
from ..models.base import Model
from ..models.bundle import load_bundle
from ..models.conditions import condition_of
from ..parts import PartFile, find_part, load_part, put_part, read_part, write_part
from ..schema import CATEGORY, latents_schema, pixels_schema
from ..storage import Store
from .answers import answered, lacking_in, without
from .config import EncodeConfig, EncodeJob, Precision
from .shards import Killer, Shard, ShardResult, Unanswered, check_latents
from .unfit import Unfit, finite_rows, not_finite, with_unfit

_log = logging.getLogger(__name__)

READ_ROWS = 256  # photos whose bytes are held at a time; while they are decoded the next ones are fetched

Pixels = npt.NDArray[np.uint8]
_Killers = dict[tuple[str, str], PhotoRefused]


class Reader(Protocol):
    """What turns rows of photos into bytes; `catalogue.PhotoReader` is one."""

    def read(self, photos: pa.Table) -> list[bytes | PhotoRefused]:
        """Return each photo's bytes, or why it cannot be had, in order. Raises Unavailable on temporary failures."""


class Encoder:
    """Runs a model over pixels in batches of exactly `batch_size`, so that a photo's bits depend on nothing else.

    The last batch is padded, the memory format is contiguous NCHW and the number of torch threads is fixed: each of
    these changes the last bits of a convolution.
    """

    def __init__(
        self, model: Model, *, batch_size: int, precision: Precision = "fp32", threads: int = 1, device: str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.batch_size = batch_size
        self.precision = precision
        self.threads = threads

    def __call__(
        self, pixels: Pixels, rows: npt.NDArray[np.int64], condition: npt.NDArray[np.int64] | None = None
    ) -> LatentArrays:
        """Return the latents of `pixels[rows]`, pixels uint8 RGB [n, size, size, 3].

        condition: of each of `rows`, for a conditional model (see `models.conditions.condition_of`).
        """
        model = self.model
        mean = np.empty((len(rows), model.latent_dim), np.float32)
        log_var = np.empty_like(mean) if model.has_log_var else None
        codes = np.empty((len(rows), model.num_latent_codes), np.int32) if model.num_latent_codes else None
        autocast = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")
        with _torch_threads(self.threads), torch.inference_mode(), autocast:
            for start in range(0, len(rows), self.batch_size):
                took = rows[start : start + self.batch_size]
                batch = np.zeros((self.batch_size, *pixels.shape[1:]), np.uint8)
                batch[: len(took)] = pixels[took]
                images = torch.from_numpy(batch).to(self.device).permute(0, 3, 1, 2).contiguous()
                latents = model.encode(images, self._padded(condition, start))
                end = start + len(took)
                mean[start:end] = latents.mean[: len(took)].float().cpu().numpy()
                if log_var is not None and latents.log_var is not None:
                    log_var[start:end] = latents.log_var[: len(took)].float().cpu().numpy()
                if codes is not None and latents.codes is not None:
                    codes[start:end] = latents.codes[: len(took)].cpu().numpy()
        return LatentArrays(mean, log_var, codes)

    def _padded(self, condition: npt.NDArray[np.int64] | None, start: int) -> torch.Tensor | None:
        if condition is None:
            return None
        took = condition[start : start + self.batch_size]
        batch = np.zeros(self.batch_size, np.int64)
        batch[: len(took)] = took
        return torch.from_numpy(batch).to(self.device)


class PhotoDecoder:
    """Fetches and decodes the photos of a shard into the table of a pixels part."""

    def __init__(self, reader: Reader, images: ImagesConfig, *, threads: int = 1) -> None:
        self.reader = reader
        self.images = images
        self.threads = threads

    def __call__(self, photos: pa.Table, killers: Sequence[Killer] = ()) -> pa.Table:
        """Return the rows of `photos` with schema.pixels_schema; a refused photo has no pixels but a reason.

        killers: rows that are refused without being touched. Raises Unavailable when a photo cannot be fetched for now.
        """
        size, count = self.images.size, photos.num_rows
        pixels = np.zeros((count, size, size, 3), np.uint8)
        digests: list[str | None] = [None] * count
        refusals: list[PhotoRefused | None] = [None] * count
        for killer in killers:
            refusals[killer.row] = killer.refusal
        with ThreadPoolExecutor(self.threads) as pool:
            for rows, answers in self._read(photos, [killer.row for killer in killers]):
                decoded = pool.map(self._decode, answers) if self.threads > 1 else map(self._decode, answers)
                for row, photo in zip(rows.tolist(), decoded, strict=True):
                    if isinstance(photo, PhotoRefused):
                        refusals[row] = photo
                    else:
                        digests[row], pixels[row] = photo
        return _pixels_table(photos, digests, pixels, refusals)

    def _read(
        self, photos: pa.Table, untouched: list[int]
    ) -> Iterator[tuple[npt.NDArray[np.int64], list[bytes | PhotoRefused]]]:
        """Yield rows and what was read of them, one stretch ahead; embedded photos in the order of their files."""
        order = np.asarray(pc.sort_indices(photos, [("source", "ascending"), ("offset", "ascending")]), np.int64)
        order = order[~np.isin(order, untouched)]
        stretches = [order[start : start + READ_ROWS] for start in range(0, len(order), READ_ROWS)]
        if not stretches:
            return
        with ThreadPoolExecutor(1) as ahead:
            pending = ahead.submit(self.reader.read, photos.take(pa.array(stretches[0])))
            for number, rows in enumerate(stretches):
                answers = pending.result()
                if len(answers) != len(rows):
                    raise IntegrityError(f"the reader answered {len(answers)} of {len(rows)} photos")
                if number + 1 < len(stretches):
                    pending = ahead.submit(self.reader.read, photos.take(pa.array(stretches[number + 1])))
                yield rows, answers

    def _decode(self, answer: bytes | PhotoRefused) -> tuple[str, Pixels] | PhotoRefused:
        if isinstance(answer, PhotoRefused):
            return answer
        try:
            return digest_of(answer), decode(answer, self.images)
        except PhotoRefused as refused:
            return refused
        except (CodebooksError, ImportError):  # our mistake or a missing Pillow: every photo would be refused for it
            raise
        except Exception as error:  # noqa: BLE001 - one photo that crashes Pillow in a new way must not stop the night
            # Its text may quote bytes of the file, and a quarantine is published: it goes to this machine's log only.
            _log.warning("decode failed in a way that has no reason word yet: %s: %s", type(error).__name__, error)
            return PhotoRefused("decode", "broken", f"{type(error).__name__}, for which there is no reason word yet")


class ShardWorker:
    """Turns shards into parts; each part is written once, and whoever wrote it first is used by all others."""

    def __init__(self, store: Store, decoder: PhotoDecoder, encoder: Encoder | None) -> None:
        self.store = store
        self.decoder = decoder
        self.encoder = encoder
        self.size = decoder.images.size

    def __call__(self, shard: Shard) -> ShardResult:
        """Return what became of a shard. Raises Unavailable, IntegrityError."""
        count, fetched, pixels_file = shard.photos.num_rows, 0, None
        lacking: tuple[Unanswered, ...] = ()
        killers = _by_key(shard)
        if shard.from_pixels is not None:
            table, rows = self._kept(shard)
        else:
            pixels_file, table, fetched, lacking = self._pixels(shard)
            rows = np.flatnonzero(as_numpy(pc.is_null(table["stage"])).astype(np.bool_))
            shard = without(shard, lacking)
        refused = count - len(rows)
        latents_file, reused = None, False
        if shard.photos.num_rows and shard.latents_name is not None and shard.latents_key is not None:
            latents_file = find_part(self.store, shard.latents_name, shard.latents_key)
            reused = latents_file is not None
            latents_file = latents_file or self._encode(shard, table, rows, killers)
            refused += check_latents(self.store, latents_file, len(rows))
        return ShardResult(
            number=shard.number,
            pixels=pixels_file,
            latents=latents_file,
            photos=count,
            refused=refused,
            fetched=fetched,
            reused=fetched == 0 and (reused or latents_file is None),
            unanswered=lacking,
        )

    def rehearse(self, shard: Shard) -> None:
        """Do to a shard's photos all that could kill a process, and write nothing; without photos, to a black one."""
        if self.encoder is None:
            self.decoder(shard.photos)
            return
        if not shard.photos.num_rows:
            black = np.zeros((1, self.size, self.size, 3), np.uint8)
            nothing = condition_of(self.encoder.model.labels, [None]).numpy() if shard.tells else None
            self.encoder(black, np.zeros(1, np.int64), nothing)
            return
        if shard.from_pixels is not None:
            table, rows = self._kept(shard)
        else:
            table = self.decoder(shard.photos)
            rows = np.flatnonzero(as_numpy(pc.is_null(table["stage"])).astype(np.bool_))
        self.encoder(_pixel_array(table, self.size), rows, _conditions(shard, rows, self.encoder.model))

    def _pixels(self, shard: Shard) -> tuple[PartFile | None, pa.Table, int, tuple[Unanswered, ...]]:
        """Return the pixels part on the store, its table, how many photos were fetched for it, and those it lacks.

        A part holds what the decoder said. What may pass (no answer, refused, changed on the way) is never written:
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
            part, same = put_part(self.store, shard.pixels_name, table, shard.pixels_key)
            if same:
                return part, table, fetched, lacking
            found = load_part(self.store, shard.pixels_name, shard.pixels_key)
            if found is None:
                raise IntegrityError(f"{shard.pixels_name} is gone: something deletes parts while a run is alive")
        return *found, fetched, lacking_in(found[1], shard, lacking)

    def _kept(self, shard: Shard) -> tuple[pa.Table, npt.NDArray[np.int64]]:
        """Return the existing pixels part of carried photos, and their rows in it, checked photo by photo."""
        columns = ["item_id", "uri", "token", "digest", "stage", "pixels"]
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

    def _encode(self, shard: Shard, table: pa.Table, rows: npt.NDArray[np.int64], killers: _Killers) -> PartFile:
        if self.encoder is None or shard.latents_name is None or shard.latents_key is None:
            raise ConfigError(f"shard {shard.number} asks for latents and this worker was built without a model")
        condition = _conditions(shard, rows, self.encoder.model)
        unfit: list[Unfit] = []
        if killers:  # those whose pixels are in the part all the same: it was there before they killed the encoder
            held = table.select(["item_id", "uri"]).take(pa.array(rows)).to_pylist()
            found = {at: killers.get((row["item_id"], row["uri"])) for at, row in enumerate(held)}
            guilty = {at: refusal for at, refusal in found.items() if refusal is not None}
            unfit = [Unfit(int(rows[at]), refusal.reason, refusal.detail) for at, refusal in guilty.items()]
            condition = None if condition is None else np.delete(condition, list(guilty))
            rows = np.delete(rows, list(guilty))
        arrays = self.encoder(_pixel_array(table, self.size), rows, condition)
        finite = finite_rows((arrays.mean, arrays.log_var))
        unfit += [not_finite(int(row)) for row in rows[~finite]]
        photos = table.take(pa.array(rows[finite])).select(["item_id", "uri", "token", "digest"])
        latents = with_unfit(_latents_table(photos, rows[finite], arrays.take(finite)), unfit)
        return write_part(self.store, shard.latents_name, latents, shard.latents_key)


def _by_key(shard: Shard) -> _Killers:
    """Return a shard's killers by (item_id, uri)."""
    items, uris = shard.photos["item_id"], shard.photos["uri"]
    return {(items[killer.row].as_py(), uris[killer.row].as_py()): killer.refusal for killer in shard.killers}


def _conditions(shard: Shard, rows: npt.NDArray[np.int64], model: Model) -> npt.NDArray[np.int64] | None:
    """Return the condition row of each encoded photo; rows: where they lie in the pixels part."""
    if not shard.tells:
        return None
    told = shard.photos[CATEGORY.name]
    # A part made for this shard has its rows; an existing one has others, and all the shard's photos are encoded.
    categories = told.take(pa.array(rows)) if shard.from_pixels is None else told
    return condition_of(model.labels, categories.to_pylist()).numpy()


def make_worker(job: EncodeJob) -> ShardWorker:
    """Return the worker of a job, with its bundle loaded. Raises ConfigError when bundle and images do not fit."""
    decoder = PhotoDecoder(job.reader(), job.images, threads=job.encode.threads)
    if job.model_id is None:
        return ShardWorker(job.store, decoder, None)
    model = load_bundle(job.store, job.model_id).model
    if model.image_size != job.images.size:
        raise ConfigError(
            f"bundle {job.model_id} encodes photos of {model.image_size} pixels a side; "
            f"images.size is {job.images.size}, set it to that"
        )
    return ShardWorker(job.store, decoder, make_encoder(model, job.encode))


def make_encoder(model: Model, config: EncodeConfig) -> Encoder:
    """Return the encoder that `config` describes. Raises ConfigError when it names a GPU and torch sees none."""
    # Not wherever CUDA is: an actor that asked for no GPU may see those of its machine, and others use them.
    if config.gpus_per_actor and not torch.cuda.is_available():
        raise ConfigError(
            f"encode.gpus_per_actor is {config.gpus_per_actor} and torch {torch.__version__} sees no CUDA device; "
            "install torch for CUDA on the workers or set it to 0"
        )
    device = "cuda" if config.gpus_per_actor else "cpu"
    return Encoder(
        model, batch_size=config.batch_size, precision=config.precision, threads=config.threads, device=device
    )


def _pixels_table(
    photos: pa.Table, digests: list[str | None], pixels: Pixels, refusals: list[PhotoRefused | None]
) -> pa.Table:
    usable = np.array([refusal is None for refusal in refusals], np.bool_)
    size = pixels.shape[1]
    schema = pixels_schema(size)
    # From the array's own memory: one row of `pixels` is one value, a cleared bit in the first buffer is a null.
    bits = pa.py_buffer(np.packbits(usable, bitorder="little"))
    values = pa.Array.from_buffers(pa.binary(size * size * 3), len(pixels), [bits, pa.py_buffer(pixels)])
    columns = [
        *(photos[name] for name in ("item_id", "uri", "token")),
        pa.array(digests, pa.string()),
        values,
        pa.array([refusal and refusal.stage for refusal in refusals], pa.string()),
        pa.array([refusal and refusal.reason for refusal in refusals], pa.string()),
        pa.array([refusal and refusal.detail for refusal in refusals], pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _latents_table(photos: pa.Table, rows: npt.NDArray[np.int64], arrays: LatentArrays) -> pa.Table:
    dim = arrays.mean.shape[1]
    num_codes = 0 if arrays.codes is None else arrays.codes.shape[1]
    schema = latents_schema(dim, log_var=arrays.log_var is not None, num_codes=num_codes)
    columns = [*photos.columns, pa.array(rows, pa.int32()), _vectors(arrays.mean)]
    columns += [_vectors(array) for array in (arrays.log_var, arrays.codes) if array is not None]
    return pa.Table.from_arrays(columns, schema=schema)


def _vectors(array: npt.NDArray[np.float32] | npt.NDArray[np.int32]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])


def _pixel_array(table: pa.Table, size: int) -> Pixels:
    """Return a pixels part's photos as uint8 [rows, size, size, 3] without a copy; refused rows hold anything."""
    column = table["pixels"].combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    width = size * size * 3
    if column.type != pa.binary(width):
        raise IntegrityError(f"the pixels part holds {column.type}, expected photos of {size} pixels a side")
    if not len(column):
        return np.empty((0, size, size, 3), np.uint8)
    values = np.frombuffer(column.buffers()[1], np.uint8, count=len(column) * width, offset=column.offset * width)
    return values.reshape(len(column), size, size, 3)


def _same(left: pa.Table, right: pa.Table, names: list[str]) -> bool:
    return all(left[name].combine_chunks().equals(right[name].combine_chunks()) for name in names)


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""Shards: the photos of one part each, cut from a plan, named by their keys, and found again when already done."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import InputError, IntegrityError, PhotoRefused
from ..ordering import Positions, as_numpy, ranks, take_rows
from ..parts import FoundPart, find_part, latents_part_name, part_key, part_schema, pixels_part_name, read_part
from ..schema import CATEGORY, LATENTS_VERSION, PHOTOS, PIXELS_VERSION
from ..storage import Store
from .cutting import cut
from .unfit import read_unfit

PART_BYTES = 128 * 2**20  # uncompressed pixels, or latents, of one part at most
_USUAL_SHARDS = 64  # a catalogue is cut into about this many shards: enough to balance actors and to show progress
_LEAST_ROWS = 500  # but a part is not made smaller than this for it
_UNCUT_ROWS = 1_000  # one actor has so few photos (`seats`): two shards of it would wait for each other
_FIND_THREADS = 8

Flags = npt.NDArray[np.bool_]
Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Killer:
    """A photo that kills the process that works on it. row: of the shard's photos; refusal: what its row will say."""

    row: int
    refusal: PhotoRefused


@dataclass(frozen=True, slots=True)
class Shard:
    """The photos of one part: what one actor call turns into a pixels part and a latents part.

    photos: columns of schema.PHOTOS in the parts' row order (item_id, view), and `pixels_row` where `from_pixels` is
    set, and `category` (null: none) where the model is told it. from_pixels: the existing pixels part these carried
    photos are encoded from (then also `pixels_name`); None: the photos are fetched. pixels_name: below `photos/` where
    the part does not store pixels. latents_name: None when no model is asked. killers: photos not to be touched, in row
    order; they are refused.
    """

    number: int
    photos: pa.Table
    pixels_name: str
    pixels_key: str
    latents_name: str | None
    latents_key: str | None
    from_pixels: str | None
    killers: tuple[Killer, ...] = ()

    @property
    def tells(self) -> bool:
        """Whether the model is told the photos' categories."""
        return CATEGORY.name in self.photos.column_names


class Unanswered(NamedTuple):
    """A photo that could not be had for a reason that may pass, so that no part holds it. row: of the shard's photos;
    reason, detail: as in schema.REFUSAL, of the stage `fetch`."""

    row: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class ShardResult:
    """What became of a shard; its photos are in the parts, but for those that are `unanswered`.

    pixels: None for a shard that was encoded from an existing pixels part, and where no photo was answered. latents:
    None then too, and when no model was asked. refused: photos without latents or pixels, the unanswered ones too.
    fetched: photos whose bytes were asked for. reused: every wanted part was there already. node: the machine that did
    it, in so many seconds; said: what its process has logged since the shard before.
    """

    number: int
    pixels: FoundPart | None
    latents: FoundPart | None
    photos: int
    refused: int
    fetched: int
    reused: bool
    unanswered: tuple[Unanswered, ...] = ()
    node: str = ""
    seconds: float = 0.0
    said: tuple[str, ...] = ()


def assign_shards(
    plan: pa.Table,
    *,
    image_size: int | Sequence[int],
    shard_rows: int | None = None,
    encode_all: bool = False,
    latent_bytes: int = 0,
    transform_id: str = "",
    tail_for: Callable[[int], int] = lambda _: 0,
) -> pa.Table:
    """Return the plan with its int32 column `shard` filled: null where nothing has to be computed.

    Added and changed photos are cut into shards in plan order, photos embedded in files in the order of those files,
    so that each stretch of a file is read by about one shard; photos tried again (`retried`) get shards of their own.
    Carried photos are encoded again where they have no latents (`latents_part` is null: a conditional model is told
    another category) and all of them where `encode_all` says so, for a new model: those whose pixels are kept
    (`pixels_part`, under `transform_id` where given) pixels part by pixels part, the others fetched once more.
    image_size: pixels a side, of each size that the model sees.
    latent_bytes: of one photo, uncompressed. shard_rows: rows of a fetched part at most; None: up to 1,000
    all of them, else a 64th, but 500 or more, and at most 128 MiB of pixels and of latents. tail_for: of the number of
    photos to fetch, how many actors the last shards are cut smaller for (see `cut`); shards of kept pixels stay whole.
    """
    status, retried = plan["status"], as_numpy(plan["retried"], missing=False)
    fetch = _is(status, "added") | _is(status, "changed")
    again = _is(status, "same")
    if not encode_all:
        again &= as_numpy(pc.is_null(plan["latents_part"])).astype(np.bool_)
    kept = again & _has_pixels(plan, transform_id)
    fetch |= again & ~kept
    shard = np.full(plan.num_rows, -1, dtype=np.int32)
    sides = [image_size] if isinstance(image_size, int) else image_size
    fetched = int(fetch.sum())
    limit = shard_rows or _rows_of_part(fetched, sum(3 * side * side for side in sides), latent_bytes)
    begun = 0
    for tried in (False, True):
        rows = _by_source(plan, np.flatnonzero(fetch & (retried == tried)))
        shard[rows] = begun + cut(len(rows), limit, tail_for(fetched))
        begun = int(shard.max(initial=-1)) + 1
    if kept.any():
        shard[kept] = begun + _by_part(plan["pixels_part"].filter(pa.array(kept)), latent_bytes)
    column = pa.array(shard, pa.int32(), mask=shard < 0)
    index = plan.schema.get_field_index("shard")
    return (
        plan.append_column("shard", column) if index < 0 else plan.set_column(index, plan.schema.field(index), column)
    )


def build_shards(
    plan: pa.Table,
    *,
    transform_id: str,
    model_id: str | None,
    precision: str,
    retry_of: str = "",
    category: str | None = None,
    kept: Collection[str] | None = None,
    from_parts: bool = True,
) -> list[Shard]:
    """Return the shards of a plan in number order, with the names and keys of their parts.

    Without a model_id only the shards whose photos are fetched. kept: the pixels parts that are on the store, where
    tonight's pixels are not stored; None: they are. from_parts: False where the parts lack what the model sees, so that
    carried photos are fetched. retry_of: a run that asks again where older parts hold
    failures that may pass (see `answers.ask_again`). category: the plan's column that a conditional model is told, of
    any scalar type; its texts then stand in the shards and in the latents' keys. Raises InputError when a photo has no
    token.
    """
    numbers, starts, order = shard_order(plan)
    prefix = f"pixels/{transform_id}/"
    columns = [*PHOTOS.names, "status", "pixels_part", "pixels_row"]
    if category is not None and model_id is not None:
        plan = plan.select(columns).append_column(CATEGORY, plan[category].cast(CATEGORY.type))
        columns.append(CATEGORY.name)
    rows = take_rows(plan.select(columns), order)
    if rows["token"].null_count:
        missing = rows.filter(pc.is_null(rows["token"]))["item_id"][0].as_py()
        raise InputError(
            f"item {missing!r} has a photo without a token; pass the catalogue through resolve_tokens first"
        )
    shards = []
    for number, start, end in zip(numbers.tolist(), starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        members = rows.slice(start, end - start).combine_chunks()
        carried = members["pixels_part"][0].as_py() if members["status"][0].as_py() == "same" else None
        from_pixels = carried if from_parts and carried is not None and carried.startswith(prefix) else None
        if from_pixels is not None and model_id is None:
            continue
        told = [CATEGORY.name] if CATEGORY.name in columns else []
        photos = members.select([*PHOTOS.names, *told, *(["pixels_row"] if from_pixels else [])])
        shard = _with_pixels(number, photos, transform_id, retry_of, from_pixels, kept)
        shards.append(shard if model_id is None else _with_latents(shard, model_id, precision, retry_of))
    return shards


def features_part(shard: Shard, teacher: str, precision: str) -> tuple[str, str]:
    """Return the name and key of the latents part that a teacher has of a shard's photos, where it has encoded them."""
    keys = shard.photos.select(["item_id", "uri", "token"])
    key = part_key(LATENTS_VERSION, teacher, precision, keys, pixels_part=shard.pixels_name)
    return latents_part_name(teacher, key), key


def shard_order(plan: pa.Table) -> tuple[npt.NDArray[np.int32], Positions, Positions]:
    """Return (numbers [s], starts [s + 1], order [n]): the plan's rows at `order[starts[i]:starts[i + 1]]`, ascending,
    are shard `numbers[i]`.
    """
    shard = as_numpy(plan["shard"], missing=-1).astype(np.int32)
    rows = np.flatnonzero(shard >= 0)
    order = rows[np.argsort(shard[rows], kind="stable")]
    numbers, first = np.unique(shard[order], return_index=True)
    return numbers, np.append(first, len(order)).astype(np.int64), order.astype(np.int64)


def split_done(shards: Sequence[Shard], store: Store) -> tuple[list[ShardResult], list[Shard]]:
    """Return the results of shards whose wanted parts are all there, and the shards that are left to do.

    Two listings say which parts exist; of those of done shards the ends are then read and checked (footer, key, rows),
    several at once. Raises IntegrityError when a part is not what its name says.
    """
    wanted = {name.rsplit("/", 1)[0] + "/" for shard in shards for name in _wanted(shard)}
    there = {entry.name: entry.size for prefix in sorted(wanted) for entry in store.list(prefix)}
    there_all = [shard for shard in shards if there.keys() >= set(_wanted(shard))]
    found = dict(in_threads(lambda shard: (shard.number, _finished(store, shard, there)), there_all))
    done = [result for result in found.values() if result is not None]
    return done, [shard for shard in shards if found.get(shard.number) is None]


def in_threads(make: Callable[[Given], Made], given: Iterable[Given]) -> list[Made]:
    """Return `make` of each, in order, several at a time: most of each is waiting for the store."""
    with ThreadPoolExecutor(_FIND_THREADS) as pool:
        return list(pool.map(make, given))


def check_rows(part: FoundPart, rows: int) -> FoundPart:
    """Return the part. Raises IntegrityError when it does not hold `rows` rows."""
    if part.rows != rows:
        raise IntegrityError(f"{part.name} holds {part.rows} rows, expected {rows}; delete the file and run again")
    return part


def check_latents(store: Store, part: FoundPart, usable: int) -> int:
    """Return how many of `usable` photos with pixels a latents part refuses.

    Raises IntegrityError when it neither holds nor refuses each of them.
    """
    if part.rows == usable:
        return 0
    unfit = read_unfit(part_schema(store, part.name))
    if part.rows + len(unfit) != usable:
        check_rows(part, usable - len(unfit))
    return len(unfit)


def _with_pixels(
    number: int,
    photos: pa.Table,
    transform_id: str,
    retry_of: str,
    from_pixels: str | None,
    kept: Collection[str] | None,
) -> Shard:
    """Return a shard that names its pixels part; one that is on the store with its pixels is used in any case."""
    if from_pixels is not None:
        key = from_pixels.rsplit("/", 1)[1].removesuffix(".parquet")
        return Shard(number, photos, from_pixels, key, None, None, from_pixels)
    key = part_key(PIXELS_VERSION, transform_id, "uint8", photos, retry_of=retry_of)
    name = pixels_part_name(transform_id, key)
    if kept is not None and name not in kept:
        name = pixels_part_name(transform_id, key, stored=False)
    return Shard(number, photos, name, key, None, None, None)


def _with_latents(shard: Shard, model_id: str, precision: str, retry_of: str) -> Shard:
    """Return a shard that also names its latents part."""
    labels = shard.photos[CATEGORY.name].to_pylist() if shard.tells else None
    # The pixels part's name is in the key: `pixels_row` of a latents part counts in exactly that part.
    key = part_key(
        LATENTS_VERSION,
        model_id,
        precision,
        shard.photos,
        retry_of=retry_of,
        pixels_part=shard.pixels_name,
        labels=labels,
    )
    return replace(shard, latents_name=latents_part_name(model_id, key), latents_key=key)


def _wanted(shard: Shard) -> list[str]:
    made = [] if shard.from_pixels is not None else [shard.pixels_name]
    return made if shard.latents_name is None else [*made, shard.latents_name]


def _finished(store: Store, shard: Shard, sizes: Mapping[str, int]) -> ShardResult | None:
    """Return what became of a shard whose parts are there. sizes: of files, by name."""
    photos, pixels, latents = shard.photos.num_rows, None, None
    if shard.from_pixels is None:
        pixels = find_part(store, shard.pixels_name, shard.pixels_key, size=sizes[shard.pixels_name])
        if pixels is None:
            return None
        check_rows(pixels, photos)
    if shard.latents_name is not None and shard.latents_key is not None:
        latents = find_part(store, shard.latents_name, shard.latents_key, size=sizes[shard.latents_name])
        if latents is None:
            return None
        refused = photos - latents.rows
    else:
        stages = read_part(store, shard.pixels_name, ["stage"])["stage"]
        refused = len(stages) - stages.null_count
    return ShardResult(shard.number, pixels, latents, photos, refused, fetched=0, reused=True)


def _is(status: pa.ChunkedArray, word: str) -> Flags:
    return as_numpy(pc.equal(status, word)).astype(np.bool_)


def _has_pixels(plan: pa.Table, transform_id: str) -> Flags:
    """Return which carried rows have pixels that can be encoded."""
    prefix = f"pixels/{transform_id}/" if transform_id else "pixels/"
    codes, names = ranks(plan["pixels_part"])
    return np.array([*(name.startswith(prefix) for name in names), False])[codes] & _is(plan["status"], "same")


def _rows_of_part(photos: int, pixel_bytes: int, latent_bytes: int) -> int:
    most = PART_BYTES // max(pixel_bytes, latent_bytes)
    least = photos if photos <= _UNCUT_ROWS else max(_LEAST_ROWS, -(-photos // _USUAL_SHARDS))
    return max(1, min(most, least))


def _by_source(plan: pa.Table, rows: Positions) -> Positions:
    """Return plan rows ordered by (source, offset, plan order); photos with a URI of their own come first."""
    if plan["source"].null_count == plan.num_rows:
        return rows
    offsets = as_numpy(plan["offset"], missing=-1)[rows]
    return rows[np.lexsort((rows, offsets, ranks(plan["source"])[0][rows]))]


def _by_part(parts: pa.ChunkedArray, latent_bytes: int) -> npt.NDArray[np.int64]:
    """Return a shard number from 0 for each row: one a pixels part, more where its latents would pass PART_BYTES."""
    codes, _ = ranks(parts)
    rows = np.bincount(codes)
    most = PART_BYTES // latent_bytes if latent_bytes else PART_BYTES
    pieces = -(-rows // max(1, most))
    order = np.argsort(codes, kind="stable")
    within = np.empty(len(codes), dtype=np.int64)
    within[order] = np.arange(len(codes)) - np.repeat(np.cumsum(rows) - rows, rows)
    return np.asarray((np.cumsum(pieces) - pieces)[codes] + within * pieces[codes] // rows[codes])

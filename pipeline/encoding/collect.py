"""After encoding: which photos live and where their latents and pixels lie, and which were refused and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import IntegrityError
from ..ordering import Positions, as_numpy, ranks, take_rows
from ..parts import FoundPart, has_pixels, read_part
from ..schema import ITEMS, QUARANTINE, REFUSAL, attribute_fields, items_schema, part_name_column
from ..storage import Store
from .shards import Shard, ShardResult, in_threads, shard_order
from .unfit import Unfit, read_unfit

_KEYS = ["item_id", "uri"]
_PLACE = ["digest", "latents_part", "latents_row", "pixels_part", "pixels_row"]


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a shard's parts say of its rows: positions in the shard, with their place or their refusal."""

    live: Positions
    places: pa.Table
    refused: Positions
    refusals: pa.Table


def collect_rows(
    store: Store, plan: pa.Table, shards: Sequence[Shard], results: Iterable[ShardResult]
) -> tuple[pa.Table, pa.Table]:
    """Return (items, refused) of a plan whose shards are all encoded.

    items: schema.items_schema with the plan's attributes; refused: schema.QUARANTINE without `first_seen`; both in the
    plan's order (item_id, view). A photo that keeps yesterday's row because it is unreachable is in both. Of the new
    parts only key columns are read. Raises IntegrityError when any other photo of the plan would be in neither table
    or in both, or when a part does not hold the photos of its shard.
    """
    spans = _spans(plan, shards, results)
    answers = in_threads(lambda span: _answer(store, span[0], span[1]), [(shard, made) for shard, made, _ in spans])
    untouched = as_numpy(pc.is_null(plan["shard"])).astype(np.bool_)
    carried = np.flatnonzero(untouched & _is(plan, "same") & as_numpy(pc.is_valid(plan["latents_part"])))
    known = np.flatnonzero(untouched & _is(plan, "refused"))

    live = [rows[answer.live] for answer, (_, _, rows) in zip(answers, spans, strict=True)]
    refused = [rows[answer.refused] for answer, (_, _, rows) in zip(answers, spans, strict=True)]
    live_rows, refused_rows = np.concatenate([carried, *live]), np.concatenate([known, *refused])
    _check_conserved(plan, live_rows, refused_rows)
    # Carried rows with a reason: they live on, and are said to be unreachable.
    held = live_rows[as_numpy(pc.is_valid(plan["reason"])).astype(np.bool_)[live_rows]]

    schema = items_schema(attribute_fields(plan.schema))
    places = pa.concat_tables([take_rows(plan.select(_PLACE), carried), *(answer.places for answer in answers)])
    refusals = pa.concat_tables(
        [
            take_rows(plan.select(REFUSAL.names), known),
            *(answer.refusals for answer in answers),
            take_rows(plan.select(REFUSAL.names), held),
        ]
    )
    items = _in_plan_order(plan, live_rows, places, schema)
    quarantine = pa.schema([field for field in QUARANTINE if field.name != "first_seen"])
    return items, _in_plan_order(plan, np.concatenate([refused_rows, held]), refusals, quarantine)


@dataclass(frozen=True, slots=True)
class LivingRows:
    """The living rows of a pixels part (full name on the store), ascending, and which row of the plan each is."""

    part: str
    rows: npt.NDArray[np.int32]
    plan_rows: npt.NDArray[np.int32]


def collect_pixels(
    store: Store, plan: pa.Table, shards: Sequence[Shard], results: Iterable[ShardResult]
) -> list[LivingRows]:
    """Return every usable photo of a plan, for training: the living rows of pixels parts, by part name.

    Carried photos are there while their pixels are kept. Raises IntegrityError when a shard has no result.
    """
    done = {result.number: result for result in results}
    fetched = [shard for shard in shards if shard.from_pixels is None]
    if missing := [shard.number for shard in fetched if shard.number not in done]:
        raise IntegrityError(f"{len(missing)} of {len(fetched)} shards have no result (first: {missing[0]}); run again")
    usable = in_threads(lambda shard: _usable_rows(store, shard, done[shard.number]), fetched)
    numbers, starts, by_shard = shard_order(plan)
    begins = dict(zip(numbers.tolist(), starts[:-1].tolist(), strict=True))
    parts = {
        shard.pixels_name: _living(shard.pixels_name, rows, by_shard[begins[shard.number] + rows])
        for shard, rows in zip(fetched, usable, strict=True)
        if len(rows)
    }

    number = as_numpy(plan["shard"], missing=-1)
    again = np.isin(number, [shard.number for shard in fetched])
    kept = np.flatnonzero(~again & _is(plan, "same") & as_numpy(pc.is_valid(plan["pixels_part"])))
    named = plan.select(["pixels_part", "pixels_row"])
    codes, names = ranks(named["pixels_part"])
    rows = as_numpy(named["pixels_row"], missing=-1).astype(np.int32)[kept]
    order = np.lexsort((rows, codes[kept]))
    found, first = np.unique(codes[kept][order], return_index=True)
    bounds = np.append(first, len(order)).tolist()
    for code, start, end in zip(found.tolist(), bounds[:-1], bounds[1:], strict=True):
        parts[names[code]] = _living(names[code], rows[order[start:end]], kept[order[start:end]])
    return [parts[name] for name in sorted(parts)]


def among(living: Sequence[LivingRows], chosen: npt.NDArray[np.bool_]) -> list[LivingRows]:
    """Return the living rows of a plan's chosen photos, bool [n]; parts of which none is chosen are left out."""
    kept = [(part, chosen[part.plan_rows]) for part in living]
    return [LivingRows(part.part, part.rows[mine], part.plan_rows[mine]) for part, mine in kept if mine.any()]


@dataclass(frozen=True, slots=True)
class FeaturePart:
    """A teacher's latents part (full name on the store) of a pixels part, and the row there of each of its rows."""

    part: str
    pixels_rows: npt.NDArray[np.int32]


def collect_features(
    store: Store, shards: Sequence[Shard], results: Iterable[ShardResult]
) -> dict[str, list[FeaturePart]]:
    """Return where the features of photos lie that a teacher has encoded, by the name of the photos' pixels part.

    The latents of one pixels part may lie in several. Photos that the decoder or the teacher refused are in none.
    """
    done = {result.number: result.latents for result in results}
    made = [(shard.pixels_name, part) for shard in shards if (part := done.get(shard.number)) is not None]
    rows = in_threads(lambda pair: read_part(store, pair[1].name, ["pixels_row"])["pixels_row"], made)
    found: dict[str, list[FeaturePart]] = {}
    for (pixels, part), column in zip(made, rows, strict=True):
        found.setdefault(pixels, []).append(FeaturePart(part.name, as_numpy(column).astype(np.int32)))
    return found


def _living(part: str, rows: npt.NDArray[np.integer], plan_rows: Positions) -> LivingRows:
    return LivingRows(part, rows.astype(np.int32), plan_rows.astype(np.int32))


def _spans(
    plan: pa.Table, shards: Sequence[Shard], results: Iterable[ShardResult]
) -> list[tuple[Shard, FoundPart, Positions]]:
    """Return each encoded shard with its latents part and its rows of the plan."""
    latents = {result.number: result.latents for result in results}
    by_number = {shard.number: shard for shard in shards}
    numbers, starts, order = shard_order(plan)
    spans = []
    for number, start, end in zip(numbers.tolist(), starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        shard, made = by_number.get(number), latents.get(number)
        if shard is not None and made is not None:  # what is left out here is found by _check_conserved
            spans.append((shard, made, order[start:end]))
    return spans


def _answer(store: Store, shard: Shard, made: FoundPart) -> _Answer:
    photos = shard.photos
    live = np.arange(photos.num_rows, dtype=np.int64)
    refused, refusals = live[:0], REFUSAL.empty_table()
    if shard.from_pixels is None and made.rows != photos.num_rows:
        said = read_part(store, shard.pixels_name, [*_KEYS, *REFUSAL.names])
        _check_keys(shard.pixels_name, said, photos)
        usable = as_numpy(pc.is_null(said["stage"])).astype(np.bool_)
        live, refused = np.flatnonzero(usable), np.flatnonzero(~usable)
        refusals = said.select(REFUSAL.names).take(pa.array(refused))
    latents = read_part(store, made.name, [*_KEYS, "digest", "pixels_row"])
    if unfit := read_unfit(latents.schema):
        live, fallen, said = _without_unfit(shard, live, unfit)
        refused, refusals = np.concatenate([refused, fallen]), pa.concat_tables([refusals, said])
    asked = photos.take(pa.array(live))
    _check_keys(made.name, latents, asked)
    pixels_row = pa.array(live, pa.int32()) if shard.from_pixels is None else asked["pixels_row"]
    if not np.array_equal(as_numpy(latents["pixels_row"]), np.asarray(pixels_row.to_numpy())):
        raise IntegrityError(f"{made.name} names other rows than {shard.pixels_name} has; delete both and run again")
    count, stored = len(live), has_pixels(shard.pixels_name)
    columns = [
        latents["digest"],
        part_name_column(made.name, count),
        pa.array(np.arange(count), pa.int32()),
        part_name_column(shard.pixels_name if stored else None, count),
        pixels_row if stored else pa.nulls(count, pa.int32()),
    ]
    places = pa.Table.from_arrays(columns, schema=pa.schema([pa.field(n, ITEMS.field(n).type) for n in _PLACE]))
    return _Answer(live, places, refused, refusals)


def _without_unfit(shard: Shard, live: Positions, unfit: list[Unfit]) -> tuple[Positions, Positions, pa.Table]:
    """Return the living rows of a shard, those that its latents part refuses, and their columns of schema.REFUSAL."""
    place = live if shard.from_pixels is None else as_numpy(shard.photos["pixels_row"]).astype(np.int64)[live]
    said = {one.pixels_row: one.refusal for one in unfit}
    lost = np.isin(place, list(said))
    refusals = pa.Table.from_pylist([said[row] for row in place[lost].tolist()], schema=REFUSAL)
    return live[~lost], live[lost], refusals


def _usable_rows(store: Store, shard: Shard, result: ShardResult) -> Positions:
    if not result.refused:
        return np.arange(result.photos, dtype=np.int64)
    return np.flatnonzero(as_numpy(pc.is_null(read_part(store, shard.pixels_name, ["stage"])["stage"])))


def _check_keys(name: str, held: pa.Table, asked: pa.Table) -> None:
    if held.num_rows != asked.num_rows or not all(
        held[key].combine_chunks().equals(asked[key].combine_chunks()) for key in _KEYS
    ):
        raise IntegrityError(f"{name} does not hold the photos its name was made from; delete the file and run again")


def _check_conserved(plan: pa.Table, live: Positions, refused: Positions) -> None:
    """Refuse to lose or double a photo: a release built on such tables would be wrong without a sign of it."""
    times = np.bincount(np.concatenate([live, refused]), minlength=plan.num_rows)
    if (times == 1).all():
        return
    lost, twice = np.flatnonzero(times == 0), np.flatnonzero(times > 1)
    first = int(np.concatenate([lost, twice])[0])
    raise IntegrityError(
        f"of {plan.num_rows} photos of the plan {len(live)} are in items and {len(refused)} in quarantine: {len(lost)} "
        f"in neither and {len(twice)} more than once; the first is item {plan['item_id'][first].as_py()!r} with status "
        f"{plan['status'][first].as_py()!r} and shard {plan['shard'][first].as_py()}. Are all shards encoded?"
    )


def _in_plan_order(plan: pa.Table, rows: Positions, beside: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the plan's `rows` with the columns of `beside`, sorted by the plan's order, as `schema` says."""
    order = np.argsort(rows, kind="stable")
    own = [name for name in schema.names if name not in beside.column_names]
    taken, placed = take_rows(plan.select(own), rows[order]), take_rows(beside, order)
    columns = [placed[name] if name in beside.column_names else taken[name] for name in schema.names]
    return pa.Table.from_arrays(columns, schema=schema)


def _is(plan: pa.Table, word: str) -> npt.NDArray[np.bool_]:
    return as_numpy(pc.equal(plan["status"], word)).astype(np.bool_)

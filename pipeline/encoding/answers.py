"""Which photos of a shard its pixels part answers for, and what becomes of the others.

A part holds what the decoder said of photos. A photo that could not be had for a reason that may pass (see
`refusals`) is in no part: a later try finds the part, takes the photos in it, and asks for the others in shards of
their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..catalogue import Failed, FailureLimits, homes_of
from ..errors import IntegrityError
from ..ordering import Positions, as_numpy, take_column, take_rows
from ..parts import read_part
from ..refusals import KEPT
from ..storage import Store, home_of
from .shards import Shard, ShardResult, Unanswered, in_threads, shard_order

Flags = npt.NDArray[np.bool_]
Build = Callable[[pa.Table, str], list[Shard]]

_KEYS = ["item_id", "uri"]
_PLACE = ("token", "digest", "latents_part", "latents_row", "pixels_part", "pixels_row")
HELD_OVER = (*_KEYS, *_PLACE)  # columns of yesterday's items that a photo may keep
_OVERTAKEN = "another attempt wrote this photo's part without it; the next one asks for it again"


@dataclass(frozen=True, slots=True)
class Asked:
    """What of a plan is asked of the cluster, or was. rows: schema.plan_schema with the shards' numbers; shards: in
    number order, each with the photos that its parts hold or are to hold."""

    rows: pa.Table
    shards: list[Shard]


def answered(table: pa.Table) -> tuple[pa.Table, tuple[Unanswered, ...]]:
    """Return the rows of a decoded shard that a part may hold, and the photos of the others."""
    passing = _passing(table)
    if not passing.any():
        return table, ()
    rows = np.flatnonzero(passing)
    said = table.select(["reason", "detail"]).take(pa.array(rows)).to_pylist()
    lacking = tuple(
        Unanswered(row, what["reason"], what["detail"]) for row, what in zip(rows.tolist(), said, strict=True)
    )
    return table.filter(pa.array(~passing)), lacking


def lacking_in(part: pa.Table, shard: Shard, ours: Iterable[Unanswered] = ()) -> tuple[Unanswered, ...]:
    """Return the photos of a shard that a part found on the store lacks. ours: what this try knows of some of them.

    Raises IntegrityError when the part holds other photos than the shard's.
    """
    known = {photo.row: photo for photo in ours}
    rows = np.flatnonzero(~_held(part, shard)).tolist()
    return tuple(known.get(row, Unanswered(row, "unreachable", _OVERTAKEN)) for row in rows)


def without(shard: Shard, lacking: Sequence[Unanswered]) -> Shard:
    """Return the shard with only the photos that its part holds; names and keys stay those of all that was asked."""
    if not lacking:
        return shard
    keep = np.ones(shard.photos.num_rows, dtype=np.bool_)
    keep[[photo.row for photo in lacking]] = False
    return replace(shard, photos=shard.photos.filter(pa.array(keep)).combine_chunks())


def ask_again(store: Store, rows: pa.Table, build: Build, *, transform_id: str, run: str) -> Asked:
    """Return the shards of a plan, with the photos that parts of earlier tries lack moved to new shards.

    build(rows, retry_of): makes shards, as `build_shards`. A part that holds failures which may pass, as they were
    written once, is no answer: its photos are asked for as a whole, under keys of this `run`.
    """
    looked = build(rows, "")
    fetched = any(shard.from_pixels is None for shard in looked)
    folders = [f"{kind}/{transform_id}/" for kind in ("pixels", "photos")] if fetched else []
    there = {entry.name for folder in folders for entry in store.list(folder)}
    most = max((shard.photos.num_rows for shard in looked), default=0)
    settled: list[Shard] = []
    while looked:
        found = in_threads(lambda shard: _look(store, shard, there), looked)
        places = _places(rows)
        lacking, old = [], []
        for shard, held in zip(looked, found, strict=True):
            if held is None:
                settled.append(shard)
            elif held.any():
                settled.append(shard if held.all() else _cut(shard, held))
                lacking.append(places[shard.number][~held])
            else:
                old.append(places[shard.number])
        looked = [again for members in old for again in build(take_rows(rows, members), run)]
        moved = np.sort(np.concatenate(lacking)) if lacking else np.empty(0, np.int64)
        if len(moved):
            rows = _numbered(rows, moved, most)
            looked += build(take_rows(rows, moved), "")
    return Asked(rows, sorted(settled, key=lambda shard: shard.number))


def settle(asked: Asked, results: Iterable[ShardResult], yesterday: pa.Table | None) -> Asked:
    """Return the plan and shards after computing: unanswered photos are refused rows of the plan and in no shard.

    yesterday: the items of a parent whose latents stand beside tonight's, None where there is none. A photo that lived
    in it and is `unreachable` keeps its row there: `same`, with the reason beside it.
    """
    lacking = {result.number: result.unanswered for result in results if result.unanswered}
    if not lacking:
        return asked
    places = _places(asked.rows)
    positions = np.concatenate(
        [places[number][[photo.row for photo in photos]] for number, photos in lacking.items()]
    ).astype(np.int64)
    photos = [photo for members in lacking.values() for photo in members]
    told = take_rows(asked.rows, positions)
    made: dict[str, pa.Array] = {
        "status": pa.repeat("refused", len(photos)),
        "shard": pa.nulls(len(photos), pa.int32()),
        "stage": pa.repeat("fetch", len(photos)),
        "reason": pa.array([photo.reason for photo in photos], pa.string()),
        "detail": pa.array([photo.detail for photo in photos], pa.string()),
    }
    columns = [made.get(name, told[name]) for name in told.column_names]
    told = _held_over(pa.Table.from_arrays(columns, schema=told.schema), yesterday)
    order = np.arange(asked.rows.num_rows)
    order[positions] = asked.rows.num_rows + np.arange(len(photos))
    cut = [without(shard, lacking.get(shard.number, ())) for shard in asked.shards]
    return Asked(
        take_rows(pa.concat_tables([asked.rows, told]), order), [shard for shard in cut if shard.photos.num_rows]
    )


class FetchLimits:
    """Counts the photos that newly fail while shards end, and stops the run when it is not their fault.

    A photo that yesterday's release could not have either (`retried`) says nothing of tonight.
    """

    def __init__(self, limits: FailureLimits, asked: Asked) -> None:
        self._limits = limits
        self._shards = {shard.number: shard for shard in asked.shards}
        self._known = {number: _retried(asked.rows, places) for number, places in _places(asked.rows).items()}
        self._failed: list[Failed] = []
        self._asked: Counter[str] = Counter()
        self._due = 1

    def note(self, result: ShardResult) -> None:
        """Count what became of a shard. Raises what `FailureLimits.check` does."""
        if not result.fetched:
            return
        photos = self._shards[result.number].photos
        uris = pc.coalesce(photos["source"], photos["uri"])
        known = self._known[result.number]
        self._asked.update(homes_of(uris.filter(pa.array(~known))).to_pylist())
        for photo in result.unanswered:
            if not known[photo.row]:
                uri = uris[photo.row].as_py()
                self._failed.append(Failed(home_of(uri), uri, photo.reason, photo.detail))
        if len(self._failed) >= self._due:
            self._limits.check(self._failed)
            self._due = len(self._failed) + 1 + len(self._failed) // 10  # each check looks at all of them

    def end(self) -> None:
        """Look once more, now that all that was asked is known. Raises what `FailureLimits.check` does."""
        self._limits.check(self._failed, asked=self._asked)


def _passing(table: pa.Table) -> Flags:
    """Return which rows of a decoded shard hold a failure that may pass."""
    kept = pc.is_in(table["reason"], value_set=pa.array(sorted(KEPT)))
    return as_numpy(pc.and_(pc.is_valid(table["stage"]), pc.invert(kept))).astype(np.bool_)


def _look(store: Store, shard: Shard, there: set[str]) -> Flags | None:
    """Return which photos of a shard its pixels part holds: none where it is no answer; None where there is no part."""
    if shard.from_pixels is not None or shard.pixels_name not in there:
        return None
    part = read_part(store, shard.pixels_name, [*_KEYS, "stage", "reason"])
    held = _held(part, shard)
    return np.zeros_like(held) if _passing(part).any() else held


def _held(part: pa.Table, shard: Shard) -> Flags:
    """Return which photos of a shard a part holds; they are in the shard's order, each once."""
    asked = list(zip(*(shard.photos[name].to_pylist() for name in _KEYS), strict=True))
    rows = iter(enumerate(asked))
    held = np.zeros(len(asked), dtype=np.bool_)
    for pair in zip(*(part[name].to_pylist() for name in _KEYS), strict=True):
        row = next((row for row, wanted in rows if wanted == pair), None)
        if row is None:
            raise IntegrityError(
                f"{shard.pixels_name} does not hold the photos its name was made from; delete the file and run again"
            )
        held[row] = True
    return held


def _cut(shard: Shard, held: Flags) -> Shard:
    return replace(shard, photos=shard.photos.filter(pa.array(held)).combine_chunks())


def _places(rows: pa.Table) -> dict[int, Positions]:
    """Return the plan's rows of each shard."""
    numbers, starts, order = shard_order(rows)
    bounds = zip(numbers.tolist(), starts[:-1].tolist(), starts[1:].tolist(), strict=True)
    return {number: order[start:end] for number, start, end in bounds}


def _numbered(rows: pa.Table, moved: Positions, most: int) -> pa.Table:
    """Give some rows of a plan shards of their own, of at most so many photos."""
    shard = as_numpy(rows["shard"], missing=-1).astype(np.int32)
    shard[moved] = shard.max() + 1 + np.arange(len(moved)) // most
    index = rows.schema.get_field_index("shard")
    return rows.set_column(index, rows.schema.field(index), pa.array(shard, pa.int32(), mask=shard < 0))


def _held_over(told: pa.Table, yesterday: pa.Table | None) -> pa.Table:
    """Return refused rows of a plan with those carried over that lived yesterday and do not answer tonight."""
    silent = as_numpy(pc.equal(told["reason"], "unreachable")).astype(np.bool_)
    if yesterday is None or not silent.any():
        return told
    names = set(pc.unique(told["item_id"]).to_pylist())
    near = yesterday.filter(pc.is_in(yesterday["item_id"], value_set=pa.array(sorted(names))))
    row_of = {pair: row for row, pair in enumerate(zip(*(near[name].to_pylist() for name in _KEYS), strict=True))}
    pairs = zip(*(told[name].to_pylist() for name in _KEYS), strict=True)
    found = [row_of.get(pair) if quiet else None for pair, quiet in zip(pairs, silent.tolist(), strict=True)]
    lived = np.array([row is not None for row in found])
    where = np.array([place if row is None else told.num_rows + row for place, row in enumerate(found)], np.int64)
    both = {name: pa.chunked_array([*told[name].chunks, *near[name].chunks], told[name].type) for name in _PLACE}
    made = {name: take_column(column, where) for name, column in both.items()}
    made["status"] = pc.if_else(pa.array(lived), "same", told["status"])
    return pa.Table.from_arrays([made.get(name, told[name]) for name in told.column_names], schema=told.schema)


def _retried(rows: pa.Table, places: Positions) -> Flags:
    return as_numpy(rows["retried"].take(pa.array(places)), missing=False).astype(np.bool_)

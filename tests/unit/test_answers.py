"""What becomes of photos that no part answers for: asked again, refused, carried over, and when it stops the run."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.catalogue import FailureLimits
from pipeline.encoding import (
    Asked,
    FetchLimits,
    Shard,
    ShardResult,
    Unanswered,
    ask_again,
    assign_shards,
    build_shards,
    collect_rows,
    settle,
    split_done,
)
from pipeline.encoding.answers import lacking_in
from pipeline.errors import ClientRefused, IntegrityError, Unavailable
from pipeline.parts import write_part
from pipeline.schema import latents_schema, pixels_schema, plan_schema
from pipeline.storage import Store, open_store

TRANSFORM = "0123456789abcdef"
SIZE = 8


def make_plan(count: int, shard_rows: int = 4, **columns: list[Any]) -> pa.Table:
    given = {
        "item_id": [f"i{n:03}" for n in range(count)], "uri": [f"s3://b/{n}" for n in range(count)],
        "view": [0] * count, "token": [f"etag:{n}" for n in range(count)], "status": ["added"] * count,
        "retried": [False] * count, **columns,
    }  # fmt: skip
    schema = plan_schema([])
    plan = pa.Table.from_arrays(
        [pa.array(given.get(field.name, [None] * count), field.type) for field in schema], schema=schema
    )
    return assign_shards(plan, image_size=SIZE, shard_rows=shard_rows)


def ask(store: Store, plan: pa.Table, run: str = "night") -> Asked:
    build = partial(build_shards, transform_id=TRANSFORM, model_id="m", precision="fp32")
    return ask_again(store, plan, lambda rows, retry: build(rows, retry_of=retry), transform_id=TRANSFORM, run=run)


def numbers(shard: Shard) -> list[int]:
    return [int(uri.rpartition("/")[2]) for uri in shard.photos["uri"].to_pylist()]


def compute(store: Store, asked: Asked, silent: dict[int, str]) -> list[ShardResult]:
    """What actors do: write the parts that are not there, with photo n's mean = n; `silent`: (number, reason)."""
    done, todo = split_done(asked.shards, store)
    results = []
    for shard in todo:
        lacking = tuple(Unanswered(row, silent[n], f"last {n}") for row, n in enumerate(numbers(shard)) if n in silent)
        live = np.array([row for row, n in enumerate(numbers(shard)) if n not in silent], np.int64)
        parts: list[Any] = [None, None]
        if len(live):
            keys = [shard.photos[name].take(pa.array(live)) for name in ("item_id", "uri", "token")]
            count, none = len(live), pa.nulls(len(live), pa.string())
            digest = pa.array(["d"] * count)
            pixels = pa.array([bytes(SIZE**2 * 3)] * count, pa.binary(SIZE**2 * 3))
            table = pa.Table.from_arrays([*keys, digest, pixels, none, none, none], schema=pixels_schema(SIZE))
            parts[0] = write_part(store, shard.pixels_name, table, shard.pixels_key)
            mean = pa.array([[float(numbers(shard)[row])] for row in live], pa.list_(pa.float32(), 1))
            rows = pa.array(range(count), pa.int32())
            latents = pa.Table.from_arrays([*keys, digest, rows, mean], schema=latents_schema(1, log_var=False))
            parts[1] = write_part(store, str(shard.latents_name), latents, str(shard.latents_key))
        count = shard.photos.num_rows
        results.append(ShardResult(shard.number, *parts, count, len(lacking), count, False, lacking))
    return sorted([*done, *results], key=lambda result: result.number)


def night(
    store: Store, plan: pa.Table, silent: dict[int, str], yesterday: pa.Table | None = None
) -> tuple[list[int], dict[int, str], int]:
    """Return (photos that live, reasons of those refused, photos fetched)."""
    asked = ask(store, plan)
    results = compute(store, asked, silent)
    asked = settle(asked, results, yesterday)
    items, refused = collect_rows(store, asked.rows, asked.shards, results)
    said = zip(refused["uri"].to_pylist(), refused["reason"].to_pylist(), strict=True)
    live = [int(uri.rpartition("/")[2]) for uri in items["uri"].to_pylist()]
    return live, {int(uri.rpartition("/")[2]): why for uri, why in said}, sum(result.fetched for result in results)


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Store:
    return open_store(f"memory://{request.node.name}")


def test_the_same_run_again_asks_for_what_no_part_answers_and_for_nothing_else(store: Store) -> None:
    """Ten photos in three shards; all of the second are silent at first, then one, then none."""
    plan = make_plan(10)
    silent = {4: "unreachable", 5: "forbidden", 6: "changed", 7: "missing", 9: "unreachable"}
    assert night(store, plan, silent) == ([0, 1, 2, 3, 8], silent, 10)
    for left in (5, 6), (5,), (5,), ():
        still = {n: silent[n] for n in left}
        live, refused, _ = night(store, plan, still)
        assert (live, refused) == ([n for n in range(10) if n not in left], still)
    assert night(store, plan, {}) == (list(range(10)), {}, 0), "and now nothing is left to ask"


def test_a_second_try_fetches_only_the_photos_that_lack(store: Store) -> None:
    plan = make_plan(12, shard_rows=3)
    night(store, plan, {1: "unreachable", 8: "changed"})
    asked = ask(store, plan)
    assert [numbers(shard) for shard in asked.shards] == [[0, 2], [3, 4, 5], [6, 7], [9, 10, 11], [1, 8]]
    assert asked.rows["shard"].to_pylist() == [0, 4, 0, 1, 1, 1, 2, 2, 4, 3, 3, 3]
    _, todo = split_done(asked.shards, store)
    assert [numbers(shard) for shard in todo] == [[1, 8]]


def test_a_part_of_other_photos_is_an_error(store: Store) -> None:
    first, second = build_shards(make_plan(6, shard_rows=3), transform_id=TRANSFORM, model_id="m", precision="fp32")
    with pytest.raises(IntegrityError, match="does not hold the photos"):
        lacking_in(second.photos, first)
    assert lacking_in(first.photos.slice(1), first) == (Unanswered(0, "unreachable", lacking_in(first.photos.slice(1), first)[0].detail),)  # fmt: skip # noqa: E501


def test_a_photo_that_lived_and_does_not_answer_keeps_yesterdays_row(store: Store) -> None:
    """Photo 1 changed and does not answer, 2 was swapped on the way, 3 is new and does not answer."""
    live, _, _ = night(store, make_plan(3), {})
    assert live == [0, 1, 2]
    asked = ask(store, make_plan(3))
    items, _ = collect_rows(store, asked.rows, asked.shards, compute(store, asked, {}))
    plan = make_plan(4, token=["etag:0b", "etag:1b", "etag:2b", "etag:3"], status=["changed"] * 3 + ["added"])
    silent = {1: "unreachable", 2: "changed", 3: "unreachable"}
    tonight = ask(store, plan)
    results = compute(store, tonight, silent)
    for yesterday, expected in ((items, [0, 1]), (None, [0])):
        settled = settle(tonight, results, yesterday)
        live_rows, refused = collect_rows(store, settled.rows, settled.shards, results)
        assert [int(uri[-1]) for uri in live_rows["uri"].to_pylist()] == expected
        assert refused["uri"].to_pylist() == ["s3://b/1", "s3://b/2", "s3://b/3"]
        assert refused["reason"].to_pylist() == ["unreachable", "changed", "unreachable"]
        assert refused["stage"].to_pylist() == ["fetch"] * 3
        if yesterday is not None:
            kept = live_rows.to_pylist()[1]
            assert kept == {**items.to_pylist()[1], "token": "etag:1"}, "with the token that its latents have"


def test_newly_failed_photos_are_counted_as_shards_end(store: Store) -> None:
    plan = make_plan(100, shard_rows=5, retried=[n < 40 for n in range(100)])
    asked = ask(store, plan)
    results = {result.number: result for result in compute(store, asked, dict.fromkeys(range(55), "unreachable"))}
    counted = FetchLimits(FailureLimits(plan["uri"], 0.1), asked)
    by_photo = {numbers(shard)[0]: shard.number for shard in asked.shards}
    for photo in (*range(0, 40, 5), 40, 45):  # 40 that yesterday could not be had either, and 10: what is allowed
        counted.note(results[by_photo[photo]])
    counted.end()
    with pytest.raises(Unavailable, match="15 of 100 photos gave no answer"):
        counted.note(results[by_photo[50]])


def test_a_bucket_that_refuses_all_it_is_asked_for_is_told_at_the_end(store: Store) -> None:
    plan = make_plan(2_000, shard_rows=2_000, status=["added"] * 12 + ["same"] * 1_988, latents_part=["l"] * 2_000)
    asked = ask(store, plan)
    (result,) = compute(store, asked, dict.fromkeys(range(12), "forbidden"))
    counted = FetchLimits(FailureLimits(plan["uri"], 0.01), asked)
    counted.note(result)
    with pytest.raises(ClientRefused, match=r"12 of s3://b \(2,000"):
        counted.end()

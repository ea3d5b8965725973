"""From parts to items and quarantine: every photo of a plan exactly once."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.encoding import Shard, ShardResult, assign_shards, build_shards, collect_pixels, collect_rows, split_done
from pipeline.errors import IntegrityError
from pipeline.parts import write_part
from pipeline.schema import QUARANTINE, items_schema, latents_schema, pixels_schema, plan_schema
from pipeline.storage import Store, open_store

TRANSFORM = "0123456789abcdef"
SIZE = 8
ATTRIBUTES = [pa.field("category", pa.string()), pa.field("price", pa.float64())]
KEYS = ["item_id", "uri", "token"]
PLAN: list[dict[str, Any]] = [
    {"status": "added"},
    {"status": "same", "pixels": ("p1", 3), "latents": ("old", 8)},
    {"status": "changed", "refuse": ("decode", "truncated", "ends early")},
    {"status": "refused", "stage": "decode", "reason": "broken", "detail": "as last night"},
    {"status": "same", "pixels": None, "latents": ("old", 2)},
    {"status": "added", "retried": True, "refuse": ("fetch", "missing", "still gone")},
    {"status": "same", "pixels": ("p0", 1), "latents": ("old", 1)},
    {"status": "added", "retried": True},
    {"status": "refused", "stage": "plan", "reason": "missing", "detail": "not listed", "token": ""},
    {"status": "added"},
    {"status": "same", "pixels": ("p1", 0), "latents": ("old", 9)},
]
REFUSED = {2: PLAN[2]["refuse"], 3: ("decode", "broken", "as last night"), 5: PLAN[5]["refuse"], 8: ("plan", "missing", "not listed")}  # fmt: skip # noqa: E501


def make_plan(*, encode_all: bool = False, shard_rows: int = 2) -> pa.Table:
    rows = []
    for n, given in enumerate(PLAN):
        pixels, latents = given.get("pixels"), given.get("latents")
        rows.append({
            "item_id": f"i{n // 2}", "uri": f"u{n}", "view": n % 2, "token": given.get("token", f"t{n}"),
            "status": given["status"], "retried": given.get("retried", False), "stage": given.get("stage"),
            "reason": given.get("reason"), "detail": given.get("detail"), "digest": latents and f"old-digest-{n}",
            "latents_part": latents and f"latents/m0/{latents[0]}.parquet", "latents_row": latents and latents[1],
            "pixels_part": pixels and f"pixels/{TRANSFORM}/{pixels[0]}.parquet", "pixels_row": pixels and pixels[1],
            "category": f"c{n}", "price": n / 4,
        })  # fmt: skip
    plan = pa.Table.from_pylist(rows, schema=plan_schema(ATTRIBUTES))
    return assign_shards(plan, image_size=SIZE, shard_rows=shard_rows, encode_all=encode_all, transform_id=TRANSFORM)


def write_parts(store: Store, shard: Shard) -> None:
    """Write what an actor would, with photo n's mean = n."""
    number = [int(uri[1:]) for uri in shard.photos["uri"].to_pylist()]
    refused = [REFUSED.get(n) if shard.from_pixels is None else None for n in number]
    keys = [shard.photos[name] for name in KEYS]
    digest = pa.array([None if why else f"digest-{n}" for n, why in zip(number, refused, strict=True)], pa.string())
    if shard.from_pixels is None:
        pixels = pa.array([None if why else bytes(SIZE**2 * 3) for why in refused], pa.binary(SIZE**2 * 3))
        whys = [pa.array([why and why[k] for why in refused], pa.string()) for k in range(3)]
        table = pa.Table.from_arrays([*keys, digest, pixels, *whys], schema=pixels_schema(SIZE))
        write_part(store, shard.pixels_name, table, shard.pixels_key)
    if shard.latents_name is None or shard.latents_key is None:
        return
    live = np.array([row for row, why in enumerate(refused) if not why], np.int64)
    rows = shard.photos["pixels_row"].to_numpy()[live] if shard.from_pixels else live
    mean = pa.array([[float(number[row])] for row in live], pa.list_(pa.float32(), 1))
    taken = [column.take(pa.array(live)) for column in (*keys, digest)]
    table = pa.Table.from_arrays([*taken, pa.array(rows, pa.int32()), mean], schema=latents_schema(1, log_var=False))
    write_part(store, shard.latents_name, table, shard.latents_key)


def encode(store: Store, plan: pa.Table, model_id: str | None = "m1") -> tuple[list[Shard], list[ShardResult]]:
    shards = build_shards(plan, transform_id=TRANSFORM, model_id=model_id, precision="fp32", retry_of="parent")
    for shard in shards:
        write_parts(store, shard)
    done, todo = split_done(shards, store)
    assert todo == []
    return shards, done


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Store:
    return open_store(f"memory://{request.node.name}")


@pytest.mark.parametrize("encode_all", [False, True])
@pytest.mark.parametrize("shard_rows", [1, 2, 100])
def test_every_photo_is_in_items_or_in_quarantine(store: Store, encode_all: bool, shard_rows: int) -> None:
    plan = make_plan(encode_all=encode_all, shard_rows=shard_rows)
    shards, results = encode(store, plan)
    items, refused = collect_rows(store, plan, shards, results)
    assert items.schema.equals(items_schema(ATTRIBUTES), check_metadata=True)
    assert refused.column_names == [name for name in QUARANTINE.names if name != "first_seen"]
    said = {int(row["uri"][1:]): (row["stage"], row["reason"], row["detail"]) for row in refused.to_pylist()}
    assert said == REFUSED
    assert refused["token"].to_pylist() == ["t2", "t3", "t5", ""]
    numbers = [int(uri[1:]) for uri in items["uri"].to_pylist()]
    assert numbers == [n for n in range(len(PLAN)) if n not in REFUSED]  # plan order, none twice
    for n, row in zip(numbers, items.to_pylist(), strict=True):
        assert (row["item_id"], row["view"], row["token"]) == (f"i{n // 2}", n % 2, f"t{n}")
        assert (row["category"], row["price"]) == (f"c{n}", n / 4)
        given = PLAN[n]
        if given["status"] == "same" and not encode_all:
            assert row["latents_part"] == f"latents/m0/{given['latents'][0]}.parquet"
            assert row["latents_row"] == given["latents"][1]
            assert row["digest"] == f"old-digest-{n}"
        else:
            # Follow the reference: the row that items names holds this photo's latents.
            held = read(store, row["latents_part"])[row["latents_row"]]
            assert (held["uri"], held["mean"], held["digest"]) == (f"u{n}", [float(n)], row["digest"])
            assert held["pixels_row"] == row["pixels_row"]
        if given.get("pixels"):
            assert row["pixels_part"] == f"pixels/{TRANSFORM}/{given['pixels'][0]}.parquet"
            assert row["pixels_row"] == given["pixels"][1]
        elif given["status"] != "same" or encode_all:
            assert read(store, row["pixels_part"])[row["pixels_row"]]["uri"] == f"u{n}"


def read(store: Store, name: str) -> list[dict[str, Any]]:
    with store.open(name) as handle:
        return pq.read_table(handle).to_pylist()


@pytest.mark.parametrize("encode_all", [False, True])
@pytest.mark.parametrize("model_id", [None, "m1"])
def test_training_reads_every_usable_photo_once(store: Store, encode_all: bool, model_id: str | None) -> None:
    plan = make_plan(encode_all=encode_all)
    shards, results = encode(store, plan, model_id)
    pixels = collect_pixels(store, plan, shards, results)
    names = [part.part for part in pixels]
    assert names == sorted(set(names))
    found = {(part.part, int(row)) for part in pixels for row in part.rows}
    assert all(part.rows.dtype == part.plan_rows.dtype == np.int32 for part in pixels)
    assert all((np.diff(part.rows) > 0).all() for part in pixels)
    kept = {(f"pixels/{TRANSFORM}/{part}.parquet", row) for part, row in (("p1", 3), ("p0", 1), ("p1", 0))}
    assert kept <= found
    new = {read(store, name)[row]["uri"] for name, row in found - kept}
    assert new == ({"u0", "u4", "u7", "u9"} if encode_all else {"u0", "u7", "u9"})
    assert len(found) == len(kept) + len(new)
    # Each living row is the photo of the plan that it says it is.
    for part in pixels:
        for row, at in zip(part.rows.tolist(), part.plan_rows.tolist(), strict=True):
            if (part.part, row) in kept:
                assert PLAN[at]["pixels"] == (part.part.split("/")[-1].removesuffix(".parquet"), row)
            else:
                assert read(store, part.part)[row]["uri"] == plan["uri"][at].as_py() == f"u{at}"
    at = np.concatenate([part.plan_rows for part in pixels])
    assert len(np.unique(at)) == len(found)


def test_a_plan_of_carried_photos_needs_no_part(store: Store) -> None:
    plan = make_plan().filter(pa.array([row["status"] in ("same", "refused") for row in PLAN]))
    items, refused = collect_rows(store, plan, [], [])
    assert (items.num_rows, refused.num_rows) == (4, 2)
    assert list(store.list()) == []


def test_a_shard_without_a_result_is_an_error(store: Store) -> None:
    plan = make_plan()
    shards, results = encode(store, plan)
    with pytest.raises(IntegrityError, match=r"of 11 photos .* 6 are in items and 3 in quarantine: 2 in neither"):
        collect_rows(store, plan, shards, results[1:])
    with pytest.raises(IntegrityError, match="in neither"):
        collect_rows(store, plan, shards[1:], results)
    with pytest.raises(IntegrityError, match="have no result"):
        collect_pixels(store, plan, shards, results[1:])
    without = [dataclasses.replace(result, latents=None) for result in results]
    with pytest.raises(IntegrityError, match="in neither"):
        collect_rows(store, plan, shards, without)


def test_a_carried_photo_without_latents_is_an_error(store: Store) -> None:
    plan = make_plan()
    index = plan.schema.get_field_index("latents_part")
    plan = plan.set_column(index, plan.schema.field(index), pa.nulls(len(PLAN), plan.schema.field(index).type))
    shards, results = encode(store, plan)
    with pytest.raises(IntegrityError, match="first is item 'i0' with status 'same'"):
        collect_rows(store, plan, shards, results)


def test_parts_of_other_photos_are_an_error(store: Store) -> None:
    """Two results swapped: rows are matched by their keys, never by counting alone."""
    plan = make_plan()
    shards, results = encode(store, plan)
    retry = [result for result in results if result.refused == 1]
    assert len(retry) == 2
    swapped = [
        dataclasses.replace(result, latents=retry[1 - retry.index(result)].latents) if result in retry else result
        for result in results
    ]
    with pytest.raises(IntegrityError, match="does not hold the photos"):
        collect_rows(store, plan, shards, swapped)


def test_a_first_run_has_no_carried_pixels(store: Store) -> None:
    plan = make_plan().filter(pa.array([row["status"] == "added" for row in PLAN]))
    shards, results = encode(store, plan, None)
    pixels = collect_pixels(store, plan, shards, results)
    found = sorted(read(store, part.part)[row]["uri"] for part in pixels for row in part.rows.tolist())
    assert found == ["u0", "u7", "u9"]
    assert collect_pixels(store, plan.slice(0, 0), [], []) == []

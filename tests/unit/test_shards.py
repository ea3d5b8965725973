"""Cutting a plan into shards, naming their parts, and finding those that are done."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.encoding import assign_shards, build_shards, split_done
from pipeline.errors import InputError, IntegrityError
from pipeline.ordering import ranks, take_rows
from pipeline.parts import FoundPart, find_part, hashed_part, write_part
from pipeline.schema import PHOTOS, latents_schema, pixels_schema, plan_schema
from pipeline.storage import MemoryStore, open_store

TRANSFORM = "0123456789abcdef"
SIZE = 8


def make_plan(rows: list[dict[str, Any]]) -> pa.Table:
    """Fill what a test leaves out; items are named so that plan order is row order."""
    plain = {
        "view": 0, "source": None, "offset": None, "length": None, "status": "added", "shard": None, "retried": False,
        "digest": None, "latents_part": None, "latents_row": None, "pixels_part": None, "pixels_row": None,
        "stage": None, "reason": None, "detail": None, "category": "hat",
    }  # fmt: skip
    full = [
        {**plain, "item_id": f"i{n:07d}", "uri": f"s3://b/{n}.jpg", "token": f"etag:{n}", **row}
        for n, row in enumerate(rows)
    ]
    return pa.Table.from_pylist(full, schema=plan_schema([pa.field("category", pa.string())]))


def carried(part: str, row: int) -> dict[str, Any]:
    name = f"pixels/{TRANSFORM}/{part}.parquet"
    return {
        "status": "same", "digest": "d", "latents_part": "latents/old/x.parquet", "latents_row": row,
        "pixels_part": name, "pixels_row": row,
    }  # fmt: skip


def build(plan: pa.Table, **changes: Any) -> list[Any]:
    arguments = {"transform_id": TRANSFORM, "model_id": "m1", "precision": "fp32", **changes}
    return build_shards(plan, **arguments)


@pytest.mark.parametrize(
    ("photos", "size", "rows", "shards"),
    [
        (1, 64, None, 1),
        (1_000, 64, None, 1),  # one actor's
        (1_001, 64, None, 3),  # of 500 at most
        (32_000, 64, None, 64),
        (64_000, 64, None, 64),
        (1_000_000, 64, None, 92),  # 128 MiB hold 10,922 photos of 64 px
        (1_000, 512, None, 6),  # and 170 of 512 px
        (1_001, 64, 500, 3),
        (7, 64, 1, 7),
    ],
)
def test_number_and_size_of_shards(photos: int, size: int, rows: int | None, shards: int) -> None:
    plan = make_plan([{}]).take(pa.array(np.zeros(photos, np.int64)))
    shard = assign_shards(plan, image_size=size, shard_rows=rows)["shard"].to_numpy()
    assert (np.diff(shard) >= 0).all()  # plan order
    counts = np.bincount(shard)
    assert len(counts) == shards
    assert counts.max() - counts.min() <= 1
    assert counts.max() * size * size * 3 <= 128 * 2**20
    assert rows is None or counts.max() <= rows


def test_large_latents_make_smaller_parts() -> None:
    plan = make_plan([{}]).take(pa.array(np.zeros(4_000, np.int64)))
    shard = assign_shards(plan, image_size=8, latent_bytes=2**20)["shard"].to_numpy()
    assert np.bincount(shard).max() <= 128


def test_only_added_and_changed_photos_are_computed() -> None:
    plan = make_plan([{}, {"status": "changed"}, carried("p", 0), {"status": "refused"}])
    assert assign_shards(plan, image_size=SIZE)["shard"].to_pylist() == [0, 0, None, None]


def test_a_plan_with_nothing_to_compute_has_no_shards() -> None:
    plan = assign_shards(make_plan([carried("p", 0)]), image_size=SIZE)
    assert plan["shard"].null_count == 1
    assert build(plan) == []
    assert build(assign_shards(make_plan([]), image_size=SIZE, encode_all=True)) == []


def test_the_shard_column_is_added_where_a_plan_has_none() -> None:
    plan = make_plan([{}, {}])
    assert assign_shards(plan.drop_columns(["shard"]), image_size=SIZE)["shard"].to_pylist() == [0, 0]
    assert assign_shards(plan, image_size=SIZE).schema == plan.schema


def test_tried_again_photos_get_shards_and_keys_of_their_own() -> None:
    plan = assign_shards(make_plan([{}, {"retried": True}, {}, {"retried": True}]), image_size=SIZE)
    assert plan["shard"].to_pylist() == [0, 1, 0, 1]
    first, second = build(plan)
    assert first.photos["uri"].to_pylist() == ["s3://b/0.jpg", "s3://b/2.jpg"]
    keys = {(shard.pixels_key, shard.latents_key) for shard in (first, second)}
    for run in ("run-a", "run-b"):  # where parts hold what may pass, a run asks under keys of its own
        keys |= {(shard.pixels_key, shard.latents_key) for shard in build(plan, retry_of=run)}
    assert len(keys) == 6
    assert len({key for pair in keys for key in pair}) == 12


def test_embedded_photos_stay_with_their_neighbours_in_the_file() -> None:
    """Counted by row group of 50: reading all of them costs about one read each, in plan order many."""
    random = np.random.default_rng(3)
    places = [(f"s3://b/{name}.parquet", offset) for name in "cab" for offset in range(400)]
    rows = [{"source": places[n][0], "offset": places[n][1]} for n in random.permutation(len(places))]
    plan = assign_shards(make_plan(rows), image_size=SIZE, shard_rows=100)
    reads = {(row["shard"], row["source"], row["offset"] // 50) for row in plan.to_pylist()}
    assert len(reads) == 3 * 400 // 50  # each group by exactly one shard
    in_plan_order = {(n // 100, row["source"], row["offset"] // 50) for n, row in enumerate(rows)}
    assert len(in_plan_order) > 10 * len(reads)
    for shard in build(plan):
        ids = shard.photos["item_id"].to_pylist()
        assert ids == sorted(ids)  # rows inside a part are in plan order all the same


def test_a_new_model_encodes_pixels_part_by_pixels_part() -> None:
    other = {**carried("c", 0), "pixels_part": "pixels/fedcba9876543210/c.parquet"}
    gone = {**carried("d", 0), "pixels_part": None, "pixels_row": None}
    rows = [carried("b", 4), {}, carried("a", 1), carried("b", 2), other, gone, {"status": "refused"}, carried("a", 0)]
    plan = assign_shards(make_plan(rows), image_size=SIZE, encode_all=True, transform_id=TRANSFORM)
    assert plan["shard"].to_pylist() == [2, 0, 1, 2, 0, 0, None, 1]
    fetched, a, b = build(plan)
    assert fetched.from_pixels is None
    assert fetched.photos.num_rows == 3
    assert a.from_pixels == a.pixels_name == f"pixels/{TRANSFORM}/a.parquet"
    assert a.pixels_key == "a"
    assert a.photos["pixels_row"].to_pylist() == [1, 0]
    assert b.photos["pixels_row"].to_pylist() == [4, 2]
    assert b.latents_name.startswith("latents/m1/")
    assert [shard.number for shard in build(plan, model_id=None)] == [0]


def test_carried_photos_without_latents_are_encoded_again_and_no_others() -> None:
    """A conditional model was told another category: decided row by row, from kept pixels where there are any."""
    stale = {"latents_part": None, "latents_row": None}
    gone = {**carried("a", 2), **stale, "pixels_part": None, "pixels_row": None}
    rows = [carried("b", 0), {**carried("b", 1), **stale}, carried("a", 0), {**carried("a", 1), **stale}, gone, {}]
    plan = assign_shards(make_plan(rows), image_size=SIZE, transform_id=TRANSFORM)
    assert plan["shard"].to_pylist() == [None, 2, None, 1, 0, 0]
    fetched, a, b = build(plan, category="category")
    assert [shard.from_pixels and shard.pixels_key for shard in (fetched, a, b)] == [None, "a", "b"]
    assert fetched.photos["item_id"].to_pylist() == ["i0000004", "i0000005"]
    assert b.photos.column_names == [*PHOTOS.names, "category", "pixels_row"]
    assert (b.photos["category"].to_pylist(), b.photos["pixels_row"].to_pylist()) == (["hat"], [1])
    every = assign_shards(make_plan(rows), image_size=SIZE, transform_id=TRANSFORM, encode_all=True)
    assert every["shard"].to_pylist() == [2, 2, 1, 1, 0, 0]


def test_a_pixels_part_with_large_latents_is_encoded_in_pieces() -> None:
    plan = make_plan([carried(part, row) for part in ("a", "b") for row in range(5)])
    shard = assign_shards(plan, image_size=SIZE, encode_all=True, latent_bytes=50 * 2**20)["shard"].to_pylist()
    assert shard == [0, 0, 1, 1, 2, 3, 3, 4, 4, 5]
    shards = build(assign_shards(plan, image_size=SIZE, encode_all=True, latent_bytes=50 * 2**20))
    assert len({shard.latents_key for shard in shards}) == 6


def test_keys_are_the_digest_of_what_was_asked() -> None:
    (shard,) = build(assign_shards(make_plan([{}, {}]), image_size=SIZE))
    asked = [["i0000000", "s3://b/0.jpg", "etag:0"], ["i0000001", "s3://b/1.jpg", "etag:1"]]
    text = json.dumps([1, TRANSFORM, "uint8", "", asked], separators=(",", ":"))
    assert shard.pixels_key == hashlib.sha256(text.encode()).hexdigest()
    assert shard.pixels_name == f"pixels/{TRANSFORM}/{shard.pixels_key}.parquet"
    text = json.dumps([1, "m1", "fp32", "", asked, shard.pixels_name], separators=(",", ":"))
    assert shard.latents_key == hashlib.sha256(text.encode()).hexdigest()
    assert shard.latents_name == f"latents/m1/{shard.latents_key}.parquet"


def test_keys_change_with_what_was_asked_and_with_nothing_else() -> None:
    rows: list[dict[str, Any]] = [{}, {}]
    cut = {"image_size": SIZE, "shard_rows": 10}
    (before,) = build(assign_shards(make_plan(rows), **cut))

    def keys(changed: list[dict[str, Any]], **changes: Any) -> tuple[bool, bool]:
        (shard,) = build(assign_shards(make_plan(changed), **cut), **changes)
        return shard.pixels_key == before.pixels_key, shard.latents_key == before.latents_key

    assert keys([{}, {"token": "etag:new"}]) == (False, False)
    assert keys([{}, {"uri": "s3://b/new.jpg"}]) == (False, False)
    assert keys([{"item_id": "i0000001", "uri": "s3://b/1.jpg", "token": "etag:1"}, {"item_id": "i0000000", "uri": "s3://b/0.jpg", "token": "etag:0"}]) == (False, False)  # fmt: skip # noqa: E501
    assert keys(rows, transform_id="f" * 16) == (False, False)  # the latents of other pixels
    assert keys(rows, model_id="m2") == (True, False)
    assert keys(rows, precision="bf16") == (True, False)
    relabelled = [{"category": "shoe", "view": 3, "status": "changed"}, {}]
    assert keys(relabelled) == (True, True)
    (told,) = build(assign_shards(make_plan(rows), **cut), category="category")
    (other,) = build(assign_shards(make_plan(relabelled), **cut), category="category")
    assert len({before.latents_key, told.latents_key, other.latents_key}) == 3  # a conditional model's
    assert before.pixels_key == told.pixels_key == other.pixels_key


def test_a_photo_without_a_token_is_refused() -> None:
    with pytest.raises(InputError, match="i0000001"):
        build(assign_shards(make_plan([{}, {"token": None}]), image_size=SIZE))


def empty_parts(store: Any, shard: Any, *, refused: int = 0) -> None:
    """Write parts of zeros for a shard whose first `refused` photos have no pixels."""
    count = shard.photos.num_rows
    keys = [shard.photos[name] for name in ("item_id", "uri", "token")]
    stage = pa.array(["fetch"] * refused + [None] * (count - refused), pa.string())
    pixels = pa.array([None if n < refused else bytes(SIZE * SIZE * 3) for n in range(count)], pa.binary(SIZE**2 * 3))
    digest = pa.array([None if n < refused else "d" for n in range(count)], pa.string())
    table = pa.Table.from_arrays([*keys, digest, pixels, stage, stage, stage], schema=pixels_schema(SIZE))
    write_part(store, shard.pixels_name, table, shard.pixels_key)
    if shard.latents_name is None:
        return
    rows = pa.array(range(refused, count), pa.int32())
    mean = pa.array([[0.0, 0.0]] * (count - refused), pa.list_(pa.float32(), 2))
    live = [column.slice(refused) for column in (*keys, digest)]
    table = pa.Table.from_arrays([*live, rows, mean], schema=latents_schema(2, log_var=False))
    write_part(store, shard.latents_name, table, shard.latents_key)


def test_done_shards_are_found_and_the_others_left(request: pytest.FixtureRequest) -> None:
    store = open_store(f"memory://{request.node.name}")
    shards = build(assign_shards(make_plan([{}] * 9), image_size=SIZE, shard_rows=3))
    assert split_done(shards, store) == ([], shards)
    empty_parts(store, shards[0])
    empty_parts(store, shards[2], refused=2)
    done, todo = split_done(shards, store)
    assert todo == [shards[1]]
    assert [(r.number, r.photos, r.refused, r.fetched, r.reused) for r in done] == [
        (0, 3, 0, 0, True),
        (2, 3, 2, 0, True),
    ]
    assert done[1].latents is not None
    assert done[1].latents == FoundPart(
        name=str(shards[2].latents_name), bytes=len(store.get(str(shards[2].latents_name))), rows=1
    )
    store.delete(shards[0].latents_name)  # pixels alone are not what was asked
    assert split_done(shards, store)[1] == shards[:2]
    pixels_only = build(assign_shards(make_plan([{}] * 9), image_size=SIZE, shard_rows=3), model_id=None)
    done, todo = split_done(pixels_only, store)
    assert [(r.number, r.refused, r.latents) for r in done] == [(0, 0, None), (2, 2, None)]
    assert [shard.number for shard in todo] == [1]


def test_of_finished_parts_only_the_ends_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed night asked the store for every finished part whole: 138 MB a shard of 224-pixel photos."""
    store = open_store("memory://shards-resumed")
    schema = pixels_schema(SIZE)
    rows, generator = 3000, np.random.default_rng(0)
    column = pa.array([generator.bytes(SIZE * SIZE * 3) for _ in range(rows)])  # incompressible
    texts = pa.array([f"{n:05d}" for n in range(rows)])
    none = pa.nulls(rows, pa.string())
    columns = [texts, texts, texts, texts, column.cast(schema.field("pixels").type), none, none, none]
    part = write_part(store, "pixels/t/a.parquet", pa.Table.from_arrays(columns, schema=schema), "key")
    asked: list[int] = []
    fetch = MemoryStore.fetch

    def counted(self: MemoryStore, *given: Any, **ranges: Any) -> Any:
        body = fetch(self, *given, **ranges)
        asked.append(len(body.data))
        return body

    monkeypatch.setattr(MemoryStore, "fetch", counted)
    found = find_part(store, part.name, "key", size=part.bytes)
    assert found == FoundPart(name=part.name, bytes=part.bytes, rows=rows)
    assert part.bytes > 500_000
    assert asked == [1 << 16]
    assert hashed_part(store, found) == part
    monkeypatch.setattr("pipeline.parts._FOOTER", 100)  # a footer longer than was guessed is one more request
    asked.clear()
    assert find_part(store, part.name, "key") == found
    assert len(asked) == 2
    assert sum(asked) < 20_000
    for damage in (b"", b"PAR1", store.get(part.name)[:-1], store.get(part.name)[1:-5] + b"\xffPAR1"):
        store.put(part.name, damage)
        with pytest.raises(IntegrityError, match="not a readable Parquet file"):
            find_part(store, part.name, "key")
    assert find_part(store, "pixels/t/b.parquet", "key") is None


def test_a_part_that_is_not_what_its_name_says_is_an_error(request: pytest.FixtureRequest) -> None:
    store = open_store(f"memory://{request.node.name}")
    one, two = build(assign_shards(make_plan([{}] * 5), image_size=SIZE, shard_rows=3))
    empty_parts(store, one)
    for name in ("pixels_name", "latents_name"):
        store.put(getattr(two, name), store.get(getattr(one, name)))
    with pytest.raises(IntegrityError, match="part key"):
        split_done([one, two], store)


def test_rows_are_taken_and_ranked_as_plain_python_does() -> None:
    words = ["b", None, "a", "b", "c", None]
    column = pa.chunked_array([words[:2], words[2:2], words[2:]], pa.string())
    codes, names = ranks(column)
    assert names == ["a", "b", "c"]
    assert codes.tolist() == [1, -1, 0, 1, 2, -1]
    table = pa.table({"w": column, "n": pa.array(range(6), pa.int32())})
    taken = take_rows(table, np.array([5, 0, 0, 4]))
    assert taken.to_pylist() == [{"w": words[n], "n": n} for n in (5, 0, 0, 4)]
    assert taken.schema == table.schema
    assert take_rows(table, np.array([], np.int64)).schema == table.schema

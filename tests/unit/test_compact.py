"""Compaction against plain copies: the same latents for the same photos, in fewer or fuller parts."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.encoding import compact, hash_parts
from pipeline.errors import IntegrityError
from pipeline.parts import FoundPart, PartFile, latents_part_name, read_part, write_part
from pipeline.schema import ITEMS, attribute_fields, items_schema, latents_schema
from pipeline.storage import Store, open_store

DIM = 3
compacting = sys.modules["pipeline.encoding.compact"]  # the package's own name `compact` is the function
RULES: dict[str, Any] = {"model_id": "m", "precision": "fp32", "below": 0.7, "max_parts": 1000}


def written(store: Store, number: int, photos: int) -> PartFile:
    """One part of `photos` photos; the latents of photo i of part n are [n, i, n * i]."""
    rows = [
        {
            "item_id": f"i{i:02d}-{number:02d}", "uri": f"u{number}-{i}", "token": "t", "digest": f"d{number}-{i}",
            "pixels_row": i, "mean": [number, i, number * i],
        }
        for i in range(photos)
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=latents_schema(DIM, log_var=False))
    key = f"key{number:02d}"
    return write_part(store, latents_part_name("m", key), table, key)


def items_of(store: Store, parts: list[PartFile], keep: dict[int, set[int]]) -> pa.Table:
    """The living photos of parts, sorted by item_id, which interleaves the parts."""
    rows = []
    for number, part in enumerate(parts):
        for place, photo in enumerate(read_part(store, part.name).to_pylist()):
            if place in keep.get(number, set(range(part.rows))):
                rows.append({
                    **{name: photo[name] for name in ("item_id", "uri", "token", "digest")},
                    "view": 0, "latents_part": part.name, "latents_row": place, "pixels_part": f"pixels{number}",
                    "pixels_row": place, "colour": "red",
                })  # fmt: skip
    schema = items_schema([pa.field("colour", pa.string())])
    return pa.Table.from_pylist(sorted(rows, key=lambda row: row["item_id"]), schema=schema)


def latents(store: Store, items: pa.Table) -> dict[str, list[float]]:
    """What a reader finds: photo -> latents, by a plain look-up."""
    found = {}
    for row in items.to_pylist():
        place = read_part(store, row["latents_part"]).slice(row["latents_row"], 1).to_pylist()[0]
        assert (place["item_id"], place["uri"], place["token"]) == (row["item_id"], row["uri"], row["token"])
        assert place["pixels_row"] == row["pixels_row"]
        found[row["uri"]] = place["mean"]
    return found


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Store:
    return open_store(f"memory://{request.node.name}")


def test_a_part_of_which_few_rows_live_is_rewritten_and_others_stay(store: Store) -> None:
    parts = [written(store, 0, 10), written(store, 1, 10), written(store, 2, 10)]
    items = items_of(store, parts, {0: {1, 5, 7}, 1: set(range(7))})  # 3 of 10, 7 of 10, all
    before = latents(store, items)
    after, made = compact(store, items, {part.name: part for part in parts}, **RULES)
    assert latents(store, after) == before
    named = set(after["latents_part"].to_pylist())
    assert named == {parts[1].name, parts[2].name, *made}
    assert [part.rows for part in made.values()] == [3]
    unchanged = [*ITEMS.names[:5], "pixels_part", "pixels_row", "colour"]
    assert after.select(unchanged).equals(items.select(unchanged))
    assert after.schema == items.schema
    assert [field.name for field in attribute_fields(after.schema)] == ["colour"]


def test_too_many_parts_are_merged_smallest_first_until_half_as_many_are_named(store: Store) -> None:
    parts = [written(store, number, 2 + number) for number in range(9)]
    items = items_of(store, parts, {})
    before = latents(store, items)
    after, made = compact(store, items, {part.name: part for part in parts}, **{**RULES, "max_parts": 8})
    named = set(after["latents_part"].to_pylist())
    assert latents(store, after) == before
    assert len(made) == 1
    assert named - set(made) == {part.name for part in parts[5:]}, "the four largest stay"
    again, more = compact(
        store, after, {part.name: part for part in [*parts, *made.values()]}, **{**RULES, "max_parts": 8}
    )
    assert (again, more) == (after, {})


def test_nothing_to_do_returns_the_same_items(store: Store) -> None:
    parts = [written(store, 0, 4)]
    items = items_of(store, parts, {})
    assert compact(store, items, {parts[0].name: parts[0]}, **RULES) == (items, {})
    assert compact(store, items.slice(0, 0), {}, **RULES) == (items.slice(0, 0), {})


def test_a_second_time_gives_the_same_part(store: Store) -> None:
    parts = [written(store, 0, 10)]
    items = items_of(store, parts, {0: {2, 3}})
    known = {part.name: part for part in parts}
    assert compact(store, items, known, **RULES) == compact(store, items, known, **RULES)


def test_items_that_name_wrong_rows_are_refused_rather_than_copied(store: Store) -> None:
    parts = [written(store, 0, 10)]
    items = items_of(store, parts, {0: {2, 3}})
    index = items.schema.get_field_index("latents_row")
    swapped = items.set_column(index, items.schema.field(index), pa.array(np.array([3, 2], np.int32)))
    with pytest.raises(IntegrityError, match="other photos"):
        compact(store, swapped, {part.name: part for part in parts}, **RULES)


def night(store: Store, parts: dict[str, PartFile], items: pa.Table, **rules: Any) -> tuple[pa.Table, set[str]]:
    """Compact, and return items with the names that were read to be rewritten."""
    before = set(items["latents_part"].to_pylist())
    after, made = compact(store, items, parts, **{**RULES, **rules})
    parts |= made
    return after, before - set(after["latents_part"].to_pylist())


def test_full_parts_are_never_rewritten_to_save_parts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve full parts where six may be named: the night after night rewriting of them is what this must not do."""
    monkeypatch.setattr(compacting, "_EMPTY", 0)
    written_parts = [written(store, number, 9) for number in range(12)]
    small = [written(store, number, 2) for number in range(12, 15)]
    parts = {part.name: part for part in [*written_parts, *small]}
    items = items_of(store, [*written_parts, *small], {})
    monkeypatch.setattr(compacting, "_FULL", 4 * min(part.bytes for part in written_parts))
    monkeypatch.setattr(compacting, "PART_BYTES", 8 * min(part.bytes for part in written_parts))
    assert night(store, parts, items, max_parts=6) == (items, set()), "three small ones may gather"
    more = written(store, 15, 2)
    parts[more.name] = more
    items = items_of(store, [*written_parts, *small, more], {})
    before = latents(store, items)
    after, gone = night(store, parts, items, max_parts=6)
    assert gone == {part.name for part in [*small, more]}
    assert latents(store, after) == before
    assert night(store, parts, after, max_parts=6) == (after, set()), "one night settles it"


MIB = 1 << 20


class Nights:
    """What compaction does to a catalogue of many parts, without their bytes: rows and sizes alone."""

    def __init__(self, full: int, *, max_parts: int) -> None:
        self.max_parts = max_parts
        self.living = [living_part(f"full-{number:05d}", 110 * MIB, 150_000) for number in range(full)]
        self.named = 0

    def add(self, count: int, size: int, rows: int) -> None:
        self.named += 1
        self.living += [living_part(f"night-{self.named:03d}-{number:03d}", size, rows) for number in range(count)]

    def compact(self) -> list[Any]:
        """Return the parts that are rewritten; each group of them becomes one."""
        chosen = compacting._choose(self.living, below=0.7, max_parts=self.max_parts)
        gone = {member.part.name for member in chosen}
        self.living = [member for member in self.living if member.part.name not in gone]
        self.named += 1
        for number, group in enumerate(compacting._groups(chosen)):
            share = [len(member.rows) / member.part.rows for member in group]
            size = sum(int(s * member.part.bytes) for s, member in zip(share, group, strict=True))
            rows = sum(len(member.rows) for member in group)
            self.living.append(living_part(f"merged-{self.named:03d}-{number:03d}", size, rows))
        return chosen


def living_part(name: str, size: int, rows: int, *, share: float = 1.0) -> Any:
    return compacting._Living(FoundPart(name=name, bytes=size, rows=rows), np.arange(int(rows * share)))


@pytest.mark.slow
def test_a_hundred_million_photos_settle_in_one_night_and_each_is_copied_about_once() -> None:
    """1,018 full parts where 1,000 may be named: 518 of them were written anew every night."""
    nights = Nights(1018, max_parts=1000)
    assert nights.compact() == []
    added = copied = 0
    for _ in range(60):
        nights.add(64, 2 * MIB, 4_000)  # what one per cent a night comes to
        added += 64 * 2 * MIB
        chosen = nights.compact()
        assert not [member for member in chosen if member.part.name.startswith("full")]
        copied += sum(member.part.bytes for member in chosen)
        assert nights.compact() == [], "one night settles it"
        assert len(nights.living) <= 1018 + 500 + added // (16 * MIB)
    assert 0 < copied < 1.1 * added


@pytest.mark.parametrize("max_parts", [1, 2, 3, 10, 100])
@pytest.mark.parametrize("full", [0, 1, 7])
def test_any_parts_settle_in_one_night(full: int, max_parts: int) -> None:
    rng = np.random.default_rng([full, max_parts])
    nights = Nights(full, max_parts=max_parts)
    for _ in range(20):
        nights.add(int(rng.integers(0, 8)), int(rng.integers(10_000, 20 * MIB)), int(rng.integers(1, 5_000)))
        lost = rng.integers(len(nights.living)) if nights.living else 0
        nights.living[lost : lost + 1] = [
            living_part(member.part.name, member.part.bytes, member.part.rows, share=0.5)
            for member in nights.living[lost : lost + 1]
        ]
        rows = sum(len(member.rows) for member in nights.living)
        nights.compact()
        assert sum(len(member.rows) for member in nights.living) == rows
        assert nights.compact() == []


def test_a_long_catalogue_is_not_read_once_a_rewritten_part(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows taken from items grow with those rewritten; each group taking all of them made it quadratic."""
    parts = [written(store, number, 30) for number in range(20)]
    items = items_of(store, parts, {number: {1, 2} for number in range(10)})
    monkeypatch.setattr(compacting, "_EMPTY", 0)
    monkeypatch.setattr(compacting, "PART_BYTES", 1)  # a group a part
    taken: list[int] = []
    real = compacting.take_rows

    def counted(table: pa.Table, positions: Any) -> pa.Table:
        taken.append(len(positions))
        return real(table, positions)

    monkeypatch.setattr(compacting, "take_rows", counted)
    _, made = compact(store, items, {part.name: part for part in parts}, **RULES)
    assert len(made) == 10
    assert sum(taken) == 3 * 20, "of items, of the part, and in order"


def test_parts_that_were_only_found_are_hashed_once_and_only_where_named(store: Store) -> None:
    parts = [written(store, number, 4) for number in range(3)]
    items = items_of(store, parts[:2], {})
    found = {part.name: FoundPart(name=part.name, bytes=part.bytes, rows=part.rows) for part in parts}
    assert hash_parts(store, items, {**found, parts[0].name: parts[0]}) == {part.name: part for part in parts[:2]}
    store.delete(parts[1].name)
    with pytest.raises(IntegrityError, match="is gone"):
        hash_parts(store, items, found)
    store.put(parts[1].name, b"x" * (parts[1].bytes + 1))
    with pytest.raises(IntegrityError, match="has changed"):
        hash_parts(store, items, found)

"""Held-out rows: by value alone, so nothing crosses; and what of a plan becomes training rows and labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from jobs import computing
from pipeline.encoding import LivingRows
from pipeline.errors import ConfigError, InputError
from pipeline.images import ImagesConfig
from pipeline.models.conditions import condition_of
from pipeline.models.vae import VAEConfig
from pipeline.planning import check_training_columns, training_rows
from pipeline.schema import plan_schema
from pipeline.training import TrainConfig, TrainJob
from pipeline.training.part_rows import inputs_digest
from pipeline.training.split import choose_labels, held_out

ITEMS = [f"item-{number // 3}" for number in range(6000)]  # three photos each


def crossing(names: list[str], mask: np.ndarray) -> int:
    """Return how many names lie on both sides."""
    return len(set(np.array(names)[mask]) & set(np.array(names)[~mask]))


def test_no_item_lies_on_both_sides():
    mask = held_out(ITEMS, 0.1, 0)
    assert mask.dtype == np.bool_
    assert crossing(ITEMS, mask) == 0
    # 2000 items, binomial: mean 200, standard deviation 13.4.
    assert abs(mask.sum() / 3 - 200) < 60
    # Control: rows drawn by chance, as a plain random split does, tear items apart.
    torn = np.random.default_rng(0).random(len(ITEMS)) < 0.1
    assert crossing(ITEMS, torn) > 300


def test_a_later_catalogue_keeps_every_side():
    mask = dict(zip(ITEMS, held_out(ITEMS, 0.2, 7), strict=True))
    later = [f"item-{number}" for number in range(5000, -1, -2)]
    known = [name for name in later if name in mask]
    assert len(known) == 1000
    assert dict(zip(known, held_out(later, 0.2, 7)[-1000:], strict=True)) == {name: mask[name] for name in known}


def test_the_seed_decides_and_larger_shares_only_add():
    names = ITEMS[::3]
    assert (held_out(names, 0.2, 0) != held_out(names, 0.2, 1)).any()
    small, large = held_out(names, 0.1, 0), held_out(names, 0.3, 0)
    assert not (small & ~large).any()
    assert not held_out(names, 0.0, 0).any()
    assert held_out([], 0.5, 0).shape == (0,)


def test_chunks_of_a_column_make_no_difference():
    column = pa.chunked_array([ITEMS[:1000], [], ITEMS[1000:]], pa.string())
    assert np.array_equal(held_out(column, 0.2, 3), held_out(ITEMS, 0.2, 3))


def test_the_hash_is_blake2b_of_seed_and_value():
    """A bundle's held-out photos can be found again by other code, and by a later version of this one."""
    names = [*ITEMS[:300], "Größe 42", ""]
    digests = [hashlib.blake2b((5).to_bytes(8, "big") + name.encode(), digest_size=8).digest() for name in names]
    expected = [int.from_bytes(digest, "big") / 2**64 < 0.25 for digest in digests]
    assert held_out(names, 0.25, 5).tolist() == expected
    assert 0 < sum(expected) < len(names)


def test_labels_are_the_most_frequent_in_order_of_name():
    names = ["a", "b", "c", "d", "e"]
    assert choose_labels(names, np.array([3, 0, 9, 1, 1])) == ("a", "c", "d", "e")
    assert choose_labels(names, np.array([3, 0, 9, 1, 1]), limit=3) == ("a", "c", "d")


# --- from a plan to training rows

COUNT = 400
CATEGORY = [None if n % 10 == 9 else f"c{n % 3}" for n in range(COUNT)]


def plan_of(count: int = COUNT, **columns: list[object]) -> pa.Table:
    values = {
        "item_id": [f"i{n // 2}" for n in range(count)],
        "category": CATEGORY[:count],
        "brand": [None if n // 2 % 5 == 4 else f"b{n // 8 % 25}" for n in range(count)],
        "year": [1900 + n // 20 for n in range(count)],
        **columns,
    }
    schema = plan_schema(
        [pa.field("category", pa.string()), pa.field("brand", pa.string()), pa.field("year", pa.int64())]
    )
    return pa.table([pa.array(values.get(f.name, [None] * count), f.type) for f in schema], schema=schema)


def config_of(category: str | None = "category", **train: object) -> SimpleNamespace:
    return SimpleNamespace(train=TrainConfig(**train), catalogue=SimpleNamespace(category=category))


def living_of(count: int = COUNT) -> list[LivingRows]:
    """Two parts; the second has its photos in another order than the plan, and every seventh photo was refused."""
    alive = np.array([n for n in range(count) if n % 7], np.int32)
    head, tail = alive[: len(alive) // 2], alive[len(alive) // 2 :]
    return [
        LivingRows("a", np.arange(len(head), dtype=np.int32), head),
        LivingRows("b", 3 * np.arange(len(tail), dtype=np.int32), tail[::-1].copy()),
    ]


def test_rows_have_their_own_category_and_side():
    rows = training_rows(plan_of(), living_of(), config_of(validation=0.2, seed=4))
    assert rows.labels == ("c0", "c1", "c2")
    sides = dict(
        zip((f"i{n}" for n in range(COUNT // 2)), held_out([f"i{n}" for n in range(COUNT // 2)], 0.2, 4), strict=True)
    )
    for part, living in zip(rows.pixels, living_of(), strict=True):
        assert part.part == living.part
        assert np.array_equal(part.rows, living.rows)
        assert part.category.dtype == np.int32
        assert part.category.tolist() == condition_of(rows.labels, [CATEGORY[n] for n in living.plan_rows]).tolist()
        assert part.held_out.tolist() == [bool(sides[f"i{n // 2}"]) for n in living.plan_rows]
    assert rows.photos + rows.held_out == sum(len(part.rows) for part in living_of())
    assert 0 < rows.held_out < rows.photos


@pytest.mark.parametrize("column", ["brand", "year"])
def test_groups_never_cross(column):
    plan = plan_of()
    values = plan[column].to_pylist()

    def sides_of(split_by: str | None) -> tuple[list[str], np.ndarray]:
        rows = training_rows(plan, living_of(), config_of(validation=0.3, split_by=split_by))
        at = np.concatenate([part.plan_rows for part in living_of()])
        mask = np.concatenate([part.held_out for part in rows.pixels])
        known = [values[n] is not None for n in at]
        return [str(values[n]) for n in at[known]], mask[known]

    names, mask = sides_of(column)
    assert crossing(names, mask) == 0
    assert 0 < mask.sum() < len(mask)
    assert crossing(*sides_of(None)) > 5  # by item_id, groups are torn


def test_items_without_a_group_are_split_by_item():
    plan = plan_of()
    rows = training_rows(plan, living_of(), config_of(validation=0.3, split_by="brand"))
    at = np.concatenate([part.plan_rows for part in living_of()])
    mask = np.concatenate([part.held_out for part in rows.pixels])
    alone = np.array([plan["brand"][int(n)].as_py() is None for n in at])
    assert 0 < mask[alone].sum() < alone.sum()
    assert crossing([f"i{n // 2}" for n in at[alone]], mask[alone]) == 0


def test_labels_come_from_photos_that_are_trained_on():
    aside = held_out([f"i{n}" for n in range(COUNT // 2)], 0.2, 0)
    only = 2 * int(np.flatnonzero(aside)[3])
    plan = plan_of(category=["rare" if n in (only, only + 1) else "c0" for n in range(COUNT)])
    rows = training_rows(plan, living_of(), config_of(validation=0.2))
    assert rows.labels == ("c0",)
    assert set(np.concatenate([part.category for part in rows.pixels])) == {1, 2}
    everything = training_rows(plan, living_of(), config_of(validation=0))
    assert everything.labels == ("c0", "rare")
    assert all(part.held_out is None for part in everything.pixels)


def test_categories_of_other_types_and_none_at_all():
    rows = training_rows(plan_of(), living_of(), config_of(category="year", validation=0))
    assert rows.labels == tuple(str(1900 + n) for n in range(20))
    rows = training_rows(plan_of(), living_of(), config_of(category=None))
    assert rows.labels == ()
    assert all(part.category is None for part in rows.pixels)
    rows = training_rows(plan_of(category=[None] * COUNT), living_of(), config_of())
    assert rows.labels == ()
    assert set(np.concatenate([part.category for part in rows.pixels])) == {0}


def test_a_tiny_catalogue_may_hold_nothing_out():
    rows = training_rows(plan_of(2), living_of(2), config_of(validation=0.001))
    assert (rows.photos, rows.held_out) == (1, 0)


def test_everything_held_out_is_an_error():
    brand = plan_of(brand=["one"] * COUNT)
    seed = next(seed for seed in range(100) if held_out(["one"], 0.5, seed)[0])
    with pytest.raises(InputError, match=r"all 342 photos would be held out .* by brand"):
        training_rows(brand, living_of(), config_of(validation=0.5, split_by="brand", seed=seed))


def test_columns_that_are_not_there_are_refused():
    with pytest.raises(ConfigError, match=r"'maker'.* it has: item_id, category, brand, year"):
        check_training_columns(plan_of(), config_of(split_by="maker"))
    with pytest.raises(ConfigError, match="uri"):
        check_training_columns(plan_of(), config_of(split_by="uri"))
    with pytest.raises(ConfigError, match=r"balance.*category is not set"):
        check_training_columns(plan_of(), config_of(category=None, balance=True))
    check_training_columns(plan_of(), config_of(split_by="item_id", balance=True))


def test_a_training_is_told_sides_categories_and_labels(monkeypatch):
    plan = SimpleNamespace(rows=plan_of(), summary=SimpleNamespace(model_id=None, train_key="k" * 64))
    told: list[TrainJob] = []
    notes: list[str] = []
    photos: list[int] = []

    @contextmanager
    def stage(_name: str, **given: int) -> Iterator[None]:
        photos.append(given["photos"])
        yield

    given = vars(config_of(validation=0.2, epochs=3))
    config = SimpleNamespace(**given, model=VAEConfig(), images=ImagesConfig(size=8))
    context = SimpleNamespace(
        store=None,
        here=False,
        config=config,
        run=SimpleNamespace(name="night"),
        attempt=SimpleNamespace(number=1, check=lambda: None),
        progress=SimpleNamespace(note=notes.append, training=None),
        watch=SimpleNamespace(stage=stage),
    )
    monkeypatch.setattr(computing, "find_bundle", lambda _store, _key: None)
    asked = SimpleNamespace(rows=plan.rows, shards=[])
    monkeypatch.setattr(computing, "compute", lambda *_given, **_named: (asked, []))
    monkeypatch.setattr(computing, "collect_pixels", lambda *_given: living_of())
    monkeypatch.setattr(computing, "train_job", lambda job, *, progress: told.append(job) or "m")
    assert computing.train_model(context, plan, lambda: None) == "m"
    expected = training_rows(plan.rows, living_of(), config)
    (job,) = told
    assert job.labels == expected.labels == ("c0", "c1", "c2")
    assert inputs_digest(job.pixels) == inputs_digest(expected.pixels)
    assert photos == [3 * expected.photos]
    assert notes == [f"train: {expected.photos} photos, {expected.held_out} held out for validation"]
    # A column that is not there is found before a photo is fetched.
    context.config.train = TrainConfig(split_by="maker")
    monkeypatch.setattr(computing, "compute", lambda *_given, **_named: pytest.fail("photos were fetched"))
    with pytest.raises(ConfigError, match="maker"):
        computing.train_model(context, plan, lambda: None)

"""Answers of the reader, on small releases made here, against brute force."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ConfigError, UnknownItem
from pipeline.index import IndexConfig
from pipeline.reader import open_release
from pipeline.storage import Store, open_store

MODEL, DIM = "ab" * 32, 6  # as in release_maker.py


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.mark.usefixtures("walked")
@pytest.mark.parametrize("kind", ["flat", "hnsw"])
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_similar_is_brute_force_over_pairs_of_photos(maker: Any, store: Store, metric: str, kind: str) -> None:
    made = maker.make_release(
        store, maker.some_photos(120), index=IndexConfig(metric=metric, kind=kind, target_recall=1.0)
    )
    release = open_release(store.url)
    for item_id in release.item_ids()[::9]:
        for k in (1, 10, 119, 500):
            answer = release.similar(item_id, k=k)
            maker.check(answer, maker.brute_force(made, metric, made.means(item_id), k, left_out=[item_id]))
            assert len(answer) == min(k, 119)
            assert all(a.score >= b.score for a, b in itertools.pairwise(answer)), "larger is nearer"


WHERES: list[tuple[dict[str, Any], Callable[[Any], bool]]] = [
    ({"category": "Shoes"}, lambda p: p.category == "Shoes"),
    ({"category": ["Shoes", "Bags"]}, lambda p: p.category in ("Shoes", "Bags")),
    ({"category": []}, lambda p: False),
    ({"category": "Gloves"}, lambda p: False),
    ({"price": {"min": 10, "max": 30}}, lambda p: p.price is not None and 10 <= p.price <= 30),
    ({"price": {"max": 20.5}}, lambda p: p.price is not None and p.price <= 20.5),
    ({"stock": 3}, lambda p: p.stock == 3),
    ({"stock": {"min": 1.5}}, lambda p: p.stock is not None and p.stock >= 1.5),
    (
        {"category": "Hats", "price": {"min": 5}, "stock": (0, 1, 2)},
        lambda p: p.category == "Hats" and p.price is not None and p.price >= 5 and p.stock in (0, 1, 2),
    ),
    ({}, lambda p: True),
]


@pytest.mark.usefixtures("walked")
@pytest.mark.parametrize("kind", ["flat", "hnsw"])
@pytest.mark.parametrize(("where", "keep"), WHERES, ids=[str(where) for where, _ in WHERES])
def test_where_filters_and_still_fills_k(maker: Any, store: Store, kind: str, where: dict[str, Any], keep: Any) -> None:
    made = maker.make_release(store, maker.some_photos(150), index=IndexConfig(kind=kind, target_recall=1.0))
    release = open_release(store.url)
    for item_id in ("sku-000", "sku-077"):
        expected = maker.brute_force(made, "cosine", made.means(item_id), 10, left_out=[item_id], keep=keep)
        maker.check(release.similar(item_id, k=10, where=where), expected)
        maker.check(release.similar(item_id, k=10, where=where), expected)  # the remembered filter


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ({"colour": "red"}, r"no attribute 'colour'.*category, price, stock"),
        ({"uri": "x"}, "no attribute 'uri'"),
        ({"category": 3}, "category.*string.*compared with 3"),
        ({"stock": ["many"]}, "stock.*int64"),
        ({"price": {"from": 3}}, "min.*max"),
        ({"price": {}}, "min.*max"),
        ({"category": None}, "never matches"),
        ({"price": float("nan")}, "never matches"),
    ],
)
def test_a_where_that_cannot_be_is_an_error(maker: Any, store: Store, where: dict[str, Any], text: str) -> None:
    maker.make_release(store, maker.some_photos(10))
    with pytest.raises(ConfigError, match=text):
        open_release(store.url).similar("sku-001", where=where)


def test_an_item_fits_by_its_first_photo_whole(maker: Any, store: Store) -> None:
    photos = maker.some_photos(3, most=1)
    second = replace(photos[1], uri="s3://photos/1/b.jpg", view=1, category="Other")
    photos[1] = replace(photos[1], category="First")
    maker.make_release(store, [*photos, second])
    release = open_release(store.url)
    assert [near.item_id for near in release.similar("sku-000", where={"category": "First"})] == ["sku-001"]
    assert release.similar("sku-000", where={"category": "Other"}) == []
    assert release.attributes("sku-001")["category"] == "First"


def test_attributes_come_along_with_nulls_as_none(maker: Any, store: Store) -> None:
    photos = maker.some_photos(4, most=1)
    photos[2] = replace(photos[2], category=None, price=2.5, stock=7)
    maker.make_release(store, photos)
    near = {found.item_id: found for found in open_release(store.url).similar("sku-000")}
    assert near["sku-002"].attributes == {"category": None, "price": 2.5, "stock": 7}


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_ties_go_to_the_lower_item_id_even_beyond_the_first_rows(maker: Any, store: Store, metric: str) -> None:
    same = np.arange(1, DIM + 1, dtype=np.float32)
    photos = [maker.Photo(f"sku-{n:03d}", f"u/{n}", 0, same) for n in range(200)]
    maker.make_release(store, photos, index=IndexConfig(metric=metric))
    answer = open_release(store.url).similar("sku-100", k=5)
    assert [near.item_id for near in answer] == [f"sku-{n:03d}" for n in range(5)]
    assert len({near.score for near in answer}) == 1


def test_item_ids_sort_by_code_point_and_any_text_is_a_key(maker: Any, store: Store) -> None:
    names = ["Ä", "z", "a b/c", "", "10", "9", "😀", "\uffff"]
    maker.make_release(
        store, [maker.Photo(name, f"u/{n}", 0, np.ones(DIM, np.float32)) for n, name in enumerate(names)]
    )
    release = open_release(store.url)
    assert release.item_ids() == sorted(names)
    for name in names:
        assert name in release
        assert [near.item_id for near in release.similar(name)] == sorted(set(names) - {name})
    assert "zz" not in release


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_search_by_vectors(maker: Any, store: Store, metric: str) -> None:
    made = maker.make_release(store, maker.some_photos(80), index=IndexConfig(metric=metric))
    release = open_release(store.url)
    vectors = np.random.default_rng(5).normal(size=(7, DIM)) * 3
    answers = release.search(vectors, k=6, where={"category": ["Shoes", "Hats"]})
    assert len(answers) == 7
    for vector, answer in zip(vectors.astype(np.float32).astype(np.float64), answers, strict=True):
        keep = lambda p: p.category in ("Shoes", "Hats")  # noqa: E731
        maker.check(answer, maker.brute_force(made, metric, vector[None], 6, keep=keep))
    assert release.search(vectors[0], k=6) == release.search(vectors[:1], k=6)
    assert release.search(np.empty((0, DIM))) == []
    # A photo's own latents find its own item: nothing is left out of a search by vector.
    photo = made.photos[11]
    assert release.search(photo.mean, k=1)[0][0].item_id == photo.item_id
    for wrong in (np.ones((2, DIM + 1)), np.full((1, DIM), np.nan), np.ones((1, 1, DIM))):
        with pytest.raises(ConfigError):
            release.search(wrong)


def test_rank_fusion_by_hand(maker: Any, store: Store) -> None:
    made = maker.make_release(store, maker.some_photos(60))
    release = open_release(store.url)
    basket, weights = ["sku-003", "sku-041", "sku-017"], [1.0, 3.0, 0.5]
    sums: dict[str, float] = {}
    for item_id, weight in zip(basket, weights, strict=True):
        ranked = maker.brute_force(made, "cosine", made.means(item_id), 100, left_out=basket)
        for rank, (other, _) in enumerate(ranked, start=1):
            sums[other] = sums.get(other, 0.0) + weight / (5 + rank)
    expected = sorted(sums.items(), key=lambda pair: (-pair[1], pair[0]))
    maker.check(release.similar_to_many(basket, k=12, weights=weights), expected[:12])
    maker.check(release.similar_to_many(basket, k=500, weights=weights), expected)
    assert release.similar_to_many(["sku-003"], k=4, fusion="rrf")[0].score == pytest.approx(1 / 6)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_min_fusion_takes_the_nearest_of_the_basket(maker: Any, store: Store, metric: str) -> None:
    made = maker.make_release(store, maker.some_photos(60), index=IndexConfig(metric=metric))
    basket = ["sku-003", "sku-041"]
    every = np.concatenate([made.means(item_id) for item_id in basket])
    expected = maker.brute_force(made, metric, every, 9, left_out=basket)
    maker.check(open_release(store.url).similar_to_many(basket, k=9, fusion="min"), expected)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_soft_minimum_by_hand(maker: Any, store: Store, metric: str) -> None:
    made = maker.make_release(store, maker.some_photos(60), index=IndexConfig(metric=metric))
    release = open_release(store.url)
    basket, weights, k = ["sku-003", "sku-041", "sku-017"], [1.0, 3.0, 0.5], 12
    sums: dict[str, float] = {}
    for item_id, weight in zip(basket, weights, strict=True):
        ranked = maker.brute_force(made, metric, made.means(item_id), 100, left_out=basket)  # all others
        first, temperature = ranked[0][1], ranked[0][1] - ranked[k - 1][1]
        for other, score in ranked:
            sums[other] = sums.get(other, 0.0) + weight * math.exp((score - first) / temperature) / sum(weights)
    expected = sorted(((other, math.log(own)) for other, own in sums.items()), key=lambda pair: (-pair[1], pair[0]))
    maker.check(release.similar_to_many(basket, k=k, fusion="soft_min", weights=weights), expected[:k])
    alone = release.similar_to_many(["sku-003"], k=4, fusion="soft_min")
    assert [near.item_id for near in alone] == [near.item_id for near in release.similar("sku-003", k=4)]
    assert (alone[0].score, alone[-1].score) == pytest.approx((0.0, -1.0))
    assert release.similar_to_many(basket, fusion="soft_min", where={"price": {"min": 1e9}}) == []


def test_a_soft_minimum_asks_each_item_by_its_own_measure(maker: Any, store: Store) -> None:
    """Neighbours of a dense taste are all nearer than any of a sparse one; `min` offers the dense one alone."""
    rng = np.random.default_rng(0)
    tastes = {"dense": (np.eye(DIM)[0] * 9, 0.02), "sparse": (np.eye(DIM)[1] * 9, 1.0)}
    photos = [
        maker.Photo(f"{name}-{n:02d}", f"u/{name}{n}", 0, np.float32(centre + rng.normal(0, spread, DIM)), name)
        for name, (centre, spread) in tastes.items()
        for n in range(40)
    ]
    maker.make_release(store, photos, index=IndexConfig(metric="l2"))
    release, basket = open_release(store.url), ["dense-00", "sparse-00"]

    def tastes_of(fusion: str) -> list[int]:
        names = [near.item_id.partition("-")[0] for near in release.similar_to_many(basket, k=20, fusion=fusion)]
        return [names.count(name) for name in tastes]

    assert tastes_of("min") == [20, 0], "negative control"
    assert min(tastes_of("soft_min")) >= 5


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_barycentre_weighs_items_not_photos(maker: Any, store: Store, metric: str) -> None:
    made = maker.make_release(store, maker.some_photos(60), index=IndexConfig(metric=metric))
    basket, weights = ["sku-003", "sku-041", "sku-017"], [2.0, 1.0, 4.0]
    middles = []
    for item_id in basket:
        means = made.means(item_id)
        middles.append((means if metric == "l2" else means / np.linalg.norm(means, axis=1, keepdims=True)).mean(axis=0))
    centre = np.average(middles, axis=0, weights=weights)[None]
    expected = maker.brute_force(made, metric, centre, 9, left_out=basket)
    answer = open_release(store.url).similar_to_many(basket, k=9, fusion="barycentre", weights=weights)
    maker.check(answer, expected)


def test_a_basket_that_cannot_be_is_an_error(maker: Any, store: Store) -> None:
    maker.make_release(store, maker.some_photos(10))
    release = open_release(store.url)
    for wrong in (
        {"item_ids": []},
        {"item_ids": "sku-001"},
        {"item_ids": ["sku-001"], "fusion": "mean"},
        {"item_ids": ["sku-001"], "weights": [1.0, 2.0]},
        {"item_ids": ["sku-001"], "weights": [0.0]},
        {"item_ids": ["sku-001"], "weights": [1.0], "fusion": "min"},
        {"item_ids": ["sku-001"], "k": 0},
    ):
        with pytest.raises(ConfigError):
            release.similar_to_many(**wrong)
    with pytest.raises(UnknownItem, match="sku-999"):
        release.similar_to_many(["sku-001", "sku-999"])


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "3"])
def test_k_must_be_a_whole_number(maker: Any, store: Store, k: Any) -> None:
    maker.make_release(store, maker.some_photos(5))
    release = open_release(store.url)
    for ask in (lambda: release.similar("sku-001", k=k), lambda: release.search(np.ones(DIM), k=k)):
        with pytest.raises(ConfigError, match="k is"):
            ask()


def test_latents_are_those_of_the_parts_in_the_order_asked(maker: Any, store: Store) -> None:
    made = maker.make_release(store, maker.some_photos(130))
    release = open_release(store.url)
    asked = ["sku-100", "sku-002", "sku-050", "sku-002"]
    table = release.latents(asked)
    photos = [photo for item_id in asked for photo in made.photos if photo.item_id == item_id]
    assert table.column_names == ["item_id", "uri", "view", "mean"]
    assert table["uri"].to_pylist() == [photo.uri for photo in photos]
    assert table["view"].to_pylist() == [photo.view for photo in photos]
    np.testing.assert_array_equal(np.stack(table["mean"].to_pylist()).astype(np.float32), [p.mean for p in photos])
    empty = release.latents([])
    assert (empty.num_rows, empty.schema.names) == (0, table.schema.names)
    with pytest.raises(UnknownItem):
        release.latents(["sku-100", "nobody"])


def test_latents_match_search(maker: Any, store: Store) -> None:
    made = maker.make_release(store, maker.some_photos(30, most=1))
    release = open_release(store.url)
    vectors = np.stack(release.latents(["sku-004"])["mean"].to_pylist())
    answer = release.search(vectors, k=30)[0]
    assert answer[0].item_id == "sku-004"
    maker.check(answer[1:], maker.brute_force(made, "cosine", made.means("sku-004"), 29, left_out=["sku-004"]))


def test_a_release_without_photos(maker: Any, store: Store) -> None:
    maker.make_release(store, [], refused=[("sku-1", "u", "fetch", "missing")])
    release = open_release(store.url)
    assert (len(release), release.item_ids()) == (0, [])
    assert release.search(np.ones((2, DIM)), k=3) == [[], []]
    with pytest.raises(UnknownItem, match="quarantined"):
        release.similar("sku-1")


def test_one_item_has_no_neighbours(maker: Any, store: Store) -> None:
    maker.make_release(store, maker.some_photos(1))
    assert open_release(store.url).similar("sku-000") == []

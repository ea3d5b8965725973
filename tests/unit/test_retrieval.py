"""Retrieval measures against pytorch-metric-learning, scikit-learn and brute force, with the known wrong versions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.metrics import ndcg_score

from pipeline.errors import ConfigError, InputError
from pipeline.evaluation.retrieval import (
    hit_rate,
    interval,
    map_at_r,
    ndcg_at_k,
    precision_at_k,
    r_precision,
    retrieve,
)


def kinds(count: int, *, seed: int, classes: int = 7, dim: int = 12) -> tuple[np.ndarray, np.ndarray]:
    centres = np.random.default_rng(0).normal(size=(classes, dim))
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, size=count, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    return (centres[labels] * 0.8 + rng.normal(size=(count, dim))).astype(np.float32), labels


def cosines(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    left, right = queries.astype(np.float64), gallery.astype(np.float64)
    left, right = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (left, right))
    return np.asarray(left @ right.T)


def test_map_at_r_r_precision_and_first_hits_are_those_of_pytorch_metric_learning() -> None:
    gallery, labels = kinds(400, seed=1)
    oracle = AccuracyCalculator(
        include=("mean_average_precision_at_r", "r_precision", "precision_at_1"),
        k="max_bin_count",
        device=torch.device("cpu"),
        knn_func=CustomKNN(CosineSimilarity()),
    )
    rows = np.arange(400)
    wanted = oracle.get_accuracy(
        torch.from_numpy(gallery), torch.from_numpy(labels), ref_includes_query=True
    )  # it is its own gallery
    found = retrieve(gallery, labels, gallery, labels, gallery_ids=rows, query_ids=rows, k=1)
    assert found.average_precision.mean() == pytest.approx(wanted["mean_average_precision_at_r"], abs=1e-6)
    assert found.r_precision.mean() == pytest.approx(wanted["r_precision"], abs=1e-6)
    assert found.precision.mean() == pytest.approx(wanted["precision_at_1"], abs=1e-9)
    # Negative control: the query itself in the gallery.
    wrong = retrieve(gallery, labels, gallery, labels, k=1)
    assert wrong.precision.mean() == 1.0
    assert wrong.average_precision.mean() > found.average_precision.mean() + 0.01


def test_graded_ndcg_is_that_of_scikit_learn_and_linear() -> None:
    rng = np.random.default_rng(2)
    gallery, category = kinds(300, seed=2)
    queries, asked = kinds(50, seed=3)
    colour, style = rng.integers(3, size=(2, 300)), rng.integers(2, size=(2, 300))
    graded = np.stack([category, colour[0], style[0]], axis=1)
    wanted_labels = np.stack([asked, colour[1, :50], style[1, :50]], axis=1)
    same = graded[None] == wanted_labels[:, None]
    gains = np.cumprod(same, axis=2).sum(axis=2)  # the same style of another category is worth nothing
    assert set(gains.ravel()) == {0, 1, 2, 3}
    found = retrieve(gallery, graded, queries, wanted_labels)
    near = cosines(queries, gallery)
    assert found.ndcg.mean() == pytest.approx(ndcg_score(gains, near, k=10), abs=1e-9)
    # Negative control: exponential gains are another measure.
    assert abs(found.ndcg.mean() - ndcg_score(2**gains - 1, near, k=10)) > 1e-3
    # Negative control: levels that count each for itself, without those before them.
    assert abs(found.ndcg.mean() - ndcg_score(same.sum(axis=2), near, k=10)) > 1e-3
    order = np.argsort(-near, axis=1)
    fits = np.take_along_axis(gains > 0, order, axis=1)
    np.testing.assert_allclose(found.precision, precision_at_k(fits, 10))
    np.testing.assert_allclose(found.hit, hit_rate(fits, 10))
    assert found.hit.mean() > found.precision.mean() > found.average_precision.mean(), "three names, three measures"


def brute_force(gallery: np.ndarray, kind: np.ndarray, ids: list[str], query: int, k: int) -> tuple[float, ...]:
    near = cosines(gallery[query : query + 1], gallery)[0]
    order = [row for row in np.argsort(-near) if ids[row] != ids[query]]
    fits = [bool(kind[row] == kind[query]) for row in order]
    depth = sum(fits)
    hits = [sum(fits[: rank + 1]) / (rank + 1) for rank in range(depth) if fits[rank]]
    best = sum(1 / math.log2(rank + 2) for rank in range(min(k, depth)))
    return (
        sum(fits[:k]) / min(k, len(order)),
        sum(hits) / depth,
        sum(1 / math.log2(rank + 2) for rank in range(min(k, len(order))) if fits[rank]) / best,
    )


@pytest.mark.parametrize(("count", "k"), [(90, 10), (8, 10)])
def test_all_photos_of_the_querys_item_are_left_out(count: int, k: int) -> None:
    gallery, labels = kinds(count, seed=4, classes=2)
    ids = [f"i{row // 2:03d}" for row in range(count)]
    gallery[1::2] = gallery[::2] + np.float32(1e-4)  # the second photo of each item is nearly its first
    labels[1::2] = labels[::2]
    found = retrieve(gallery, labels, gallery, labels, gallery_ids=ids, query_ids=ids, k=k)
    wanted = [brute_force(gallery, labels, ids, int(row), k) for row in found.rows]
    np.testing.assert_allclose(np.stack([found.precision, found.average_precision, found.ndcg], axis=1), wanted)
    if count < 10:  # fewer items than are to be shown: those there are
        return
    # Negative control: leaving out the first rank instead of the id keeps the item's other photo.
    by_rank = retrieve(gallery, labels, gallery, labels, gallery_ids=range(count), query_ids=range(count), k=k)
    assert by_rank.average_precision.mean() > found.average_precision.mean() + 0.01


def test_negative_control_fewer_ranks_than_fitting_items() -> None:
    relevant = np.array([[True, False, True, True, False, False]])
    assert map_at_r(relevant, np.array([3]))[0] == pytest.approx((1 + 2 / 3) / 3)
    assert map_at_r(relevant, np.array([4]))[0] == pytest.approx((1 + 2 / 3 + 3 / 4) / 4)
    assert r_precision(relevant, np.array([3]))[0] == pytest.approx(2 / 3)
    # k = 2 of R = 3 would say 1/3 or 1/2, by what it is divided by.
    with pytest.raises(InputError, match=r"3\.\.3 fitting items a query and 2 ranks"):
        map_at_r(relevant[:, :2], np.array([3]))
    with pytest.raises(InputError, match="leave out queries without any"):
        r_precision(relevant, np.array([0]))


def test_negative_control_ties_in_the_tables_order() -> None:
    """All latents equal: nothing is told apart, whatever order the table is in."""
    labels = np.repeat(np.arange(4), 250)  # sorted by category
    gallery = np.ones((1000, 8), np.float32)
    rows = np.arange(1000)
    asked = rows[:250]  # queries of the first category
    values = [
        retrieve(
            gallery, labels, gallery[asked], labels[asked], gallery_ids=rows, query_ids=asked, seed=seed
        ).precision.mean()
        for seed in range(8)
    ]
    assert np.mean(values) == pytest.approx(0.25, abs=0.1)
    by_table = np.argsort(-cosines(gallery[asked], gallery).round(6), axis=1, kind="stable")
    assert precision_at_k(labels[by_table] == 0, 10).mean() == 1.0, "the wrong way must look perfect"


def test_chance_is_the_share_of_the_kind() -> None:
    rng = np.random.default_rng(5)
    gallery, labels = rng.normal(size=(3000, 16)), rng.choice(["a", "b"], p=[0.8, 0.2], size=3000)
    found = retrieve(gallery, labels, gallery[:500], labels[:500], gallery_ids=range(3000), query_ids=range(500))
    share = np.mean(labels == "a")
    wanted = np.where(labels[:500] == "a", share, 1 - share)
    assert found.precision.mean() == pytest.approx(wanted.mean(), abs=0.02)


def test_queries_that_nothing_fits_are_left_out() -> None:
    gallery = np.eye(4, dtype=np.float32)
    found = retrieve(
        gallery, ["a", "a", "b", "c"], gallery, ["a", "d", "b", "c"], gallery_ids=range(4), query_ids=range(4)
    )
    assert found.rows.tolist() == [0]
    with pytest.raises(InputError, match="nothing in the gallery is of any query's kind"):
        retrieve(gallery, list("abcd"), gallery, list("abcd"), gallery_ids=range(4), query_ids=range(4))


def test_the_answer_repeats_and_does_not_depend_on_the_order_of_queries() -> None:
    gallery, labels = kinds(500, seed=6)
    first = retrieve(gallery, labels, gallery[:60], labels[:60])
    again = retrieve(gallery, labels, gallery[:60], labels[:60])
    backwards = retrieve(gallery, labels, gallery[:60][::-1], labels[:60][::-1])
    for name in ("precision", "average_precision", "ndcg"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
        np.testing.assert_allclose(getattr(first, name), getattr(backwards, name)[::-1])


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    inside = 0
    for trial in range(200):
        low, high = interval(rng.random(80) < 0.3, draws=300, seed=trial)
        inside += low <= 0.3 <= high
    assert 0.88 <= inside / 200 <= 0.99
    values = rng.normal(size=400)
    low, high = interval(values)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    assert interval(values) == (low, high)


def test_what_does_not_fit_is_refused() -> None:
    rows = np.eye(3, dtype=np.float32)
    with pytest.raises(InputError, match="do not fit"):
        retrieve(rows, [0, 1], rows, [0, 1, 2])
    with pytest.raises(InputError, match="do not fit"):
        retrieve(rows, [0, 1, 2], rows, [[0, 1], [1, 1], [2, 1]])
    with pytest.raises(InputError, match="one side only"):
        retrieve(rows, [0, 1, 2], rows, [0, 1, 2], gallery_ids=[0, 1, 2])
    with pytest.raises(InputError, match="ids do not fit"):
        retrieve(rows, [0, 1, 2], rows, [0, 1, 2], gallery_ids=[0, 1], query_ids=[0, 1, 2])
    with pytest.raises(InputError, match="no matrix"):
        retrieve(rows[0], [0], rows, [0, 1, 2])
    with pytest.raises(ConfigError, match="k is 0"):
        retrieve(rows, [0, 1, 2], rows, [0, 1, 2], k=0)
    with pytest.raises(InputError, match="1 ranks are given and the first 10"):
        ndcg_at_k(np.ones((1, 1), np.int64), np.ones((1, 10), np.int64), 10)
    with pytest.raises(InputError, match="no list"):
        interval([])

"""What nightly measures compute with: intervals, two-sample tests, hubs, groups and views, against slow oracles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial.distance
import scipy.stats
from sklearn.linear_model import LogisticRegression

from pipeline.evaluation.nightly.code_use import perplexity, use_difference
from pipeline.evaluation.nightly.hubness import occurrences, robin_hood, skew
from pipeline.evaluation.nightly.intervals import auc_interval, quantile_interval, wilson
from pipeline.evaluation.nightly.lidar import lidar_rank
from pipeline.evaluation.nightly.near_duplicates import largest_group, usual_distance
from pipeline.evaluation.nightly.sampling import by_kind, hashes, topped_up
from pipeline.evaluation.nightly.two_samples import classifier_auc, logistic_weights, mmd
from pipeline.images.reshot import Reshot, drawn_reshot, reshot

DICE = np.random.default_rng(7)


@pytest.mark.parametrize(("hits", "asked"), [(0, 10), (3, 10), (10, 10), (487, 1000)])
def test_wilson_is_scipys(hits: int, asked: int) -> None:
    oracle = scipy.stats.binomtest(hits, asked).proportion_ci(0.95, method="wilson")
    assert wilson(hits, asked) == pytest.approx((oracle.low, oracle.high), abs=1e-12)
    low, high = wilson(hits, asked)
    assert low <= hits / asked <= high


def test_quantiles_hold_what_they_are_of() -> None:
    """Over many draws the interval holds the true quantile at least as often as it says, and not always."""
    dice = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        value, low, high = quantile_interval(dice.normal(size=200), 0.9)
        assert low <= value <= high
        held += low <= scipy.stats.norm.ppf(0.9) <= high
    assert 0.93 <= held / 400 < 1
    values = dice.normal(size=101)
    assert quantile_interval(values, 0.5)[0] == np.median(values)
    assert quantile_interval(np.array([3.0]), 0.99) == (3.0, 3.0, 3.0)


def test_the_area_under_the_curve_is_a_count_of_pairs() -> None:
    lower, upper = DICE.integers(0, 9, 40).astype(float), DICE.integers(2, 11, 30).astype(float)
    wins = (upper[:, None] > lower) + 0.5 * (upper[:, None] == lower)
    value, low, high = auc_interval(lower, upper)
    assert value == pytest.approx(wins.mean())
    variance = wins.mean(axis=1).var(ddof=1) / 30 + wins.mean(axis=0).var(ddof=1) / 40
    assert high - low == pytest.approx(2 * 1.959964 * math.sqrt(variance), rel=1e-5)


def test_mmd_is_a_sum_over_pairs() -> None:
    one, other = DICE.normal(size=(13, 3)), DICE.normal(1.0, size=(9, 3))
    pooled = np.concatenate([one, other])
    usual = np.median(scipy.spatial.distance.pdist(pooled) ** 2)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return math.exp(-float(np.sum((a - b) ** 2)) / (2 * usual))

    within = [
        sum(kernel(a, b) for i, a in enumerate(side) for j, b in enumerate(side) if i != j)
        / len(side)
        / (len(side) - 1)
        for side in (one, other)
    ]
    across = sum(kernel(a, b) for a in one for b in other) / len(one) / len(other)
    found = mmd(one, other)
    assert found.value == pytest.approx(sum(within) - 2 * across)
    assert found.p < 0.05
    biased = sum(within) - 2 * across + 1 / len(one) + 1 / len(other)
    assert found.value != pytest.approx(biased), "negative control: each with itself would count"


def test_what_does_not_differ_is_not_told() -> None:
    ps = [mmd(*np.random.default_rng(seed).normal(size=(2, 40, 4)), seed=seed).p for seed in range(8)]
    assert 0.15 < np.mean(ps) < 0.85
    assert min(ps) > 0.002
    one, other = np.random.default_rng(3).normal(size=(2, 300, 4))
    low, high = classifier_auc(one, other)[1:3]
    assert low < 0.5 < high
    other[:, 0] += 1.5
    low, high, scores = classifier_auc(one, other)[1:]
    assert low > 0.8
    assert low < scipy.stats.norm.cdf(1.5 / math.sqrt(2)) < high
    assert np.corrcoef(scores, other[:, 0])[0, 1] > 0.9


def test_changed_photos_are_compared_as_pairs() -> None:
    before = DICE.normal(size=(200, 6))
    after = before + 0.05 * DICE.normal(size=before.shape)
    low, high = classifier_auc(before, after, paired=True)[1:3]
    assert low < 0.5 < high
    darker = after - [0.3, 0, 0, 0, 0, 0]
    assert mmd(before, darker, paired=True).p < 0.01
    assert mmd(before, darker).p > 0.01, "negative control: the pairs' own spread hides it"
    assert mmd(before, after, paired=True).p > 0.02


def test_the_logistic_regression_is_scikit_learns() -> None:
    rows, truth = DICE.normal(size=(120, 5)), (DICE.random(120) < 0.4).astype(float)
    oracle = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000).fit(rows, truth)
    found = logistic_weights(rows, truth)
    np.testing.assert_allclose(found, np.append(oracle.coef_[0], oracle.intercept_), atol=1e-3)


def test_lidar_counts_what_views_do_not_differ_in() -> None:
    views = DICE.normal(size=(400, 1, 6)) * [3, 3, 3, 0, 0, 0] + 0.3 * DICE.normal(size=(400, 2, 6))
    found = lidar_rank(views)
    means = views.mean(axis=1)
    between = sum(np.outer(m - means.mean(axis=0), m - means.mean(axis=0)) for m in means) / 399
    within = sum(np.outer(v - m, v - m) for photo, m in zip(views, means, strict=True) for v in photo) / 400
    within += 1e-4 * np.trace(within) / 6 * np.eye(6)
    root = np.linalg.inv(scipy.linalg.sqrtm(within))
    shares = np.linalg.eigvalsh(root @ between @ root)
    shares = shares / shares.sum() + 1e-7
    assert found == pytest.approx(float(np.exp(-np.sum(shares * np.log(shares)))), rel=1e-6)
    assert 2.9 < found < 3.3
    assert lidar_rank(7 * views) == pytest.approx(found), "the unit of latents says nothing"
    noise = DICE.normal(size=(400, 2, 6))
    assert lidar_rank(noise) > 5.5, "negative control: where views say nothing of their photo, all directions are alike"
    assert lidar_rank(np.ones((5, 2, 3))) == 0.0


def test_hubs_are_counted_and_compared() -> None:
    near = np.array([[1, 2], [2, 0], [1, 0], [1, 2], [1, 2]])
    counts = occurrences(near)
    assert counts.tolist() == [sum(place in row for row in near.tolist()) for place in range(5)]
    assert skew(counts) == pytest.approx(scipy.stats.skew(counts))
    assert robin_hood(counts) == pytest.approx(sum(max(0, count - 2) for count in counts.tolist()) / 10)
    even = occurrences((np.arange(6)[:, None] + [1, 2]) % 6)
    assert (skew(even), robin_hood(even)) == (0.0, 0.0)


def test_the_largest_group_is_what_pairs_join() -> None:
    vectors = DICE.normal(size=(60, 4))
    vectors[10:24] = vectors[10] + 1e-4 * DICE.normal(size=(14, 4))  # one placeholder, saved anew each time
    vectors[40:43] = vectors[40]
    near = np.argsort(np.linalg.norm(vectors[:, None] - vectors, axis=2), axis=1)[:, 1:4]
    usual = usual_distance(vectors, seed=0)
    assert usual == pytest.approx(np.median(scipy.spatial.distance.pdist(vectors)), rel=0.03)
    assert largest_group(vectors, near, 0.01 * usual).tolist() == list(range(10, 24))
    assert len(largest_group(vectors, near, 1e-12)) == 3
    apart = DICE.normal(size=(60, 4))
    assert len(largest_group(apart, near, 0.01 * usual)) == 0, "negative control: a random space"


def test_codes_are_compared_by_their_use() -> None:
    assert perplexity(np.array([[0, 1], [2, 3]], np.int32)) == pytest.approx(4)
    assert perplexity(np.zeros((5, 2), np.int32)) == 1
    one, other = (DICE.integers(0, 8, (60, 4), np.int32) for _ in range(2))
    levels = {"top": np.array([0]), "bottom": np.array([1, 2, 3])}
    value, p = use_difference(one, other, levels, seed=0)
    shares = [
        [np.bincount(side[:, places].ravel(), minlength=8) for side in (one, other)] for places in levels.values()
    ]
    oracle = np.mean([scipy.spatial.distance.jensenshannon(*pair, base=2) ** 2 for pair in shares])
    assert value == pytest.approx(oracle)
    assert p > 0.02
    assert use_difference(one, np.minimum(other, 2), levels, seed=0)[1] < 0.01
    assert use_difference(one, other + 8, levels, seed=0)[0] == pytest.approx(1)


def test_the_same_items_are_asked_each_night() -> None:
    ids = [f"item-{number}" for number in range(2000)]
    order = hashes(ids, 3)
    assert hashes(ids[5:6], 3)[0] == order[5]
    assert not np.array_equal(hashes(ids, 4), order)
    lowest = np.argsort(order)[:200]
    assert 600 < lowest.mean() < 1400, "low hashes are no early items"


def test_rare_categories_are_asked_too() -> None:
    labels = np.array([0] * 90 + [1] * 8 + [-1] * 2)
    order = np.arange(100)
    asked = topped_up(order[:20], order, labels, each=15)
    assert asked[:20].tolist() == list(range(20))
    assert sorted(asked[20:].tolist()) == list(range(90, 98))
    assert [(name, len(rows)) for name, rows in by_kind(labels, ["x", "y"], asked)] == [("x", 20)]
    assert topped_up(order[:20], order, None, each=15).tolist() == list(range(20))


def test_a_photo_is_taken_again_as_told() -> None:
    photo = np.zeros((40, 40, 3), np.uint8)
    photo[10:14, 24:28] = 200
    still = Reshot(1.0, 0.0, 0.0, 0.0, (1.0, 1.0, 1.0), 95)
    assert np.abs(reshot(photo, still).astype(int) - photo).mean() < 2

    def middle(pixels: np.ndarray) -> np.ndarray:
        bright = pixels.astype(float).sum(axis=2)
        return np.array([(bright * grid).sum() / bright.sum() for grid in np.mgrid[0:40, 0:40]])

    how = Reshot(0.9, 0.05, -0.05, math.radians(5), (1.0, 1.0, 1.0), 95)
    # Where the mark stood as seen from the shown middle, turned back and enlarged.
    offset = np.array([11.5 + 0.5 - 20 - -0.05 * 40, 25.5 + 0.5 - 20 - 0.05 * 40])
    turn = how.turn
    down = (math.cos(turn) * offset[0] - math.sin(turn) * offset[1]) / 0.9 + 19.5
    right = (math.sin(turn) * offset[0] + math.cos(turn) * offset[1]) / 0.9 + 19.5
    np.testing.assert_allclose(middle(reshot(photo, how)), [down, right], atol=0.35)
    assert drawn_reshot(5, seed=1, view=0) == drawn_reshot(5, seed=1, view=0) != drawn_reshot(5, seed=1, view=1)
    dim = Reshot(1.0, 0.0, 0.0, 0.0, (0.5, 1.0, 1.0), 95)
    assert reshot(np.full((16, 16, 3), 100, np.uint8), dim)[8, 8].tolist() == pytest.approx([50, 100, 100], abs=3)

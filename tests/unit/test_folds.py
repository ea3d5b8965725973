"""Folds by group: properties of GroupKFold, measures and bootstrap by plain loops, and leaks that must show."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.model_selection import GroupKFold
from sklearn.neighbors import KNeighborsClassifier

from pipeline.errors import ConfigError, InputError
from pipeline.evaluation.folds import ask_fold, deal_folds, group_difference, group_mean, over_seeds
from pipeline.evaluation.views_found import ask_items, ask_views


def shop(photos: int = 400, *, own: float = 0.0) -> tuple[np.ndarray, list[str], list[str]]:
    """Vectors that know the category a little and, by `own`, who took the photo; a contributor favours a category."""
    rng = np.random.default_rng(3)
    makers = rng.integers(0, 40, photos)
    favoured = rng.integers(0, 5, 40)
    labels = np.where(rng.random(photos) < 0.7, favoured[makers], rng.integers(0, 5, photos))
    vectors = rng.normal(size=(5, 16))[labels] + 2.0 * rng.normal(size=(photos, 16))
    vectors = np.concatenate([vectors, own * rng.normal(size=(40, 16))[makers]], axis=1)
    return vectors.astype(np.float32), [f"kind {label}" for label in labels], [f"maker {maker}" for maker in makers]


def test_folds_keep_groups_together_and_are_as_even_as_scikit_learns() -> None:
    _, _, groups = shop(997)
    folds = deal_folds(groups, 5, seed=4)
    assert {len(set(folds[np.asarray(groups) == name].tolist())) for name in set(groups)} == {1}
    mine = np.bincount(folds, minlength=5)
    theirs = np.array([len(asked) for _, asked in GroupKFold(5).split(groups, groups=groups)])
    assert mine.sum() == 997
    assert mine.max() - mine.min() <= theirs.max() - theirs.min() + 1
    order = np.random.default_rng(0).permutation(997)
    assert np.array_equal(deal_folds([groups[at] for at in order], 5, seed=4), folds[order])
    assert not np.array_equal(deal_folds(groups, 5, seed=5), folds)


def test_fold_measures_are_those_of_other_libraries() -> None:
    vectors, labels, groups = shop()
    asked = deal_folds(groups, 5) == 2
    found = ask_fold(vectors, labels, groups, asked)
    assert np.array_equal(np.isnan(found["knn"]), ~asked)
    truth = np.asarray(labels)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    # Ties to the nearest: of ten votes the first of the most frequent, nearest first.
    near = KNeighborsClassifier(10, metric="cosine", algorithm="brute").fit(unit[~asked], truth[~asked])
    votes = truth[~asked][near.kneighbors(unit[asked], return_distance=False)]
    elected = [max(row, key=row.tolist().count) for row in votes]
    assert np.array_equal(found["knn"][asked], np.asarray(elected) == truth[asked])
    oracle = AccuracyCalculator(
        include=("mean_average_precision_at_r",),
        k="max_bin_count",
        device=torch.device("cpu"),
        knn_func=CustomKNN(CosineSimilarity()),
    )
    numbers = np.unique(truth, return_inverse=True)[1]
    sides = [torch.from_numpy(each) for each in (vectors[asked], numbers[asked], vectors[~asked], numbers[~asked])]
    wanted = oracle.get_accuracy(*sides)["mean_average_precision_at_r"]
    assert np.nanmean(found["map_at_r"]) == pytest.approx(wanted, abs=1e-6)
    assert np.nanmean(found["precision_at_10"]) == pytest.approx(np.mean(votes == truth[asked][:, None]), abs=1e-9)


def test_a_contributor_on_both_sides_is_refused_and_would_have_answered() -> None:
    vectors, labels, groups = shop(own=3.0)
    every = [ask_fold(vectors, labels, groups, deal_folds(groups) == fold) for fold in range(5)]
    apart = np.nansum([fold["knn"] for fold in every]) / len(labels)
    mixed = np.random.default_rng(0).integers(0, 5, len(labels)) == 0
    with pytest.raises(InputError, match=r"groups have photos on both sides, the first 'maker \d+'"):
        ask_fold(vectors, labels, groups, mixed)
    photos = [str(number) for number in range(len(labels))]
    leaked = [ask_fold(vectors, labels, photos, deal_folds(photos) == fold) for fold in range(5)]
    assert np.nansum([fold["knn"] for fold in leaked]) / len(labels) > apart + 0.15


def test_every_photo_is_asked_once_and_those_without_a_label_never() -> None:
    vectors, labels, groups = shop(200)
    some = [None if number % 10 == 0 else label for number, label in enumerate(labels)]
    folds = deal_folds(groups)
    asked = np.sum([~np.isnan(ask_fold(vectors, some, groups, folds == fold)["knn"]) for fold in range(5)], axis=0)
    assert asked.tolist() == [int(label is not None) for label in some]


def test_the_interval_is_that_of_a_plain_loop_over_groups() -> None:
    rng = np.random.default_rng(7)
    groups = np.asarray([f"g{number}" for number in rng.integers(0, 12, 300)])
    values = rng.random(300) + 0.5 * (np.unique(groups, return_inverse=True)[1] % 2)
    values[rng.random(300) < 0.2] = np.nan
    found = group_mean(values, groups.tolist(), seed=3)
    names, dice, means = np.unique(groups), np.random.default_rng(3), []
    for _ in range(1000):
        drawn = [values[groups == names[at]] for at in dice.integers(12, size=12)]
        means.append(np.nanmean(np.concatenate(drawn)))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    assert found.mean == pytest.approx(np.nanmean(values))
    assert (found.photos, found.groups) == (int((~np.isnan(values)).sum()), 12)
    # Negative control: photos drawn one by one look surer than groups are.
    alone = group_mean(values, [str(number) for number in range(300)], seed=3)
    assert alone.high - alone.low < 0.7 * (found.high - found.low)


def test_differences_are_of_the_same_photos() -> None:
    rng = np.random.default_rng(1)
    groups = [f"g{number}" for number in rng.integers(0, 20, 200)]
    hard = 3 * rng.random(200)
    first, second = hard + 0.1, hard + 0.01 * rng.random(200)
    gained = group_difference(first, second, groups)
    assert gained.low > 0.08
    assert group_mean(first, groups).low < group_mean(second, groups).high  # unpaired they are not told apart
    second[0] = np.nan
    with pytest.raises(InputError, match="200 and 199 asked photos are no pairs"):
        group_difference(first, second, groups)
    seeds = over_seeds([{"knn": np.array([1.0, np.nan])}, {"knn": np.array([0.0, np.nan])}])
    assert seeds["knn"][0] == 0.5
    assert np.isnan(seeds["knn"][1])


def test_what_cannot_be_dealt_or_asked_is_said() -> None:
    with pytest.raises(InputError, match=r"2 groups \('a', 'b'\) cannot be dealt into 5 folds"):
        deal_folds(["a", "b", "a"], 5)
    with pytest.raises(ConfigError, match="there are 1 folds; name at least 2"):
        deal_folds(["a", "b"], 1)
    with pytest.raises(InputError, match="1 groups were asked"):
        group_mean([1.0, np.nan], ["a", "b"])
    with pytest.raises(InputError, match="0 photos with a label are asked of 1"):
        ask_fold(np.eye(2), ["x", None], ["a", "b"], np.array([False, True]))


def test_items_and_views_are_found_again_by_a_space_that_knows_them() -> None:
    rng = np.random.default_rng(5)
    items = [f"i{number // 2}" for number in range(60)] + ["alone"]
    products = rng.normal(size=(31, 8))[[number // 2 for number in range(60)] + [30]]
    asked = np.zeros(61, np.bool_)
    asked[:20] = asked[60] = True
    found = ask_items(products + 0.05 * rng.normal(size=(61, 8)), items, asked)
    assert np.isnan(found[20:]).all()  # not asked, or without another photo
    assert found[:20].mean() == 1.0
    assert ask_items(rng.normal(size=(61, 8)), items, asked)[:20].mean() < 0.7
    photos = rng.normal(size=(61, 8))
    again = ask_views(photos, photos[asked] + 0.01 * rng.normal(size=(21, 8)), asked)
    assert again[asked].mean() == 1.0
    assert np.isnan(again[~asked]).all()
    assert ask_views(photos, np.roll(photos[asked], 1, axis=0), asked)[asked].mean() == 0.0

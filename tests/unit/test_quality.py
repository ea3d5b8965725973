"""The quality of a space: every number against another library, and what must not be mixed up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import ndcg_score
from sklearn.neighbors import KNeighborsClassifier

from pipeline.errors import InputError
from pipeline.evaluation import quality
from pipeline.evaluation.factors import FACTORS
from pipeline.evaluation.knn import TEMPERATURE
from pipeline.evaluation.probe import linear_probe, standardised
from pipeline.evaluation.quality import (
    LABEL_MEASURES,
    LabelledPhotos,
    encoder_quality,
    factor_photos,
    factor_quality,
    label_quality,
    paired_difference,
)
from pipeline.evaluation.rare import rare_recall
from pipeline.images import ImagesConfig
from pipeline.images.render import NUISANCES


def space(known: int = 240, asked: int = 90, dims: int = 6, spread: float = 0.9) -> tuple[np.ndarray, ...]:
    """Return latents, labels, groups of known photos, then latents and labels of asked ones: four noisy kinds."""
    rng = np.random.default_rng(7)
    kinds = np.array(["bag", "boot", "hat", "shirt"])
    centres = rng.normal(size=(4, dims))
    numbers = rng.choice(4, known + asked, p=[0.4, 0.3, 0.2, 0.1])
    vectors = (centres[numbers] + spread * rng.normal(size=(known + asked, dims))).astype(np.float32)
    labels = kinds[numbers]
    groups = np.array([f"item-{row // 3}" for row in range(known)])
    return vectors[:known], labels[:known], groups, vectors[known:], labels[known:]


def unit(vectors: np.ndarray) -> np.ndarray:
    wide = vectors.astype(np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True))


def test_neighbours_votes_are_scikit_learns() -> None:
    known, labels, groups, asked, truth = space()
    found = label_quality(known, labels, groups, asked, truth, seed=0)
    numbers = found.numbers()
    # Cosine distance 1 - cosine: weights exp(-distance / T) are exp(cosine / T) but for a factor.
    weighted = KNeighborsClassifier(
        20, metric="cosine", weights=lambda distance: np.exp(-np.asarray(distance) / TEMPERATURE)
    ).fit(known, labels)
    assert np.array_equal(found.values["knn_weighted"], weighted.predict(asked) == truth)
    plain = KNeighborsClassifier(10, metric="cosine").fit(known, labels)
    votes = np.sort(plain.predict_proba(asked), axis=1)
    clear = votes[:, -1] > votes[:, -2]  # theirs gives ties to the first name in the alphabet
    assert clear.sum() > 70
    assert np.array_equal(found.values["knn"][clear], (plain.predict(asked) == truth)[clear])
    assert numbers["knn"] == found.values["knn"].mean()
    # Negative controls: known and asked the other way round, and Euclidean distance, are other numbers.
    swapped = KNeighborsClassifier(10, metric="cosine").fit(asked, truth)
    assert swapped.score(known, labels) != pytest.approx(numbers["knn"], abs=1e-3)
    euclid = KNeighborsClassifier(10).fit(known, labels)
    assert not np.array_equal(found.values["knn"][clear], (euclid.predict(asked) == truth)[clear])


def test_map_at_r_and_ndcg_are_other_libraries() -> None:
    known, labels, groups, asked, truth = space()
    found = label_quality(known, labels, groups, asked, truth, seed=0).numbers()
    names, own = np.unique(labels, return_inverse=True)
    wanted = np.searchsorted(names, truth)
    oracle = AccuracyCalculator(include=("mean_average_precision_at_r",), k="max_bin_count")
    theirs = oracle.get_accuracy(
        torch.from_numpy(unit(asked)).float(), torch.from_numpy(wanted),
        torch.from_numpy(unit(known)).float(), torch.from_numpy(own), ref_includes_query=False,
    )  # fmt: skip
    assert found["map_at_r"] == pytest.approx(theirs["mean_average_precision_at_r"], abs=1e-5)
    near = unit(asked) @ unit(known).T
    relevant = (wanted[:, None] == own[None, :]).astype(float)
    assert found["ndcg_at_10"] == pytest.approx(ndcg_score(relevant, near, k=10), abs=1e-9)
    first = np.argsort(-near, axis=1)[:, :10]
    assert found["precision_at_10"] == pytest.approx(np.take_along_axis(relevant, first, axis=1).mean())


def test_the_probe_is_fitted_on_known_rows_and_chooses_by_their_groups() -> None:
    known, labels, groups, asked, truth = space()
    found = label_quality(known, labels, groups, asked, truth, seed=3)
    probe = linear_probe(known, labels, asked, truth, groups=groups, seed=3)
    assert np.array_equal(found.values["probe"], probe.correct)
    rows, others = standardised(known.astype(np.float64), asked.astype(np.float64))
    oracle = LogisticRegression(C=probe.c, max_iter=1000).fit(rows, labels)
    assert found.numbers()["probe"] == pytest.approx(oracle.score(others, truth), abs=0.012)


def test_groups_reach_the_choice_of_the_strength(monkeypatch: pytest.MonkeyPatch) -> None:
    known, labels, groups, asked, truth = space()
    seen = {}

    def spy(*args: object, **named: object) -> object:
        seen.update(named)
        return linear_probe(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(quality, "linear_probe", spy)
    monkeypatch.setattr(quality, "PROBED", 50)
    monkeypatch.setattr(quality, "PROBED_AT_LEAST", 20)
    label_quality(known, labels, groups, asked, truth, seed=0)
    assert len(seen["groups"]) == 50
    assert set(seen["groups"]) <= set(groups)


def test_asked_rows_among_the_known_ones_are_seen_in_the_score() -> None:
    """The negative control: no measure can tell a leak, and this is what one does to the numbers."""
    known, labels, groups, asked, truth = space(spread=2.5)
    honest = label_quality(known, labels, groups, asked, truth, seed=0).numbers()
    leaked = label_quality(
        np.concatenate([known, asked]), np.concatenate([labels, truth]),
        np.concatenate([groups, [f"asked-{row}" for row in range(len(asked))]]), asked, truth, seed=0,
    ).numbers()  # fmt: skip
    for name in ("knn_weighted", "precision_at_10", "map_at_r", "ndcg_at_10"):
        assert leaked[name] > honest[name] + 0.01, name


def test_labels_that_say_nothing_are_at_chance() -> None:
    known, labels, groups, asked, truth = space()
    mixed = np.random.default_rng(1).permutation(labels)
    numbers = label_quality(known, mixed, groups, asked, truth, seed=0).numbers()
    share = max(np.mean(truth == name) for name in np.unique(truth))
    assert numbers["knn"] < share + 0.1
    assert numbers["precision_at_10"] == pytest.approx(np.mean(labels[:, None] == truth[None, :]), abs=0.06)


def test_every_score_lies_in_its_interval_and_has_a_number_a_query() -> None:
    known, labels, groups, asked, truth = space()
    found = label_quality(known, labels, groups, asked, truth, seed=0)
    numbers = found.numbers()
    assert tuple(found.values) == LABEL_MEASURES
    for name in LABEL_MEASURES:
        assert numbers[f"{name}_low"] < numbers[name] < numbers[f"{name}_high"]
        assert found.values[name].shape == (90,)
    # A share of n queries has the standard error sqrt(p (1 - p) / n); the interval is 1.96 of it to both sides.
    p = numbers["knn"]
    wide = numbers["knn_high"] - numbers["knn_low"]
    assert wide == pytest.approx(2 * 1.96 * np.sqrt(p * (1 - p) / 90), rel=0.2)
    assert {"effective_rank", "effective_rank_centred", "unit_spread"} <= set(numbers)
    singular = np.linalg.svd(asked.astype(np.float64), compute_uv=False)
    shares = singular / singular.sum()
    assert numbers["effective_rank"] == pytest.approx(np.exp(-np.sum(shares * np.log(shares))), rel=1e-4)


def test_two_spaces_are_asked_the_same_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "QUERIES", 30)
    known, labels, groups, asked, truth = space()
    truth = truth.astype("U9")
    truth[:20] = "umbrella"  # nothing known is of its kind: these have no retrieval number, in either space
    noise = np.random.default_rng(0).normal(size=(len(known) + len(asked), 3))
    first = label_quality(known, labels, groups, asked, truth, seed=5)
    second = label_quality(noise[: len(known)], labels, groups, noise[len(known) :], truth, seed=5)
    rows = np.sort(np.random.default_rng([5, 1]).permutation(90)[:30])
    fitting = (truth[rows] != "umbrella").sum()
    assert first.values["map_at_r"].shape == second.values["map_at_r"].shape == (fitting,)
    assert fitting < 30
    for name in LABEL_MEASURES:
        assert paired_difference(first.values[name], second.values[name], seed=0).low > 0, name


def test_a_paired_difference_is_the_analytic_one() -> None:
    rng = np.random.default_rng(2)
    hard = rng.normal(0, 10, 4000)  # how hard a query is, for both
    gain = rng.normal(0.2, 1.0, 4000)
    found = paired_difference(hard + gain, hard, seed=0)
    error = gain.std() / np.sqrt(4000)
    assert found.mean == pytest.approx(gain.mean())
    assert found.low == pytest.approx(gain.mean() - 1.96 * error, abs=0.3 * error)
    assert found.high == pytest.approx(gain.mean() + 1.96 * error, abs=0.3 * error)
    assert found.low > 0
    back = paired_difference(hard, hard + gain, seed=0)
    assert (back.mean, back.low, back.high) == pytest.approx((-found.mean, -found.high, -found.low), abs=0.01)
    # Negative control: without the pairs the same gain drowns in how hard the queries are.
    unpaired = paired_difference(hard + gain, rng.permutation(hard), seed=0)
    assert unpaired.low < 0 < unpaired.high
    assert paired_difference(hard, hard, seed=0) == (0, 0, 0)


def test_what_does_not_fit_is_refused() -> None:
    known, labels, groups, asked, truth = space()
    with pytest.raises(InputError, match=r"\[90\] and \[89\] queries are no pairs"):
        paired_difference(np.zeros(90), np.zeros(89), seed=0)
    with pytest.raises(InputError, match="5 groups and 240 known rows"):
        label_quality(known, labels, groups[:5], asked, truth, seed=0)
    with pytest.raises(InputError, match="do not fit"):
        label_quality(known, labels, groups, asked[:, :3], truth, seed=0)
    with pytest.raises(InputError, match="hold 1 label"):
        label_quality(known, ["one"] * 240, groups, asked, truth, seed=0)
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(InputError, match="2 photos, 1 labels and 2 groups"):
        LabelledPhotos(pixels, ["bag"], ["a", "b"])
    with pytest.raises(InputError, match="float64"):
        LabelledPhotos(pixels / 255, ["bag", "hat"], ["a", "b"])


def brightness(pixels: np.ndarray) -> np.ndarray:
    """Encode photos as the mean colour of four bands."""
    bands = pixels.reshape(len(pixels), 4, -1, 3).astype(np.float64)
    return bands.mean(axis=2).reshape(len(pixels), -1) / 255 - 0.5


def test_an_encoders_numbers_are_those_of_its_measures() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (80, 16, 16, 3), dtype=np.uint8)
    found = encoder_quality(brightness, pixels, seed=4)
    rare = rare_recall(brightness, pixels, seed=4)
    assert found["rare_recall"] == rare.recall
    assert found["rare_plain_ahead"] == rare.plain_ahead
    assert found["rare_recall_low"] <= found["rare_recall"] <= found["rare_recall_high"]
    assert 0 < found["moved"] < 1
    flat = encoder_quality(lambda given: np.ones((len(given), 3)), pixels, seed=4)
    assert "moved" not in flat, "collapsed latents are compared with nothing"
    assert flat["rare_ahead"] == 0.5


@pytest.mark.slow
def test_rendered_factors_are_repeatable_and_read_from_what_shows_them() -> None:
    photos = factor_photos(ImagesConfig(size=16), count=120, designs=4, seed=1)
    again = factor_photos(ImagesConfig(size=16), count=120, designs=4, seed=1)
    assert photos.pixels.shape == (120, 16, 16, 3)
    assert np.array_equal(photos.pixels, again.pixels)
    assert photos.factors == again.factors
    assert list(photos.factors) == list(FACTORS)
    other = factor_photos(ImagesConfig(size=16), count=120, designs=1, seed=2)
    assert not np.array_equal(photos.pixels, other.pixels)
    assert all(np.array_equal(photos.varied[name].pixels, again.varied[name].pixels) for name in NUISANCES)
    found = factor_quality(lambda given: given[:, 4:12, 4:12].reshape(len(given), -1) / 255.0, photos, seed=0)
    names = {f"factor_{name}{end}" for name in FACTORS for end in ("", "_chance")}
    assert set(found) == names | {
        f"purity_{name}{end}" for name in NUISANCES for end in ("", "_chance", "_low", "_high")
    }
    assert found["factor_category"] > found["factor_category_chance"] + 0.2
    # Negative control: an encoder that sees the order of the photos only.
    blind = factor_quality(lambda given: np.arange(len(given))[:, None] % 7, photos, seed=0)
    assert blind["factor_category"] < 0.35
    assert found["purity_shade"] > 0.9 > 0.4 > blind["purity_shade"]

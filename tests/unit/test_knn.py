"""k-NN accuracy against brute force and scikit-learn, with the known wrong versions as controls."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from pipeline.errors import ConfigError, InputError
from pipeline.evaluation import knn_accuracy, knn_labels, label_knn


def blobs(
    count: int, *, seed: int, classes: int = 5, dim: int = 8, spread: float = 1.2
) -> tuple[np.ndarray, np.ndarray]:
    centres = np.random.default_rng(0).normal(size=(classes, dim)) * 1.5
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=count)
    vectors = centres[labels] + generator.normal(0, spread, (count, dim))
    return (vectors * generator.uniform(0.2, 5.0, (count, 1))).astype(np.float32), labels


def brute_force(bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, k: int) -> list[int]:
    answers = []
    for query in queries.astype(np.float64):
        cosines = [float(query @ x / np.linalg.norm(query) / np.linalg.norm(x)) for x in bank.astype(np.float64)]
        near = sorted(range(len(bank)), key=lambda row: (-cosines[row], row))[:k]
        votes = {labels[row]: sum(labels[other] == labels[row] for other in near) for row in near}
        most = max(votes.values())
        answers.append(next(labels[row] for row in near if votes[labels[row]] == most))
    return answers


@pytest.mark.parametrize("k", [1, 4, 10])
def test_labels_are_those_of_brute_force(k: int) -> None:
    bank, labels = blobs(300, seed=1)
    queries, _ = blobs(120, seed=2)
    assert knn_labels(bank, labels, queries, k=k).tolist() == brute_force(bank, labels, queries, k)


def test_accuracy_is_that_of_scikit_learn_where_votes_do_not_tie() -> None:
    bank, bank_labels = blobs(2_000, seed=1)
    queries, labels = blobs(700, seed=2)
    classifier = KNeighborsClassifier(10, metric="cosine", algorithm="brute").fit(bank, bank_labels)
    votes = np.sort(np.round(classifier.predict_proba(queries) * 10), axis=1)
    clear = votes[:, -1] > votes[:, -2]
    assert 0.5 < clear.mean() < 1.0
    ours = knn_labels(bank, bank_labels, queries)
    np.testing.assert_array_equal(ours[clear], classifier.predict(queries)[clear])
    assert knn_accuracy(bank, bank_labels, queries[clear], labels[clear]) == classifier.score(
        queries[clear], labels[clear]
    )


def test_a_tie_goes_to_the_nearest_not_to_the_lowest_label() -> None:
    bank = np.array([[1.0, 0.05], [1.0, 0.3], [1.0, 0.1], [1.0, 0.2]], np.float32)
    labels = np.array(["z", "z", "a", "a"])
    assert knn_labels(bank, labels, np.array([[1.0, 0.0]]), k=4).tolist() == ["z"]
    control = KNeighborsClassifier(4, metric="cosine", algorithm="brute").fit(bank, labels)
    assert control.predict([[1.0, 0.0]]).tolist() == ["a"], "scikit-learn takes the lowest label"


def test_equally_near_vectors_count_in_bank_order() -> None:
    bank = np.ones((4, 2), np.float32)
    assert knn_labels(bank, ["b", "a", "a", "b"], np.array([[2.0, 2.0]]), k=1).tolist() == ["b"]


def test_negative_control_voting_for_oneself() -> None:
    vectors = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32)
    labels = np.random.default_rng(1).integers(10, size=500)  # nothing to learn: chance is 0.1
    assert label_knn(vectors, labels, k=1) < 0.2
    assert knn_accuracy(vectors, labels, vectors, labels, k=1) == 1.0, "the wrong way must look perfect"


def test_label_knn_is_seeded_and_leaves_the_query_out() -> None:
    vectors, labels = blobs(400, seed=3)
    assert label_knn(vectors, labels, queries=100, seed=1) == label_knn(vectors, labels, queries=100, seed=1)
    every = [
        knn_labels(np.delete(vectors, row, 0), np.delete(labels, row), vectors[row : row + 1])[0] == labels[row]
        for row in range(400)
    ]
    assert label_knn(vectors, labels, queries=1000) == pytest.approx(np.mean(every))


def test_k_above_the_bank_uses_the_whole_bank() -> None:
    bank = np.eye(3, dtype=np.float32)
    assert knn_labels(bank, [1, 1, 0], bank[2:], k=99).tolist() == [1]


def test_what_does_not_fit_is_refused() -> None:
    bank = np.eye(3, dtype=np.float32)
    with pytest.raises(InputError, match="do not fit"):
        knn_labels(bank, [0, 1], bank)
    with pytest.raises(InputError, match="do not fit"):
        knn_labels(bank, [0, 1, 2], np.eye(2))
    with pytest.raises(InputError, match="no vector"):
        knn_labels(np.empty((0, 3)), [], bank)
    with pytest.raises(InputError, match="no matrix"):
        knn_labels([1.0, 2.0], [0, 1], bank)
    with pytest.raises(InputError, match="no queries"):
        knn_accuracy(bank, [0, 1, 2], np.empty((0, 3)), [])
    with pytest.raises(ConfigError, match="k is 0"):
        knn_labels(bank, [0, 1, 2], bank, k=0)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_weighted_votes_are_those_of_scikit_learn(temperature: float) -> None:
    bank, bank_labels = blobs(1_500, seed=1)
    queries, labels = blobs(500, seed=2)
    classifier = KNeighborsClassifier(
        20, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    ).fit(bank.astype(np.float64), bank_labels)
    ours = knn_labels(bank, bank_labels, queries, k=20, temperature=temperature)
    np.testing.assert_array_equal(ours, classifier.predict(queries.astype(np.float64)))
    accuracy = knn_accuracy(bank, bank_labels, queries, labels, k=20, temperature=temperature)
    assert accuracy == np.mean(ours == labels)
    # Negative control: weighing by distance instead of nearness.
    wrong = KNeighborsClassifier(
        20, metric="cosine", algorithm="brute", weights=lambda distance: np.exp(distance / temperature)
    ).fit(bank, bank_labels)
    assert np.any(wrong.predict(queries) != ours)


def test_small_temperatures_are_the_nearest_and_large_ones_the_majority() -> None:
    bank, labels = blobs(400, seed=1)
    queries, _ = blobs(200, seed=2)
    assert np.array_equal(
        knn_labels(bank, labels, queries, k=20, temperature=1e-5), knn_labels(bank, labels, queries, k=1)
    )
    assert np.array_equal(
        knn_labels(bank, labels, queries, k=21, temperature=1e7), knn_labels(bank, labels, queries, k=21)
    )
    with pytest.raises(ConfigError, match="temperature is 0"):
        knn_labels(bank, labels, queries, temperature=0)

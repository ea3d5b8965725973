"""The linear probe against scikit-learn's own steps, and that the asked rows decide nothing."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.errors import ConfigError, InputError
from pipeline.evaluation.probe import held_out, in_row_space, linear_probe, standardised


def blobs(count: int, *, seed: int, classes: int = 4, dim: int = 10) -> tuple[np.ndarray, np.ndarray]:
    centres = np.random.default_rng(0).normal(size=(classes, dim))
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    rows = (centres[labels] + rng.normal(0, 1.2, (count, dim))) * np.logspace(-2, 2, dim) + 5.0
    return rows.astype(np.float32), labels


def test_accuracy_is_that_of_scikit_learns_pipeline() -> None:
    known, names = blobs(500, seed=1)
    asked, labels = blobs(400, seed=2)
    found = linear_probe(known, names, asked, labels, strengths=[1.0])
    wanted = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=200)).fit(known.astype(float), names)
    assert found.accuracy == pytest.approx(wanted.score(asked.astype(float), labels), abs=1e-9)
    assert found.accuracy == found.correct.mean() > 0.6
    assert found.converged
    # Negative control: without the scales the narrow dimensions say nothing.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nor does it converge
        plain = LogisticRegression(C=0.01, max_iter=300).fit(known - known.mean(0), names)
    assert plain.score(asked - known.mean(0), labels) < found.accuracy - 0.05


def test_wide_latents_are_told_as_in_their_own_space() -> None:
    generator = np.random.default_rng(0)
    names = np.array(["a", "b", "c"])[np.arange(120) % 3]
    rows = generator.normal(size=(120, 400)) + 0.4 * (names == "b")[:, None]
    known, asked = standardised(rows[:60], rows[60:])
    narrow, others = in_row_space(known, asked)
    assert narrow.shape == others.shape == (60, 60)
    np.testing.assert_allclose(narrow @ narrow.T, known @ known.T, atol=1e-9)
    options = {"C": 0.05, "tol": 1e-10, "max_iter": 5000}
    wide = LogisticRegression(**options).fit(known, names[:60])
    less = LogisticRegression(**options).fit(narrow, names[:60])
    np.testing.assert_allclose(less.predict_proba(others), wide.predict_proba(asked), atol=1e-5)
    assert linear_probe(rows[:60], names[:60], rows[60:], names[60:], strengths=(0.05,)).accuracy == pytest.approx(
        np.mean(wide.predict(asked) == names[60:])
    )
    # As many rows as numbers, or more, stay as they are.
    np.testing.assert_array_equal(in_row_space(known[:, :60], asked[:, :60])[0], known[:, :60])


def test_strength_is_chosen_on_the_known_rows_alone() -> None:
    known, names = blobs(60, seed=1, dim=40)
    asked, labels = blobs(300, seed=2, dim=40)
    first = linear_probe(known, names, asked, labels)
    other = linear_probe(known, names, asked, np.roll(labels, 1))
    assert first.c == other.c
    held = held_out(60, None)
    assert held.sum() == 12
    rows, _ = standardised(known.astype(np.float64), asked.astype(np.float64))
    scores = {
        c: LogisticRegression(C=c, max_iter=200).fit(rows[~held], names[~held]).score(rows[held], names[held])
        for c in (0.01, 0.1, 1.0, 10.0)
    }
    assert first.c == max(scores, key=lambda c: (scores[c], -c))
    # Negative control: the best value on the asked rows is at least as good as ours, since it has seen them.
    seen = max(linear_probe(known, names, asked, labels, strengths=[c]).accuracy for c in scores)
    assert seen >= first.accuracy
    assert linear_probe(known, names, asked, labels).accuracy == first.accuracy, "it repeats"


def test_random_labels_are_not_told() -> None:
    rng = np.random.default_rng(3)
    known, asked = rng.normal(size=(400, 20)), rng.normal(size=(600, 20))
    labels = rng.integers(5, size=1000)
    assert linear_probe(known, labels[:400], asked, labels[400:]).accuracy == pytest.approx(0.2, abs=0.06)
    # Negative control: asked rows that were known.
    assert linear_probe(known, labels[:400], known, labels[:400], strengths=[10.0]).accuracy > 0.3


def test_groups_are_never_on_both_sides() -> None:
    groups = np.repeat(np.arange(50), 4)
    held = held_out(200, groups, seed=5)
    assert held.sum() == 40
    assert not set(groups[held]) & set(groups[~held])
    by_row = held_out(200, None, seed=5)
    assert set(groups[by_row]) & set(groups[~by_row]), "negative control: rows alone divide groups"
    assert held_out(2, None).sum() == 1


def test_dead_dimensions_and_unseen_labels_do_no_harm() -> None:
    known, names = blobs(200, seed=1)
    asked, labels = blobs(200, seed=2)
    constant = [np.hstack([side, np.full((200, 1), 3.0, np.float32)]) for side in (known, asked)]
    plain = linear_probe(known, names, asked, labels).accuracy
    assert linear_probe(constant[0], names, constant[1], labels).accuracy == plain
    strange = np.where(np.arange(200) < 20, 99, labels)  # nobody could know
    assert linear_probe(known, names, asked, strange).correct[:20].sum() == 0


def test_a_fit_that_was_cut_short_says_so() -> None:
    known, names = blobs(200, seed=1)
    assert not linear_probe(known, names, known, names, strengths=[10.0], steps=2).converged


def test_what_cannot_be_probed_is_refused() -> None:
    rows = np.eye(4)
    with pytest.raises(InputError, match="hold 1 label"):
        linear_probe(rows, ["a"] * 4, rows, ["a"] * 4)
    with pytest.raises(InputError, match="do not fit"):
        linear_probe(rows, [0, 1], rows, [0, 1, 2, 3])
    with pytest.raises(InputError, match="nothing is asked"):
        linear_probe(rows, [0, 1, 0, 1], rows[:0], [])
    with pytest.raises(ConfigError, match="no strengths"):
        linear_probe(rows, [0, 1, 0, 1], rows, [0, 1, 0, 1], strengths=[])
    with pytest.raises(InputError, match="of one label to fit"):
        linear_probe(rows[:2], [0, 1], rows, [0, 1, 0, 1])
    with pytest.raises(InputError, match="4 rows of 1 groups"):
        held_out(4, ["a"] * 4)
    with pytest.raises(InputError, match="2 groups and 4 rows"):
        held_out(4, ["a", "b"])

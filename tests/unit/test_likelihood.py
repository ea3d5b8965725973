"""Held-out nats of codes against the same formulas written out, and photos that stand out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.errors import InputError
from pipeline.evaluation.likelihood import (
    code_likelihood,
    code_shares,
    item_nats,
    outlier_scores,
    outlier_table,
    position_nats,
    uniform_nats,
    unigram_nats,
)
from pipeline.models.priors import Prior, build_prior
from pipeline.models.priors.pixelcnn import PixelCNNConfig
from pipeline.schema import outliers_schema
from pipeline.training import Loop, TrainConfig
from pipeline.training.codes import Codes, CodesLoader

K = 6


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """The models are small: more threads only wait for each other."""
    torch.set_num_threads(1)


def garments(number: int, *, seed: int = 0) -> np.ndarray:
    """Return grids [n, 3, 3]: a border of code 0, and one code inside, which the last row repeats at random."""
    rng = np.random.default_rng(seed)
    codes = np.zeros((number, 3, 3), np.int32)
    inside = rng.integers(1, K, number)
    codes[:, 1] = inside[:, None]
    codes[:, 2] = np.where(rng.random((number, 3)) < 0.8, inside[:, None], 0)
    return codes


@pytest.fixture(scope="module")
def trained() -> Prior:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    prior = build_prior(PixelCNNConfig(width=16, layers=2, dropout=0), num_codes=K, grid=(3, 3))
    data = CodesLoader(Codes(garments(2000)), batch_size=100, rank=0, world_size=1, seed=0)
    Loop(prior, data, TrainConfig(epochs=5, batch_size=100, learning_rate=1e-2)).run()
    return prior


@pytest.mark.slow
def test_the_prior_beats_frequencies_and_they_beat_nothing(trained: Prior):
    train, held_out = garments(2000), garments(1000, seed=1)
    found = code_likelihood(trained, train, held_out)
    # One choice of five, then three of two: what a photo's codes say at all.
    entropy = (math.log(5) - 3 * (0.8 * math.log(0.8) + 0.2 * math.log(0.2))) / 9
    assert found.prior == pytest.approx(entropy, abs=0.02)
    assert found.prior + 0.3 < found.position < found.unigram - 0.2 < found.uniform - 0.2
    assert found.uniform == uniform_nats(K) == math.log(K)
    assert found.codes == 9000
    assert list(found.measures()) == [f"nats_per_code/{name}" for name in ("prior", "position", "unigram", "uniform")]


def test_frequencies_are_of_the_training_codes():
    train = np.array([[[0, 0], [0, 1]]])
    held_out = np.array([[[0, 1], [2, 2]]])
    shares = np.array([3.5, 1.5, 0.5]) / 5.5
    assert code_shares(train, 3) == pytest.approx(shares)
    expected = -(math.log(shares[0]) + math.log(shares[1]) + 2 * math.log(shares[2])) / 4
    assert unigram_nats(train, held_out, 3) == pytest.approx(expected)
    # Of the held-out codes themselves they would be their entropy, and promise too much.
    own = np.bincount(held_out.reshape(-1)) / 4
    assert expected > -float((own * np.log(own)).sum()) + 0.5


def test_frequencies_at_a_cell():
    train = np.array([[[0, 1]], [[0, 1]], [[0, 0]]])
    base = (np.array([4, 2]) + 0.5) / 7  # of all cells, worth K / 2 = 1 photo
    first, second = (np.array([3, 0]) + base) / 4, (np.array([1, 2]) + base) / 4
    held_out = np.array([[[0, 1]], [[1, 0]]])
    expected = -np.log([first[0], second[1], first[1], second[0]]).mean()
    assert position_nats(train, held_out, 2) == pytest.approx(float(expected))
    with pytest.raises(InputError, match="not one grid"):
        position_nats(train, np.zeros((1, 2, 2), int), 2)


def test_a_photo_has_its_nats_whatever_it_is_measured_with(trained: Prior):
    codes = garments(300, seed=2)
    nats = item_nats(trained, codes)
    assert nats.dtype == np.float64
    assert nats[:3] == pytest.approx(item_nats(trained, codes[:3]), rel=1e-5)
    assert nats[299] == pytest.approx(item_nats(trained, codes[299:])[0], rel=1e-5)
    dropping = build_prior(PixelCNNConfig(width=8, layers=2, dropout=0.5), num_codes=K, grid=(3, 3))
    assert np.array_equal(item_nats(dropping, codes), item_nats(dropping, codes))  # in evaluation mode
    assert dropping.training  # and as it was


def test_conditions_go_with_their_photos():
    torch.manual_seed(0)
    config = PixelCNNConfig(width=8, layers=1, by_category=True)
    prior = build_prior(config, num_codes=K, grid=(3, 3), labels=("a", "b"))
    codes, condition = garments(600), np.arange(600, dtype=np.int32) % 4
    together = item_nats(prior, codes, condition=condition)
    for row in (0, 257, 599):
        one = item_nats(prior, codes[[row]], condition=condition[[row]])
        assert together[row] == pytest.approx(one[0], rel=1e-5)
    with pytest.raises(InputError, match="2 conditions for codes of 600 photos"):
        item_nats(prior, codes, condition=condition[:2])


def test_photos_of_another_kind_stand_out(trained: Prior):
    usual = garments(500, seed=3)
    strange = garments(10, seed=5)[:, ::-1]  # the same codes, upside down
    reference = item_nats(trained, garments(500, seed=6))
    nats = item_nats(trained, np.concatenate([usual, strange]))
    scores = outlier_scores(nats, reference)
    assert scores.dtype == np.float32
    assert scores[500:].min() > scores[:500].max()
    assert scores[500:].min() > 5
    names = [f"item{row:03}" for row in range(510)]
    kinds = ["usual"] * 500 + [None] * 10
    table = outlier_table(names, [f"{name}.png" for name in names], nats, scores, cells=9, categories=kinds)
    assert table.schema == outliers_schema()
    assert table.schema.metadata == {b"schema": b"1"}
    assert set(table["item_id"].to_pylist()[:10]) == set(names[500:])
    assert table["outlier_score"].to_pylist() == sorted(scores.tolist(), reverse=True)
    at = names.index(table["item_id"][0].as_py())
    assert (table["nats"][0].as_py(), table["uri"][0].as_py()) == (nats[at], f"item{at:03}.png")
    assert table["nats_per_code"][0].as_py() == nats[at] / 9
    assert table["category"].to_pylist()[:10] == [None] * 10
    assert set(table["category"].to_pylist()[10:]) == {"usual"}


def test_photos_as_likely_as_each_other_are_ordered_by_name_and_may_have_no_score():
    table = outlier_table(["b", "a", "a", "c"], ["1", "2", "1", "0"], np.array([2.0, 2.0, 2.0, 9.0]), None, cells=2)
    found = table.select(["item_id", "uri", "nats_per_code", "outlier_score", "category"]).to_pylist()
    assert [tuple(row.values()) for row in found] == [
        ("c", "0", 4.5, None, None),
        ("a", "1", 1.0, None, None),
        ("a", "2", 1.0, None, None),
        ("b", "1", 1.0, None, None),
    ]


def test_scores_are_robust_standard_deviations():
    nats = np.random.default_rng(0).normal(30, 4, 100_000)
    scores = outlier_scores(nats)
    assert float(scores.std()) == pytest.approx(1, abs=0.02)
    assert outlier_scores(np.array([50.0]), nats)[0] == pytest.approx(5, abs=0.1)
    wild = np.concatenate([nats, np.full(10_000, 1e6)])  # a tenth of wild ones hardly moves the scale
    assert outlier_scores(np.array([50.0]), wild)[0] == pytest.approx(4.3, abs=0.3)
    assert (50 - wild.mean()) / wild.std() < 0  # the known wrong version: mean and standard deviation
    for flat in (np.ones(5), np.empty(0)):
        with pytest.raises(InputError, match="no spread"):
            outlier_scores(nats, flat)


def test_codes_outside_the_codebook_are_refused(trained: Prior):
    for wrong in (np.full((1, 3, 3), K), np.full((1, 3, 3), -1), np.zeros((0, 3, 3), int)):
        with pytest.raises(InputError, match=f"codebook of {K}"):
            item_nats(trained, wrong)
        with pytest.raises(InputError, match=f"codebook of {K}"):
            unigram_nats(garments(5), wrong, K)

"""How like photos pictures are: closed forms, SciPy and scikit-learn as oracles, and the known wrong versions."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from pipeline.errors import InputError
from pipeline.evaluation.baselines import pixel_features
from pipeline.evaluation.drawn_realism import LEAST, PICTURES, compared_pictures, drawn_realism
from pipeline.evaluation.realism import (
    Realism,
    frechet_distance,
    gaussian_frechet,
    one_nn_accuracy,
    picture_space,
    realism,
)
from pipeline.models import build_model
from pipeline.models.priors import Prior, PriorConfig
from pipeline.models.quantizers import EMAConfig
from pipeline.models.vqvae import VQVAEConfig

DIM = 6


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """The models are small: more threads only wait for each other."""
    torch.set_num_threads(1)


def covariance(seed: int, rank: int = DIM) -> np.ndarray:
    factor = np.random.default_rng(seed).normal(size=(DIM, rank))
    return factor @ factor.T / rank


def normal(rows: int, *, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, DIM)) + shift


def test_gaussians_of_diagonal_covariances_have_the_closed_form():
    mean, other = np.array([1.0, 2.0, 0.0]), np.array([0.0, 2.0, 5.0])
    widths, others = np.array([1.0, 4.0, 0.0]), np.array([9.0, 0.25, 2.0])
    expected = 1 + 25 + float(np.sum((np.sqrt(widths) - np.sqrt(others)) ** 2))
    assert gaussian_frechet(mean, np.diag(widths), other, np.diag(others)) == pytest.approx(expected, rel=1e-12)
    # The same, turned: commuting covariances that are not diagonal.
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    spread, spreads = turn @ np.diag(widths) @ turn.T, turn @ np.diag(others) @ turn.T
    assert gaussian_frechet(turn @ mean, spread, turn @ other, spreads) == pytest.approx(expected, rel=1e-9)


def test_gaussians_of_other_covariances_have_that_of_scipys_square_root():
    for seed in range(4):
        first, second = covariance(seed), covariance(seed + 10)
        common = scipy.linalg.sqrtm(first @ second)
        expected = float(np.trace(first + second) - 2 * np.trace(np.real(common)))
        zero = np.zeros(DIM)
        assert gaussian_frechet(zero, first, zero, second) == pytest.approx(expected, rel=1e-9)
        assert gaussian_frechet(zero, second, zero, first) == pytest.approx(expected, rel=1e-9)
        # The known wrong versions: square roots of the product's elements, and traces of the covariances' own roots.
        elements = np.trace(first + second) - 2 * np.trace(np.sqrt(np.abs(first @ second)))
        own = np.trace(first + second) - 2 * np.trace(scipy.linalg.sqrtm(first)) * np.trace(scipy.linalg.sqrtm(second))
        assert min(abs(elements - expected), abs(own - expected)) > 0.05


def test_features_have_the_distance_of_their_means_and_covariances():
    reference, drawn = normal(300, seed=0) @ covariance(1), normal(200, seed=2, shift=0.5)
    first, second = np.cov(reference, rowvar=False), np.cov(drawn, rowvar=False)
    common = np.real(scipy.linalg.sqrtm(first @ second))
    apart = np.sum((reference.mean(axis=0) - drawn.mean(axis=0)) ** 2)
    expected = float(apart + np.trace(first) + np.trace(second) - 2 * np.trace(common))
    assert frechet_distance(reference, drawn) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(reference, reference + 3) == pytest.approx(9 * DIM, rel=1e-9)


def test_a_set_is_at_no_distance_from_itself_also_where_its_covariance_is_singular():
    flat = normal(40, seed=0)[:, :2] @ np.random.default_rng(1).normal(size=(2, 30))  # 30 numbers, 2 directions
    assert frechet_distance(flat, flat[::-1]) == pytest.approx(0, abs=1e-10)
    scaled = frechet_distance(flat * 1e4, flat * 2e4)  # the covariance is singular, and nothing becomes complex
    centred = flat - flat.mean(axis=0)
    expected = 1e8 * (np.sum(flat.mean(axis=0) ** 2) + np.sum(centred**2) / 39)
    assert scaled == pytest.approx(expected, rel=1e-9)


def test_of_few_rows_the_distance_of_like_sets_is_above_zero_and_falls():
    few, many = (frechet_distance(normal(rows, seed=1), normal(rows, seed=2)) for rows in (20, 5000))
    assert few > 0.5 > 0.02 > many > 0


@pytest.mark.parametrize("shift", [0.0, 0.7, 8.0])
def test_the_accuracy_is_that_of_scikit_learn_leaving_one_out(shift: float):
    reference, drawn = normal(70, seed=3), normal(70, seed=4, shift=shift)
    union, labels = np.concatenate([reference, drawn]) + 1000, np.repeat([0, 1], 70)
    found = cross_val_predict(KNeighborsClassifier(1, algorithm="brute"), union, labels, cv=LeaveOneOut())
    assert one_nn_accuracy(union[:70], union[70:]) == pytest.approx(float(np.mean(found == labels)))


def test_like_sets_have_half_and_unlike_ones_have_one():
    assert one_nn_accuracy(normal(1500, seed=5), normal(1500, seed=6)) == pytest.approx(0.5, abs=0.03)
    assert one_nn_accuracy(normal(50, seed=5), normal(50, seed=6, shift=20)) == 1
    # The known wrong version lets a row be its own neighbour, and sees a difference everywhere.
    union, labels = normal(100, seed=7), np.repeat([0, 1], 50)
    assert KNeighborsClassifier(1).fit(union, labels).score(union, labels) == 1


def test_copies_of_the_reference_pull_it_down_and_copies_of_drawn_pictures_up():
    reference = normal(200, seed=8)
    assert one_nn_accuracy(reference, reference) == 0
    repeated = np.repeat(normal(20, seed=9), 10, axis=0)
    assert one_nn_accuracy(reference, repeated) > 0.8
    assert one_nn_accuracy(reference, normal(200, seed=9)) == pytest.approx(0.5, abs=0.1)


def test_of_equally_near_rows_every_one_counts_and_order_does_not():
    reference = np.array([[0.0, 0.0], [0.0, 0.0], [5.0, 0.0]])
    drawn = np.array([[0.0, 0.0], [5.0, 0.0], [5.0, 0.0]])
    # At the origin two of the reference and one drawn: each of the two sees one own of two, the drawn one none.
    expected = (1 / 2 + 1 / 2 + 0 + 0 + 1 / 2 + 1 / 2) / 6
    assert one_nn_accuracy(reference, drawn) == pytest.approx(expected)
    assert one_nn_accuracy(drawn[::-1], reference[::-1]) == pytest.approx(expected)
    assert one_nn_accuracy(np.ones((40, 3)), np.ones((40, 3))) == pytest.approx(39 / 79)  # not 1, not 0
    # Squared distances of copies are 0 up to each one's own rounding. Of three copies one is of the row's set.
    twice = np.repeat(np.random.default_rng(0).normal(size=(30, 50)), 2, axis=0)
    assert one_nn_accuracy(twice, twice[::-1]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("reference", "drawn", "said"),
    [
        (np.ones((1, 2)), np.ones((3, 2)), r"reference features are \[1, 2\]; give \[n, d\] of at least 2"),
        (np.ones((3, 2)), np.ones(3), r"drawn features are \[3\]"),
        (np.ones((3, 2)), np.ones((3, 4)), r"\[3, 2\] and \[3, 4\]; take both from one space"),
        (np.ones((3, 2)), np.full((3, 2), np.nan), "drawn features hold values that are not finite"),
    ],
)
def test_features_that_cannot_be_compared_are_refused(reference: np.ndarray, drawn: np.ndarray, said: str):
    for measure in (frechet_distance, one_nn_accuracy, realism):
        with pytest.raises(InputError, match=said):
            measure(reference, drawn)


def test_what_is_no_gaussian_and_what_are_not_equally_many_are_refused():
    with pytest.raises(InputError, match=r"3 reference rows and 2 drawn ones; .* take the first 2 of both"):
        one_nn_accuracy(normal(3, seed=0), normal(2, seed=0))
    two, zero = np.eye(2), np.zeros(2)
    with pytest.raises(InputError, match="do not fit"):
        gaussian_frechet(zero, two, np.zeros(3), two)
    for wrong in (-two, np.array([[1.0, 0.5], [0.0, 1.0]])):
        with pytest.raises(InputError, match="is no covariance"):
            gaussian_frechet(zero, wrong, zero, two)


def pictures(number: int, *, seed: int, noise: int = 4) -> np.ndarray:
    """Return pictures uint8 [n, 8, 8, 3]: one of two halves is light, and a little noise."""
    rng = np.random.default_rng(seed)
    made = rng.integers(0, noise, (number, 8, 8, 3))
    left = rng.random(number) < 0.5
    made[left, :, :4] += 200
    made[~left, :, 4:] += 200
    return made.astype(np.uint8)


def test_the_space_is_the_references_principal_components():
    reference = pictures(60, seed=0)
    space = picture_space(reference)
    features = space.features(reference)
    assert (features.shape, features.dtype) == ((60, 12), np.float64)  # a component for every five pictures
    rows = pixel_features(reference).astype(np.float64)
    singular = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)[:12]
    assert np.linalg.norm(features, axis=0) == pytest.approx(singular, rel=1e-4)
    assert picture_space(pictures(400, seed=1, noise=40)).features(reference).shape == (60, 64)
    # Two pictures differ in one direction; eleven others would be arbitrary.
    assert picture_space(pictures(60, seed=0, noise=1)).features(reference).shape == (60, 1)
    with pytest.raises(InputError, match="4 reference pictures have no space; give at least 5"):
        picture_space(reference[:4])
    with pytest.raises(InputError, match="all 60 reference pictures are equal"):
        picture_space(np.zeros_like(reference))


def test_pictures_of_a_kind_are_near_and_others_are_not():
    reference = pictures(100, seed=0)
    space = picture_space(reference)
    like, unlike = (realism(space.features(reference), space.features(other)) for other in (
        pictures(100, seed=1), pictures(100, seed=2)[:, :, ::-1] // 2,
    ))  # fmt: skip
    assert (like.photos, like.components) == (100, 20)
    assert like.frechet < 0.2 < 5 < unlike.frechet
    assert like.one_nn == pytest.approx(0.5, abs=0.12)
    assert unlike.one_nn == 1
    assert Realism(1.5, 0.75, 100, 20).measures("samples") == {"frechet/samples": 1.5, "one_nn/samples": 0.75}


class Rows(Prior):
    """Every row of 2 x 2 codes repeats one code twice; category "a" draws code 0 and 1, "b" 2 and 3."""

    def __init__(self) -> None:
        super().__init__(PriorConfig(kind="rows", width=4, by_category=True), 4, (2, 2), ("a", "b"))
        with torch.no_grad():
            self.embedding.weight.copy_(torch.eye(4))
            self.categories.weight.zero_()
            self.categories.weight[2, 2:] = -60.0
            self.categories.weight[3, :2] = -60.0

    def from_vectors(self, vectors: Tensor, category: Tensor | None) -> Tensor:
        cells = category[:, None].expand(-1, 4, -1).clone()
        cells[:, [1, 3]] = torch.where(vectors.flatten(1, 2)[:, [0, 2]] > 0.5, 0.0, -60.0)
        return cells.transpose(1, 2).reshape(-1, 4, 2, 2)


def rows_of(condition: np.ndarray, *, seed: int) -> np.ndarray:
    """Return the codes [n, 2, 2] that `Rows` draws, drawn otherwise."""
    first = np.random.default_rng(seed).integers(0, 2, (len(condition), 2)) + 2 * (condition == 3)[:, None]
    return np.repeat(first[:, :, None], 2, axis=2)


@pytest.mark.slow
def test_a_prior_that_knows_the_codes_draws_like_held_out_photos_and_cells_alone_do_not():
    torch.manual_seed(0)
    config = VQVAEConfig(channels=(8, 8, 8), quantizer=EMAConfig(num_codes=4, code_dim=4))
    model = build_model(config, image_size=16).eval()
    condition = np.where(np.random.default_rng(0).random(600) < 0.8, 2, 3)  # four times as many of "a"
    train, held_out = rows_of(condition, seed=1), rows_of(condition, seed=2)
    found = drawn_realism(Rows(), model, train, held_out, condition=condition)
    assert found.samples.photos == found.independent.photos == found.held_out.photos == 300
    assert found.samples.frechet < 3 * found.held_out.frechet + 0.01
    assert found.independent.frechet > 4 * found.samples.frechet
    assert found.samples.one_nn == pytest.approx(0.5, abs=0.05)
    assert found.held_out.one_nn == pytest.approx(0.5, abs=0.05)
    assert found.independent.one_nn > 0.7
    kinds = ("samples", "independent", "held_out")
    assert list(found.measures()) == [f"{name}/{kind}" for kind in kinds for name in ("frechet", "one_nn")]
    assert found.measures() == drawn_realism(Rows(), model, train, held_out, condition=condition).measures()
    # Negative controls: another mix of categories, and always the likeliest code.
    mixed = drawn_realism(Rows(), model, train, held_out, condition=np.full(600, 3))
    assert mixed.samples.frechet > 10 * found.samples.frechet
    likeliest = drawn_realism(Rows(), model, train, held_out, condition=condition, top_k=1)
    assert likeliest.samples.frechet > 10 * found.samples.frechet
    assert likeliest.samples.one_nn > 0.6


def test_as_many_are_compared_as_the_held_out_photos_and_the_time_allow():
    assert compared_pictures(10_000, 49) == compared_pictures(2000, 64) == PICTURES == 1000
    assert compared_pictures(195, 64) == 97
    assert compared_pictures(10_000, 256) == 62
    assert compared_pictures(LEAST, 1) == 25
    with pytest.raises(InputError, match=r"49 photos are held out \(one an item\); at least 50"):
        compared_pictures(49, 49)
    with pytest.raises(InputError, match="1,024 codes takes too long"):
        compared_pictures(10_000, 1024)

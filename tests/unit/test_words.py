"""Codes as words: counts, TF-IDF against scikit-learn's, texts of customers, groups and their purity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfTransformer

from pipeline.errors import InputError
from pipeline.evaluation.spaces import model_codes, word_space
from pipeline.evaluation.words import cluster_quality, counts_of_owners, fitted_words
from pipeline.models import build_model
from pipeline.models.simclr import SimCLRConfig
from pipeline.models.vqvae import VQVAEConfig
from pipeline.models.vqvae2 import VQVAE2Config

BACKGROUND = 0


def random_codes(count: int, *, cells: int = 16, seed: int = 0) -> NDArray[np.int64]:
    """Return codes whose frequencies differ widely, so that weights do."""
    shares = 1.0 / np.arange(1, 31)
    return np.random.default_rng(seed).choice(30, size=(count, cells), p=shares / shares.sum())


def nearest(rows: NDArray[np.float32], query: NDArray[np.float32]) -> int:
    """Return the row of the highest cosine, by the definition."""
    return int(np.argmax(rows @ query / (np.linalg.norm(rows, axis=1) * np.linalg.norm(query))))


def test_counts_are_those_of_a_loop() -> None:
    known, asked = random_codes(50), random_codes(20, seed=1)
    asked[0, 0] = 99  # a word that no known photo has
    words = fitted_words({"": known})
    counts = words.counts({"": asked})
    for row, code in np.ndindex(20, 30):
        place = np.flatnonzero(words.vocabulary[""] == code)
        expected = np.count_nonzero(asked[row] == code)
        assert counts[row, place].sum() == (expected if len(place) else 0)
    assert counts[0].sum() == 15
    assert words.dims == len(np.unique(known))


def test_weights_are_those_of_scikit_learn() -> None:
    known, asked = random_codes(200), random_codes(40, seed=1)
    words = fitted_words({"": known})
    oracle = TfidfTransformer().fit(words.counts({"": known}))
    np.testing.assert_allclose(words.idf, oracle.idf_, rtol=1e-6)  # theirs is float32
    counts = words.counts({"": asked})
    np.testing.assert_allclose(words.vectors(counts), oracle.transform(counts).toarray(), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(words.vectors(counts), axis=1), 1, atol=1e-6)


def test_what_all_photos_have_counts_least() -> None:
    """Two photos share rare words and a third the amount of background; counts alone take the background's side."""
    rng = np.random.default_rng(0)
    others = np.where(rng.random((60, 16)) < 0.5, BACKGROUND, rng.integers(10, 30, (60, 16)))
    same = np.array([[BACKGROUND] * 6 + [1] * 3 + [2] * 2 + [40, 41, 42, 43, 44]])
    query = np.array([[BACKGROUND] * 11 + [1] * 2 + [2] * 1 + [60, 61]])
    plain = np.array([[BACKGROUND] * 11 + [50, 51, 52, 53, 54]])
    known = np.concatenate([same, plain, others])
    words = fitted_words({"": known})
    rows, asked = words.counts({"": known})[:2], words.counts({"": query})[0]
    assert nearest(rows, asked) == 1  # the known wrong one: without weights
    assert nearest(words.vectors(rows), words.vectors(asked[None])[0]) == 0


def test_words_forget_where_unless_they_are_of_regions() -> None:
    codes = np.arange(16)[None]
    turned = codes.reshape(1, 4, 4)[:, ::-1].reshape(1, 16)
    known = np.concatenate([codes, turned])
    whole, parts = fitted_words({"": known}), fitted_words({"": known}, regions=2)
    assert np.array_equal(*whole.counts({"": known}))
    first, second = parts.counts({"": known})
    assert first @ second == 0  # upside down every code is in another half
    assert parts.dims == 32
    # Within a region places do not matter: the upper left quarter's four codes in another order.
    moved = codes.copy()
    moved[0, [0, 1, 4, 5]] = codes[0, [5, 4, 1, 0]]
    assert np.array_equal(parts.counts({"": moved})[0], first)


def test_regions_of_an_odd_grid_share_all_cells() -> None:
    words = fitted_words({"": np.zeros((1, 49), np.int64)}, regions=2)
    assert sorted(words.counts({"": np.zeros((1, 49), np.int64)})[0].tolist()) == [9, 12, 12, 16]


def test_one_number_on_two_levels_is_two_words() -> None:
    top, bottom = np.array([[1, 1], [2, 2]]), np.array([[2, 2, 2, 2], [1, 1, 1, 1]])
    words = fitted_words({"top": top, "bottom": bottom})
    vectors = words.vectors(words.counts({"top": top, "bottom": bottom}))
    assert words.dims == 4
    assert vectors[0] @ vectors[1] == 0
    mixed = fitted_words({"": np.concatenate([top, bottom], axis=1)})  # the known wrong one
    one, other = mixed.vectors(mixed.counts({"": np.concatenate([top, bottom], axis=1)}))
    assert one @ other > 0.5


def test_customers_are_texts_of_what_they_bought() -> None:
    """Customers with the same taste are nearest though they share no product, and so is a product of that taste."""
    rng = np.random.default_rng(0)
    tastes = {"stripes": np.arange(0, 10), "dots": np.arange(10, 20), "checks": np.arange(20, 30)}
    photos, owners = [], []
    for customer, likes in (("ann", "stripes"), ("bob", "dots"), ("cid", "stripes"), ("dan", "checks")):
        for _ in range(3):
            photos.append(rng.choice(tastes[likes], 16))
            owners.append(customer)
    codes = np.array(photos)
    words = fitted_words({"": codes})
    counts = words.counts({"": codes})
    names, sums = counts_of_owners(counts, owners)
    assert names == ["ann", "bob", "cid", "dan"]
    np.testing.assert_array_equal(sums, [counts[np.array(owners) == name].sum(axis=0) for name in names])
    vectors = words.vectors(sums)
    assert names[1 + nearest(vectors[1:], vectors[0])] == "cid"
    product = words.vectors(words.counts({"": rng.choice(tastes["dots"], (1, 16))}))[0]
    assert names[nearest(vectors, product)] == "bob"


def test_purity_and_information_are_those_of_the_textbook() -> None:
    """Manning et al. 2008, section 16.3: 17 points in three groups, purity 0.71, NMI 0.36."""
    groups = [0] * 6 + [1] * 6 + [2] * 5
    labels = list("xxxxxo" + "xooood" + "xxddd")
    found = cluster_quality(np.eye(3)[groups], labels, clusters=3, seed=0)
    assert found.purity == pytest.approx(12 / 17)
    assert found.nmi == pytest.approx(0.36, abs=0.005)
    assert found.clusters == 3
    assert found.chance < found.purity


def test_groups_of_unlike_vectors_are_pure_and_of_noise_are_not() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c", "d"], 50)
    clear = np.repeat(np.eye(4), 50, axis=0) + 0.05 * rng.normal(size=(200, 4))
    assert cluster_quality(clear, labels, seed=0).purity == 1
    noise = cluster_quality(rng.normal(size=(200, 4)), labels, seed=0)
    assert noise.purity < 0.4
    assert noise.nmi < 0.1
    # As long as it is in the same direction a vector is in the same group.
    stretched = clear * rng.uniform(0.1, 10, (200, 1))
    assert cluster_quality(stretched, labels, seed=0).purity == 1
    equal = cluster_quality(np.ones((8, 2)), list("aabbccdd"), seed=0)
    assert (equal.clusters, equal.purity) == (1, 0.25)


@pytest.mark.parametrize("two_levels", [False, True])
def test_the_words_of_a_model_are_its_codes(two_levels: bool) -> None:
    torch.manual_seed(0)
    config = VQVAE2Config(channels=(8, 8)) if two_levels else VQVAEConfig(channels=(8, 8))
    model = build_model(config, image_size=16).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8)
    levels = model_codes(model, pixels)
    assert set(levels) == ({"top", "bottom"} if two_levels else {""})
    encoded = model.encode(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())).codes
    assert encoded is not None
    np.testing.assert_array_equal(np.concatenate(list(levels.values()), axis=1), encoded)
    space = word_space("words", model, pixels[:6])
    rows = space.encode(pixels)
    assert rows.shape == (9, space.dims)
    words = fitted_words({name: codes[:6] for name, codes in levels.items()})
    np.testing.assert_array_equal(rows, words.vectors(words.counts(levels)))


def test_errors_name_the_value() -> None:
    words = fitted_words({"": random_codes(5)})
    with pytest.raises(InputError, match=r"from -1; give whole numbers from 0"):
        fitted_words({"": np.array([[-1, 2]])})
    with pytest.raises(InputError, match="none; give whole numbers"):
        fitted_words({"": np.empty((0, 4), np.int64)})
    with pytest.raises(InputError, match="regions is 0"):
        fitted_words({"": random_codes(5)}, regions=0)
    with pytest.raises(InputError, match="regions is 2, and a photo has 15 codes"):
        fitted_words({"": random_codes(5, cells=15)}, regions=2)
    with pytest.raises(InputError, match=r"levels \['top'\], the words of \[''\]"):
        words.counts({"top": random_codes(5)})
    with pytest.raises(InputError, match=r"levels have \[5, 6\] photos"):
        fitted_words({"top": random_codes(5), "bottom": random_codes(6)})
    with pytest.raises(InputError, match=r"counts are \[2, 3\]"):
        words.vectors(np.zeros((2, 3), np.float32))
    with pytest.raises(InputError, match="2 owners and 5 photos"):
        counts_of_owners(words.counts({"": random_codes(5)}), ["ann", "bob"])
    with pytest.raises(InputError, match="clusters is 6 for 5 rows"):
        cluster_quality(np.eye(5), list("abcde"), clusters=6, seed=0)
    with pytest.raises(InputError, match="4 labels do not fit"):
        cluster_quality(np.eye(5), list("abcd"), seed=0)
    with pytest.raises(InputError, match="no photos to read words from"):
        model_codes(build_model(VQVAEConfig(channels=(8, 8)), image_size=16), np.empty((0, 16, 16, 3), np.uint8))


def test_a_model_without_codes_has_no_words() -> None:
    model = build_model(SimCLRConfig(channels=(8, 8)), image_size=16).eval()
    with pytest.raises(InputError, match="SimCLR has no codes"):
        model_codes(model, np.zeros((2, 16, 16, 3), np.uint8))

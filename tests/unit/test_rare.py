"""The rare-feature test on encoders that see a logo, that do not, and that see nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.evaluation.rare import paste_logo, rare_recall


def photos(count: int = 600, size: int = 24) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 200, (count, 4, 4, 3))
    return np.kron(coarse, np.ones((1, size // 4, size // 4, 1))).astype(np.uint8)


def red_blind(pixels: np.ndarray) -> np.ndarray:
    """See the border only, where no logo is."""
    return np.asarray(pixels[:, 0].reshape(len(pixels), -1), np.float32) - 100


def redness(pixels: np.ndarray) -> np.ndarray:
    """See how much of the logo's ink there is, and a little else."""
    ink = np.all(pixels == np.array([214, 24, 48], np.uint8), axis=3).mean(axis=(1, 2))
    return np.stack([ink * 100, pixels.mean(axis=(1, 2, 3)) / 255, np.full(len(pixels), 0.2)], axis=1)


def test_only_the_named_rows_get_a_logo_inside_the_photo() -> None:
    pixels = photos(6)
    before = pixels.copy()
    pasted = paste_logo(pixels, [1, 4], side=0.25)
    assert np.array_equal(pixels, before), "a copy"
    changed = np.any(pasted != pixels, axis=(1, 2, 3))
    assert changed.tolist() == [False, True, False, False, True, False]
    touched = np.any(pasted[1] != pixels[1], axis=2)
    assert touched.sum() <= 6 * 6
    assert (pasted[1] == np.array([214, 24, 48])).all(axis=2).sum() >= 10, "ink"
    corner = paste_logo(pixels, [0], place=(1.0, 1.0))
    assert np.any(corner[0, -6:, -6:] != pixels[0, -6:, -6:])
    assert np.array_equal(corner[0, :-6], pixels[0, :-6])


def test_an_encoder_that_sees_the_logo_finds_it_and_one_that_does_not_is_at_chance() -> None:
    pixels = photos()
    seen = rare_recall(redness, pixels, share=0.02)
    assert seen.recall == 1.0
    assert seen.ahead == 1.0
    assert seen.chance == pytest.approx(11 / 599)
    assert seen.plain_recall < 0.3
    blind = rare_recall(red_blind, pixels, share=0.02)
    assert blind.recall == blind.plain_recall < 0.2
    assert blind.ahead == blind.plain_ahead == pytest.approx(0.5, abs=0.1)
    assert seen.recalls.shape == (12,)


def test_recall_is_that_of_a_plain_computation() -> None:
    pixels = photos(80)
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(24 * 24 * 3, 8))

    def encode(given: np.ndarray) -> np.ndarray:
        return np.asarray((given.reshape(len(given), -1) / 255 - 0.4) @ weights, np.float32)

    found = rare_recall(encode, pixels, share=0.1, seed=5)
    rows = np.sort(np.random.default_rng(5).permutation(80)[:8])
    vectors = encode(paste_logo(pixels, rows)).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    recalls, ahead = [], []
    for row in rows:
        near = vectors @ vectors[row]
        order = [other for other in np.argsort(-near) if other != row]
        recalls.append(np.mean(np.isin(order[:7], rows)))
        own = [near[other] for other in rows if other != row]
        ahead.append(np.mean([[a > b for b in np.delete(near, rows)] for a in own]))
    assert found.recalls.tolist() == pytest.approx(recalls)
    assert found.ahead == pytest.approx(np.mean(ahead))
    # Negative control: with the query itself among its nearest the recall is too good.
    assert np.mean([np.isin(np.argsort(-(vectors @ vectors[row]))[:8], rows).mean() for row in rows]) > found.recall


def test_collapsed_latents_are_at_chance() -> None:
    found = rare_recall(lambda given: np.ones((len(given), 4)), photos(400), share=0.1)
    assert found.recall == pytest.approx(found.chance, abs=0.06)
    assert found.ahead == 0.5


def test_too_few_photos_are_refused() -> None:
    with pytest.raises(InputError, match="3 photos are too few"):
        rare_recall(redness, photos(3))

"""How far a local edit moves latents, on encoders whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import ConfigError, InputError
from pipeline.evaluation.perturbation import edit_patch, local_movement


def photos(count: int = 300, size: int = 20) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def flat(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(pixels.reshape(len(pixels), -1), np.float32) / 255


@pytest.mark.parametrize("area", [0.05, 0.25, 1.0])
def test_each_photo_gets_a_square_of_another_photo_at_the_same_place(area: float) -> None:
    pixels = photos(40)
    edited = edit_patch(pixels, area=area, seed=3)
    side = round(20 * area**0.5)
    corners = set()
    for before, after in zip(pixels, edited, strict=True):
        rows, columns = np.nonzero(np.any(before != after, axis=2))
        top, left = rows.min(), columns.min()
        assert (rows.max() - top + 1, columns.max() - left + 1) == (side, side)
        window = np.s_[top : top + side, left : left + side]
        assert any(np.array_equal(after[window], other[window]) for other in pixels)
        corners.add((top, left))
    assert (len(corners) > 5) == (area < 1)
    assert np.array_equal(edit_patch(pixels, area=area, seed=3), edited)


def test_pixels_move_as_much_as_their_share_of_the_area() -> None:
    """Independent pixels: a share a of them becomes another photo's, so the squared movement is a of the distance."""
    found = local_movement(flat, photos(), area=0.05)
    share = 4 * 4 / 400
    assert found.moved == pytest.approx(np.sqrt(share), rel=0.03)
    assert found.found == 1.0
    whole = local_movement(flat, photos(), area=1.0)
    assert whole.moved == pytest.approx(1.0, rel=0.03)
    assert whole.found < 0.05, "negative control: another photo is not found"
    assert found.moves.shape == (300,)
    assert np.sqrt(np.square(found.moves).mean()) == pytest.approx(found.moved)


def test_encoders_that_overreact_and_that_do_not_react() -> None:
    rng = np.random.default_rng(1)
    identity = photos()
    fingerprints = {photo.tobytes(): rng.normal(size=8) for photo in identity}

    def overreacts(given: np.ndarray) -> np.ndarray:
        """Return new random latents for any photo not seen before."""
        return np.stack([fingerprints.setdefault(photo.tobytes(), rng.normal(size=8)) for photo in given])

    jumpy = local_movement(overreacts, identity)
    assert jumpy.moved == pytest.approx(1.0, abs=0.1)
    assert jumpy.share_of_units > 0.6
    assert jumpy.found < 0.05

    def half(given: np.ndarray) -> np.ndarray:
        """Keep the first half of the units, whatever the edit."""
        latents = overreacts(given)
        latents[:, :4] = overreacts(identity)[:, :4]
        return latents

    assert local_movement(half, identity).share_of_units == pytest.approx(jumpy.share_of_units / 2, abs=0.02)
    still = local_movement(lambda given: overreacts(identity), identity)
    assert still.moved == still.share_of_units == 0.0
    assert still.found == 1.0


def test_scale_and_offset_of_latents_do_not_matter() -> None:
    plain = local_movement(flat, photos())
    moved = local_movement(lambda given: flat(given) * 1000 + 7, photos())
    assert moved.moved == pytest.approx(plain.moved, rel=1e-4)
    # Negative control: a share of the latents' length would shrink with the offset.
    before, after = flat(photos()) + 7, flat(edit_patch(photos())) + 7
    assert np.linalg.norm(after - before, axis=1).mean() / np.linalg.norm(before, axis=1).mean() < plain.moved / 5


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(InputError, match="the same latents"):
        local_movement(lambda given: np.ones((len(given), 3)), photos(5))
    with pytest.raises(InputError, match="at least two"):
        edit_patch(photos(1))
    with pytest.raises(ConfigError, match="area is 0"):
        edit_patch(photos(2), area=0)

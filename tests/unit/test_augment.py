"""Light augmentation: each photo becomes a flip and shift of itself, repeatably, on bytes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from pipeline.images.augment import light

SIDE = 32
REACH = 2


def photos(count: int, height: int = SIDE, width: int = SIDE, channels: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, channels, height, width), np.uint8))


def changes_of(photo: np.ndarray, reach_y: int, reach_x: int) -> dict[bytes, tuple[int, int, bool]]:
    """Return all flips and shifts of one photo [C, H, W], by another way: pad by the edge, then cut out."""
    _, height, width = photo.shape
    padded = np.pad(photo, ((0, 0), (reach_y, reach_y), (reach_x, reach_x)), mode="edge")
    found = {}
    for down in range(2 * reach_y + 1):
        for right in range(2 * reach_x + 1):
            shifted = padded[:, down : down + height, right : right + width]
            found[shifted.tobytes()] = (down - reach_y, right - reach_x, False)
            found[shifted[:, :, ::-1].tobytes()] = (down - reach_y, right - reach_x, True)
    return found


@pytest.mark.parametrize(("height", "width", "reach"), [(32, 32, (2, 2)), (48, 16, (3, 1)), (28, 28, (1, 1))])
def test_each_photo_is_a_flip_and_shift_of_itself(height, width, reach):
    images = photos(40, height, width)
    before = images.clone()
    out = light(images)
    assert (out.shape, out.dtype, out.is_contiguous()) == (images.shape, torch.uint8, True)
    assert torch.equal(images, before)
    seen = [changes_of(one.numpy(), *reach).get(new.numpy().tobytes()) for one, new in zip(images, out, strict=True)]
    assert None not in seen
    assert len(set(seen)) > 10
    # A shift that wraps around brings the other side into view; it is none of these.
    wrapped = images[0].roll(1, dims=2).numpy()
    assert wrapped.tobytes() not in changes_of(images[0].numpy(), *reach)


def test_all_changes_come_equally_often():
    torch.manual_seed(0)
    one = photos(1)
    known = changes_of(one[0].numpy(), REACH, REACH)
    seen = Counter(known[new.numpy().tobytes()] for new in light(one.expand(5000, -1, -1, -1)))
    assert len(seen) == len(known) == 2 * 5 * 5
    assert min(seen.values()) > 50  # 100 expected, spread 10
    assert max(seen.values()) < 150


def test_the_global_generator_decides_alone():
    images = photos(16)
    torch.manual_seed(3)
    first, second = light(images), light(images)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(light(images), first)
    state = torch.get_rng_state()
    third = light(images)
    torch.set_rng_state(state)
    assert torch.equal(light(images), third)


def test_small_sides_grey_photos_and_empty_batches():
    tiny = photos(64, 8, 8)
    out = light(tiny)
    assert all(torch.equal(new, old) or torch.equal(new, old.flip(2)) for old, new in zip(tiny, out, strict=True))
    assert light(photos(5, channels=1)).shape == (5, 1, SIDE, SIDE)
    assert light(photos(0)).shape == (0, 3, SIDE, SIDE)


def test_photos_not_contiguous_give_the_same():
    images = photos(6)
    torch.manual_seed(0)
    expected = light(images)
    torch.manual_seed(0)
    assert torch.equal(light(images.to(memory_format=torch.channels_last)), expected)

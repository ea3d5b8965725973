"""Histograms of oriented gradients against scikit-image, and on pictures whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import skimage.feature
import torch
import torch.nn.functional as F

from pipeline.errors import ConfigError
from pipeline.models.backbones.hog import cell_histograms, hog


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def oracle(picture: torch.Tensor, cell: int, bins: int, block: int) -> np.ndarray:
    """Return scikit-image's blocks of one picture [3, H, W], [rows, columns, block, block, bins]."""
    return skimage.feature.hog(
        picture.double().permute(1, 2, 0).numpy(),
        orientations=bins,
        pixels_per_cell=(cell, cell),
        cells_per_block=(block, block),
        block_norm="L2",
        feature_vector=False,
        channel_axis=-1,
    )


def averaged(blocks: np.ndarray) -> np.ndarray:
    """Return every cell's mean over the blocks that hold it, [bins, h, w]."""
    rows, columns, _, _, bins = blocks.shape
    total, number = np.zeros((rows + 1, columns + 1, bins)), np.zeros((rows + 1, columns + 1, 1))
    for row, column in np.ndindex(rows, columns):
        total[row : row + 2, column : column + 2] += blocks[row, column]
        number[row : row + 2, column : column + 2] += 1
    return (total / number).transpose(2, 0, 1)


def pictures(kind: str, size: int) -> torch.Tensor:
    if kind == "colour":
        return torch.rand(3, 3, size, size)
    grey = F.interpolate(torch.rand(3, 1, 5, 5), size=(size, size), mode="bilinear").clamp(0, 1)
    return ((grey - 0.3).clamp(0, 1) * 255).round().div(255).expand(-1, 3, -1, -1)  # bytes, with flat regions


# Not 12 bins of bytes: there 45 degrees, which bytes often have, is a bound between bins.
@pytest.mark.parametrize(
    ("kind", "size", "cell", "bins"),
    [("colour", 28, 4, 9), ("grey", 28, 4, 9), ("grey", 64, 8, 9), ("colour", 64, 8, 12)],
)
def test_it_equals_scikit_image(kind: str, size: int, cell: int, bins: int) -> None:
    photos = pictures(kind, size)
    found = hog(photos, cell, bins, floor=1e-5)
    assert found.shape == (3, bins, size // cell, size // cell)
    single = cell_histograms(photos, cell, bins)
    scaled = single * torch.rsqrt(single.square().sum(dim=1, keepdim=True) + 1e-10)
    for photo in range(3):
        alone = oracle(photos[photo], cell, bins, 1)[:, :, 0, 0].transpose(2, 0, 1)
        np.testing.assert_allclose(scaled[photo].numpy(), alone, rtol=0, atol=1e-5)
        np.testing.assert_allclose(
            found[photo].numpy(), averaged(oracle(photos[photo], cell, bins, 2)), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("degrees", [0, 30, 75, 90, 135, 179])
def test_a_slope_falls_into_the_bin_of_its_direction(degrees: int) -> None:
    places = torch.arange(16.0)
    angle = math.radians(degrees)
    slope = 0.5 + 0.02 * (math.sin(angle) * (places[:, None] - 8) + math.cos(angle) * (places[None] - 8))
    inner = hog(slope.expand(1, 3, 16, 16), 4, 9)[0, :, 1:3, 1:3]
    assert (inner.argmax(dim=0) == degrees // 20).all()
    assert (inner.amax(dim=0) / inner.sum(dim=0)).min() > 0.99


def test_light_and_dark_swapped_is_the_same() -> None:
    photos = (torch.rand(2, 3, 16, 16) * 255).round() / 256  # the difference to 1 is exact
    assert torch.equal(hog(photos), hog(1 - photos))
    down, right = torch.rand(100) - 0.5, torch.rand(100) - 0.5
    signed = [((torch.atan2(s * down, s * right) / (2 * math.pi) * 9) % 9).long() for s in (1, -1)]
    assert not torch.equal(*signed)  # the control: orientations over 360 degrees


def test_noise_on_a_white_ground_stays_small_and_contrast_hardly_counts() -> None:
    white = (1 - torch.randint(0, 2, (1, 3, 32, 32)) / 255).float()
    assert hog(white).square().sum(dim=1).sqrt().mean() < 0.2
    assert hog(white, floor=1e-5).square().sum(dim=1).sqrt().mean() > 0.4  # the control: the floor of scikit-image
    photo = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(hog(0.5 * photo), hog(photo), rtol=0, atol=0.02)
    assert hog(photo).square().sum(dim=1).max() <= 1.0
    assert torch.equal(hog(torch.ones(1, 3, 16, 16)), torch.zeros(1, 9, 4, 4))


@pytest.mark.parametrize(("size", "cell"), [(28, 8), (16, 16)])
def test_cells_that_do_not_fit_are_refused(size: int, cell: int) -> None:
    with pytest.raises(ConfigError, match=f"cells of {cell} pixels"):
        hog(torch.rand(1, 3, size, size), cell)


def test_it_computes_in_float32_under_autocast() -> None:
    photos = torch.rand(2, 3, 16, 16)
    expected = hog(photos)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(hog(photos), expected)

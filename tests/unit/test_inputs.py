"""What a backbone sees: pixels, brightness or oriented gradients, and a two-view model that learns from the last."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.feature
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.models import Batch, Model, Step, build_model
from pipeline.models.backbones.hog import FLOOR
from pipeline.models.backbones.inputs import Inputs
from pipeline.models.backbones.resnet import ResNet
from pipeline.models.base import to_float, to_grey
from pipeline.models.moco import MoCo, MoCoConfig
from pipeline.models.simclr import SimCLR, SimCLRConfig

GRADIENTS = SimCLRConfig(channels=(8, 16), projector=(16, 8), input="gradients")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def photos(size: int = 28, count: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def made(config: SimCLRConfig | MoCoConfig, size: int = 28) -> SimCLR | MoCo:
    torch.manual_seed(0)
    model: Model = build_model(config, image_size=size)
    assert isinstance(model, SimCLR | MoCo)
    return model


def oracle(picture: np.ndarray, cell: int) -> np.ndarray:
    """Return the histograms [9, h, w] of a picture [H, W] in 0..1: scikit-image's cells, scaled by blocks in a loop."""
    single = skimage.feature.hog(
        picture.astype(np.float64),
        orientations=9,
        pixels_per_cell=(cell, cell),
        cells_per_block=(1, 1),
        block_norm="L1",  # which of the single cell can be taken back: times its sum
        feature_vector=False,
    )[:, :, 0, 0]
    down, right = np.zeros_like(picture, np.float64), np.zeros_like(picture, np.float64)
    down[1:-1], right[:, 1:-1] = picture[2:] - picture[:-2], picture[:, 2:] - picture[:, :-2]
    side = len(picture) // cell
    sums = np.hypot(down, right).reshape(side, cell, side, cell).mean(axis=(1, 3))
    cells = single * sums[:, :, None]
    total, number = np.zeros((side, side, 1)), np.zeros((side, side, 1))
    for row, column in np.ndindex(side - 1, side - 1):
        block = np.s_[row : row + 2, column : column + 2]
        total[block] += 1 / np.sqrt((cells[block] ** 2).sum() + FLOOR**2)
        number[block] += 1
    found: np.ndarray = (cells * total / number).transpose(2, 0, 1)
    return found


@pytest.mark.parametrize(("size", "cell", "side"), [(28, 4, 7), (64, 4, 16), (64, 8, 8), (28, 2, 14)])
def test_gradients_are_scikit_images_at_the_side_of_the_cells(size: int, cell: int, side: int) -> None:
    inputs = Inputs("gradients", grey=True, cell=cell)
    assert (inputs.channels, inputs.side(size)) == (9, side)
    pictures = to_float(photos(size))
    found = inputs(pictures)
    assert found.shape == (4, 9, side, side)
    for row in range(4):
        expected = oracle(to_grey(pictures)[row, 0].numpy(), cell)
        np.testing.assert_allclose(found[row].numpy(), expected, rtol=0, atol=1e-4)


def test_pixels_go_in_as_they_are_or_as_brightness() -> None:
    pictures = to_float(photos())
    assert Inputs()(pictures) is pictures
    assert (Inputs().channels, Inputs().side(28)) == (3, 28)
    assert torch.equal(Inputs(grey=True)(pictures), to_grey(pictures))
    assert Inputs(grey=True).channels == 1
    assert Inputs("gradients", bins=6)(pictures).shape == (4, 6, 7, 7)


@pytest.mark.parametrize("config", [GRADIENTS, MoCoConfig(channels=(8, 16), projector=(16, 8), input="gradients")])
def test_a_two_view_model_sees_contours_not_light(config: SimCLRConfig | MoCoConfig) -> None:
    model = made(config).eval()
    assert model.network.stem[0].in_channels == 9
    assert [one.shape[-1] for one in model.maps(to_float(photos()))] == [4, 2]
    smooth = torch.nn.functional.interpolate(photos(28, 8).float(), size=7, mode="bilinear", antialias=True)
    images = torch.nn.functional.interpolate(smooth, size=28, mode="bicubic").clamp(0, 254).to(torch.uint8)
    negative = 255 - images
    found, other = model.encode(images).mean, model.encode(negative).mean
    torch.testing.assert_close(other, found, rtol=1e-3, atol=1e-3)
    pixels = made(config.model_copy(update={"input": "pixels"})).eval()  # the control sees light
    assert (pixels.encode(images).mean - pixels.encode(negative).mean).abs().max() > 0.1
    features = model.network(Inputs("gradients")(to_float(images)))
    torch.testing.assert_close(found, features.mean(dim=(2, 3)), rtol=1e-5, atol=1e-6)


def test_the_views_are_of_the_photos_and_training_sees_their_gradients() -> None:
    model = made(GRADIENTS)
    torch.manual_seed(3)
    views = model.augmented(photos())
    pixels = made(GRADIENTS.model_copy(update={"input": "pixels"}))
    torch.manual_seed(3)
    assert torch.equal(views, pixels.augmented(photos()))
    assert views.shape == (8, 3, 28, 28)
    assert views.dtype == torch.uint8
    seen: list[Tensor] = []
    model.network.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    model(Batch(views), Step(0, 10)).total.backward()
    assert torch.equal(seen[0], Inputs("gradients")(to_float(views)))


def test_a_gradient_passes_to_pictures_also_where_they_are_flat() -> None:
    """For a perceptual loss over such a model's maps; the length's derivative is 0 / 0 where nothing changes."""
    model = made(GRADIENTS).eval()
    pictures = torch.ones(1, 3, 28, 28)
    pictures[:, :, 8:20, 8:20] = 0.3
    pictures.requires_grad_()
    model.maps(pictures)[-1].sum().backward()
    assert pictures.grad is not None
    assert torch.isfinite(pictures.grad).all()
    assert pictures.grad.abs().max() > 0
    wrong = torch.zeros(2, requires_grad=True)  # the control
    torch.hypot(wrong[:1], wrong[1:]).sum().backward()
    assert wrong.grad is not None
    assert wrong.grad.isnan().all()


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.cell is 8.*28 pixels.*one of 1, 2, 4, 7, 14$"):
        made(GRADIENTS.model_copy(update={"cell": 8}))
    with pytest.raises(ConfigError, match=r"single cell of the 7 x 7.*at most 2, or 3 with model.whole_first"):
        made(GRADIENTS.model_copy(update={"channels": (8, 16, 32)}))
    assert made(GRADIENTS.model_copy(update={"channels": (8, 16, 32), "whole_first": True})).network.grid == 2
    with pytest.raises(ConfigError, match=r"30.*multiple of 4"):
        ResNet(30, (8,), side=10)
    with pytest.raises(ConfigError, match=r"4 x 4.*at most 2$"):
        ResNet(16, (8,) * 3, side=4, whole_first=True)

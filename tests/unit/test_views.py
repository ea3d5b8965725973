"""Two views of a photo: each change against torchvision's of one photo, and what the switches leave alone."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.images import augment
from pipeline.images.augment import ViewsConfig, two_views

STILL = ViewsConfig(min_area=1.0, flip=False, brightness=0.0, contrast=0.0)
FACTORS = torch.tensor([0.6, 0.8, 1.0, 1.1, 1.4])


def photos(count: int = 5, side: int = 28) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def pictures(count: int = 5, side: int = 28) -> Tensor:
    return photos(count, side).float() / 255.0


def by_torchvision(name: str, values: Tensor, factors: Tensor) -> Tensor:
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    return torch.stack(
        [getattr(functional, name)(one, factor) for one, factor in zip(values, factors.tolist(), strict=True)]
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (augment.brightened, "adjust_brightness"),
        (augment.contrasted, "adjust_contrast"),
        (augment.saturated, "adjust_saturation"),
    ],
)
def test_light_and_colours_are_torchvisions(ours, theirs):
    expected = by_torchvision(theirs, pictures(), FACTORS)
    torch.testing.assert_close(
        ours(pictures(), FACTORS), expected, rtol=0, atol=1e-3
    )  # it has 0.2989 and 0.587 of grey
    control = ours(pictures(), FACTORS[:1].expand(5))  # one factor for all photos
    assert (control - expected).abs().max() > 0.05


def test_blur_is_torchvisions():
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    sigmas, values = torch.tensor([0.1, 0.5, 1.0, 1.5, 2.0]), pictures(5, 64)
    expected = torch.stack(
        [functional.gaussian_blur(one, [7, 7], [float(sigma)] * 2) for one, sigma in zip(values, sigmas, strict=True)]
    )
    torch.testing.assert_close(augment.blurred(values, sigmas), expected, rtol=0, atol=1e-5)


def test_hues_turn_by_the_angle_and_greys_stay():
    pure = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.5, 0.5, 0.5]])
    mixed = 0.5 + 0.2 * (pure - pure.mean(dim=1, keepdim=True))  # far enough inside 0..1 that nothing is cut
    values = mixed[:, :, None, None].expand(-1, -1, 2, 2)
    third = torch.full((4,), 1 / 3)
    back = augment.turned(augment.turned(values, third), -third)
    torch.testing.assert_close(back, values, rtol=0, atol=1e-5)
    whole = augment.turned(augment.turned(augment.turned(values, third), third), third)
    torch.testing.assert_close(whole, values, rtol=0, atol=1e-5)
    changed = augment.turned(values, third) - values
    assert changed[:3].abs().amax(dim=(1, 2, 3)).min() > 0.1
    assert changed[3].abs().max() < 1e-6
    luma = values.new_tensor([0.299, 0.587, 0.114])
    torch.testing.assert_close((changed[:, :, 0, 0] * luma).sum(dim=1), torch.zeros(4), rtol=0, atol=1e-3)


def test_a_crop_shows_that_part_of_the_photo():
    """On a photo whose values are its coordinates, every pixel of a crop says where it comes from."""
    side = 32
    at = (torch.arange(side) + 0.5) / side
    across, down = at[None, :].expand(side, -1), at[:, None].expand(-1, side)
    values = torch.stack([across, down, across]).expand(3, -1, -1, -1)
    width, height = torch.tensor([1.0, 0.5, 0.8]), torch.tensor([1.0, 0.75, 0.8])
    left, top = torch.tensor([0.0, 0.25, 0.2]), torch.tensor([0.0, 0.25, 0.1])
    flip = torch.tensor([False, False, True])
    found = augment.cropped(values, width, height, left, top, flip=flip)
    for row in range(3):
        expected = left[row] + width[row] * (at.flip(0) if flip[row] else at)
        inside = (expected > at[0]) & (expected < at[-1])  # the half pixel at the rim repeats the edge
        torch.testing.assert_close(found[row, 0, 5][inside], expected[inside], rtol=0, atol=1e-5)
        expected = top[row] + height[row] * at
        inside = (expected > at[0]) & (expected < at[-1])
        torch.testing.assert_close(found[row, 1, :, 5][inside], expected[inside], rtol=0, atol=1e-5)


@pytest.mark.parametrize("least", [0.1, 0.3, 0.9, 1.0])
def test_crops_lie_inside_and_have_the_area_and_shape_that_was_asked_for(least):
    drawn = torch.rand(4, 4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    width, height, left, top = augment.crop_boxes(*drawn, least)
    area = width * height
    assert area.min() >= least - 1e-9
    assert area.max() <= 1 + 1e-9
    assert area.mean() == pytest.approx((1 + least) / 2, abs=0.02)
    for begin, length in ((left, width), (top, height)):
        assert begin.min() >= -1e-9
        assert (begin + length).max() <= 1 + 1e-9
    aspect = width / height
    assert aspect.max() <= 4 / 3 + 1e-9
    assert aspect.log().mean() == pytest.approx(0, abs=0.02)


def test_without_changes_the_views_are_the_photo():
    images = photos()
    assert torch.equal(two_views(images, STILL), torch.cat([images, images]))


def test_views_differ_from_each_other_and_keep_shape_type_and_input():
    images = photos()
    before = images.clone()
    found = two_views(images, ViewsConfig(colour=True, blur=True))
    assert (found.shape, found.dtype, found.device) == ((10, 3, 28, 28), torch.uint8, images.device)
    assert torch.equal(images, before)
    assert (found[:5] != found[5:]).flatten(1).any(dim=1).all()


def test_only_colour_touches_colour():
    """Without the switch what is red in the catalogue is red in every view."""
    red = torch.tensor([160, 40, 40], dtype=torch.uint8)[None, :, None, None].expand(200, -1, 8, 8)

    def hue_spread(colour: bool) -> float:
        torch.manual_seed(0)
        found = two_views(red, ViewsConfig(contrast=0.0, colour=colour)).float().mean(dim=(2, 3))
        return float((found[:, 0] / found[:, 1]).std())

    assert hue_spread(colour=False) < 0.2
    assert hue_spread(colour=True) > 0.5


def test_switching_one_change_off_leaves_the_others():
    torch.manual_seed(0)
    both = two_views(photos(50), STILL.model_copy(update={"flip": True, "brightness": 0.4}))
    torch.manual_seed(0)
    flipped = two_views(photos(50), STILL.model_copy(update={"flip": True}))
    images = torch.cat([photos(50), photos(50)])
    was_flipped = torch.tensor([torch.equal(new, old.flip(2)) for new, old in zip(flipped, images, strict=True)])
    assert 30 < was_flipped.sum() < 70
    brighter = both.float().flatten(1).mean(dim=1) / flipped.float().flatten(1).mean(dim=1)
    assert brighter.min() < 0.75
    assert brighter.max() > 1.15


def test_the_global_generator_decides_alone():
    torch.manual_seed(3)
    first, second = two_views(photos(), ViewsConfig()), two_views(photos(), ViewsConfig())
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(two_views(photos(), ViewsConfig()), first)


def test_wrong_settings_are_refused():
    for wrong in ({"min_area": 0.0}, {"min_area": 1.5}, {"brightness": -0.1}, {"jitter": True}):
        with pytest.raises(ValidationError):
            ViewsConfig.model_validate(wrong)

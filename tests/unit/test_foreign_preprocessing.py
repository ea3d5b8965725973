"""Photos are shown to a pretrained network as its own library shows them, within one grey level."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import ValidationError
from torchvision.transforms import v2 as transforms
from torchvision.transforms.functional import InterpolationMode

from pipeline.images import ImagesConfig, decode
from pipeline.images.probe import probe_picture, probe_pixels
from pipeline.models.foreign.preprocessing import PreprocessingConfig, Values
from pipeline.models.foreign.recipes import RECIPES

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def png(pixels: np.ndarray) -> bytes:
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "PNG")
    return written.getvalue()


def apart(ours: np.ndarray, theirs: Any) -> int:
    return int(np.abs(ours.astype(int) - np.asarray(theirs).astype(int)).max())


def picture(height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(probe_pixels()).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(("height", "width"), [(560, 420), (301, 467), (240, 240), (200, 333)])
@pytest.mark.parametrize(
    ("size", "resized", "resample"), [(96, 110, "bilinear"), (96, 96, "bicubic"), (64, 73, "lanczos")]
)
def test_a_crop_is_torchvisions(height: int, width: int, size: int, resized: int, resample: str) -> None:
    pixels = picture(height, width)
    modes = {mode.value: mode for mode in InterpolationMode}
    theirs = transforms.Compose(
        [transforms.Resize(resized, modes[resample], antialias=True), transforms.CenterCrop(size)]
    )(Image.fromarray(pixels))
    config = ImagesConfig(size=size, fit="crop", crop_share=size / resized, resample=resample)
    assert apart(decode(png(pixels), config), theirs) <= 1
    other = config.model_copy(update={"resample": "box"})
    assert apart(decode(png(pixels), other), theirs) > 8  # the comparison sees another filter


@pytest.mark.parametrize(("height", "width"), [(560, 420), (301, 467)])
@pytest.mark.parametrize(("crop_pct", "interpolation"), [(0.875, "bicubic"), (0.95, "bilinear"), (1.0, "bicubic")])
def test_a_crop_is_timms(height: int, width: int, crop_pct: float, interpolation: str) -> None:
    pixels = picture(height, width)
    theirs = timm.data.create_transform(
        (3, 96, 96), is_training=False, crop_pct=crop_pct, interpolation=interpolation, **IMAGENET
    )(Image.fromarray(pixels))
    config = PreprocessingConfig(size=96, fit="crop", resample=interpolation, crop_share=crop_pct, **IMAGENET)
    ours = torch.tensor(decode(png(pixels), config.transform(ImagesConfig()))).permute(2, 0, 1)[None] / 255.0
    assert (Values(config)(ours)[0] - theirs).abs().max() <= 1.01 / 255 / min(IMAGENET["std"])


@pytest.mark.parametrize("resample", ["nearest", "box", "bilinear", "bicubic", "lanczos"])
def test_stretching_is_pillows(resample: str) -> None:
    pixels = picture(300, 210)
    theirs = Image.fromarray(pixels).resize((96, 96), Image.Resampling[resample.upper()])
    ours = decode(png(pixels), ImagesConfig(size=96, fit="stretch", resample=resample))
    assert apart(ours, theirs) <= 1


def test_without_antialiasing_it_is_the_interpolation_of_tensors() -> None:
    pixels = picture(300, 210)
    given = torch.tensor(pixels).permute(2, 0, 1)[None].float()
    theirs = F.interpolate(given, size=(96, 96), mode="bilinear", antialias=False)[0].permute(1, 2, 0).round()
    config = ImagesConfig(size=96, fit="stretch", resample="bilinear", antialias=False)
    assert apart(decode(png(pixels), config), theirs) <= 1
    assert apart(decode(png(pixels), config.model_copy(update={"antialias": True})), theirs) > 20
    jpeg = io.BytesIO()
    Image.fromarray(picture(1120, 840)).save(jpeg, "JPEG", quality=95)
    whole = np.asarray(Image.open(jpeg)).copy()
    # A JPEG decoded at a reduced scale would be smoothed, which antialiasing alone may do.
    assert apart(decode(jpeg.getvalue(), config), decode(png(whole), config)) <= 1


def test_values_are_those_of_the_papers() -> None:
    pictures = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    lite0 = RECIPES["efficientnet_lite0"].preprocessing
    found = Values(PreprocessingConfig.model_validate(lite0))(pictures)
    torch.testing.assert_close(found, (pictures * 255 - 127) / 128, rtol=0, atol=1e-6)
    scaled = {"size": 8, "fit": "pad", "resample": "box", "mean": -3 / 0.02, "std": 1 / 0.02, "value_range": 255}
    found = Values(PreprocessingConfig.model_validate({**scaled, "channels": "bgr"}))(pictures)
    torch.testing.assert_close(found, pictures[:, [2, 1, 0]] * 255 * 0.02 + 3, rtol=0, atol=1e-5)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"crop_share is 0\.9 and fit is 'pad'"):
        ImagesConfig(crop_share=0.9)
    with pytest.raises(ValidationError, match="antialias is off and resample is 'lanczos'"):
        ImagesConfig(antialias=False, resample="lanczos")
    for name, row in RECIPES.items():
        assert PreprocessingConfig.model_validate(row.preprocessing).transform(ImagesConfig()).size > 0, name


def test_the_probe_is_the_same_everywhere() -> None:
    assert int(probe_pixels().astype(np.int64).sum()) == 95907524
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(probe_picture()))), probe_pixels())

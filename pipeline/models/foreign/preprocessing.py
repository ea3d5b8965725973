"""How a network wants to be shown photos: the geometry, which decoding does, and the values, which the network does."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from ...images import ImagesConfig
from ...images.config import Fit, Resample

Three = tuple[float, float, float]


class PreprocessingConfig(BaseModel):
    """How photos become a network's input; the words of the geometry are those of `images`.

    size, fit, resample, antialias, crop_share: as in the section `images`. mean, std: what is taken off the values of
    each channel and what they are divided by, one number or three, in the order of `channels`. value_range: what white
    is before that: 1 for most networks, 255 for a few; a network that wants `pixel * scale + offset` has value_range
    255, mean -offset / scale and std 1 / scale. channels: the order in which the network takes the colours.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    size: int = Field(ge=8, le=1024)
    fit: Fit
    resample: Resample
    antialias: bool = True
    crop_share: float | None = Field(default=None, gt=0, le=1)
    mean: Three
    std: Three
    value_range: Literal[1, 255] = 1
    channels: Literal["rgb", "bgr"] = "rgb"

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _of_each_channel(cls, value: object) -> object:
        return (value, value, value) if isinstance(value, int | float) else value

    @field_validator("std")
    @classmethod
    def _divides(cls, value: Three) -> Three:
        if not all(abs(number) > 0 for number in value):
            raise ValueError(f"std is {list(value)}, and nothing can be divided by 0; name the network's own")
        return value

    def transform(self, images: ImagesConfig) -> ImagesConfig:
        """Return how photos are decoded for the network, with the limits of a run's own section."""
        return ImagesConfig(
            size=self.size,
            fit=self.fit,
            resample=self.resample,
            antialias=self.antialias,
            crop_share=self.crop_share,
            max_pixels=images.max_pixels,
            max_bytes=images.max_bytes,
        )


class Values(nn.Module):
    """Pictures float [B, 3, H, W] in 0..1, red first, to a network's input of the same shape; part of a bundle."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: PreprocessingConfig) -> None:
        super().__init__()
        # In numbers of 0..1, so that one formula serves both ranges.
        self.register_buffer("mean", _column(config.mean) / config.value_range)
        self.register_buffer("std", _column(config.std) / config.value_range)
        self.turned = config.channels == "bgr"

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the network's input."""
        return ((pictures.flip(1) if self.turned else pictures) - self.mean) / self.std


def _column(numbers: Three) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64).view(1, 3, 1, 1).float()

"""Targets: what a reconstructing model brings back of a photo, its pixels, oriented gradients or frozen features.

Pixels alone spend the latents on light and folds; gradients and features ask for shape and kind.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .base import Target
from .features import Features, FeatureTarget
from .hog import Hog, HogTarget
from .pixels import PerceptualConfig, Pixels, PixelTarget

TargetConfig = Annotated[PixelTarget | HogTarget | FeatureTarget, Field(discriminator="kind")]

__all__ = [
    "FeatureTarget",
    "HogTarget",
    "PerceptualConfig",
    "PixelTarget",
    "Target",
    "TargetConfig",
    "build_target",
]


def build_target(config: PixelTarget | HogTarget | FeatureTarget, image_size: int, *, grey: bool = False) -> Target:
    """Return a target for square photos of `image_size` pixels; nothing is read, a frozen encoder comes later.

    grey: the model sees and draws brightness only. Raises ConfigError for a size that the target cannot take.
    """
    if isinstance(config, PixelTarget):
        return Pixels(config, image_size, grey=grey)
    if isinstance(config, HogTarget):
        return Hog(config, image_size, grey=grey)
    return Features(config, image_size)

"""Targets: what a reconstructing model brings back of a photo, its pixels, oriented gradients or frozen features.

Pixels alone spend the latents on light and folds; gradients and features ask for shape and kind.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .base import Target, TargetBase
from .features import Features, FeatureTarget, TeacherFeatures
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
    "TeacherFeatures",
    "build_target",
    "check_named",
]


def check_named(target: TargetBase) -> None:
    """Raise ValueError for a target of features of nobody: only a model that sees features need not say whose."""
    if isinstance(target, FeatureTarget) and target.encoder is None and target.teacher is None:
        raise ValueError(
            "target features names neither a teacher nor an encoder; set target.teacher to a model_id or to the config "
            "of a pretrained model"
        )


def build_target(config: PixelTarget | HogTarget | FeatureTarget, image_size: int, *, grey: bool = False) -> Target:
    """Return a target for square photos of `image_size` pixels; nothing is read, a frozen encoder comes later.

    grey: the model sees and draws brightness only. Raises ConfigError for a size that the target cannot take.
    """
    if isinstance(config, PixelTarget):
        return Pixels(config, image_size, grey=grey)
    if isinstance(config, HogTarget):
        return Hog(config, image_size, grey=grey)
    if config.encoder is None:
        return TeacherFeatures(config)
    return Features(config, config.encoder, image_size)

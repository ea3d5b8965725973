"""The photo itself as the target, with a perceptual term where one is asked for."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from ...errors import ConfigError
from ...losses import Reconstruction, feature_distance, reconstruction_loss
from ...losses.precision import widened
from ..base import to_grey
from ..frozen import FrozenConfig, FrozenEncoder
from .base import Target, TargetBase


class PerceptualConfig(BaseModel):
    """A distance of frozen features beside the pixels' (Johnson et al. 2016, arXiv 1603.08155).

    weight: multiplies `feature_distance`, a mean over positions, times the number of values of a picture, so that it
    keeps its share beside losses that are summed over the picture.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    weight: float = Field(0.1, gt=0)
    encoder: FrozenConfig


class PixelTarget(TargetBase):
    """loss: `bce`, `mse` or `ssim`, each on the scale of a sum over the picture. ssim_window: side of its window."""

    kind: Literal["pixels"] = "pixels"
    loss: Reconstruction = "bce"
    ssim_window: int = Field(default=11, ge=3)
    perceptual: PerceptualConfig | None = None

    @field_validator("ssim_window")
    @classmethod
    def _odd(cls, window: int) -> int:
        if window % 2 == 0:
            raise ValueError(f"ssim_window is {window}; it must be odd, for example 11 or 5")
        return window

    def frozen(self) -> FrozenConfig | None:
        """Return the encoder of the perceptual term, or None."""
        return None if self.perceptual is None else self.perceptual.encoder


class Pixels(Target):
    """Outputs are logits of pictures, float [B, 3, H, W], or [B, 1, H, W] where the model is grey."""

    def __init__(self, config: PixelTarget, image_size: int, *, grey: bool = False) -> None:
        super().__init__()
        if config.loss == "ssim" and config.ssim_window > image_size:
            raise ConfigError(
                f"ssim_window is {config.ssim_window}, more than the photos' {image_size} pixels; name at most "
                f"{image_size - 1 + image_size % 2}"
            )
        self.config = config
        self.channels = 1 if grey else 3
        self.size = image_size
        self._frozen: tuple[FrozenEncoder, ...] = ()  # in a tuple: never a submodule, so never state or a parameter

    def loss(self, outputs: Tensor, pictures: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss; parts `reconstruction` and, where asked for, `perceptual` (weighted)."""
        target = to_grey(pictures) if self.channels == 1 else pictures
        total = reconstruction_loss(self.config.loss, outputs, target, ssim_window=self.config.ssim_window)
        parts = {"reconstruction": total.detach()}
        if self.config.perceptual is not None:
            distance = self._distance(self.picture(outputs), target)
            term = self.config.perceptual.weight * target[0].numel() * distance
            parts["perceptual"] = term.detach()
            total = total + term
        return total, parts

    def picture(self, outputs: Tensor) -> Tensor:
        """Return the pictures of logits, float32 [B, 3, H, W]; a grey one three times over."""
        made = torch.sigmoid(widened(outputs))
        return made.expand(-1, 3, -1, -1)

    def use_frozen(self, frozen: FrozenEncoder) -> None:
        """Take the encoder of the perceptual term. Raises ConfigError where the configuration has none."""
        if self.config.perceptual is None:
            super().use_frozen(frozen)
        self._frozen = (frozen,)

    def _distance(self, made: Tensor, target: Tensor) -> Tensor:
        if not self._frozen:
            raise ConfigError("the perceptual term has no encoder yet: give model.use_frozen what load_frozen returned")
        with torch.no_grad():
            wanted = self._frozen[0].maps(target.expand(-1, 3, -1, -1))
        return feature_distance(self._frozen[0].maps(made), wanted)

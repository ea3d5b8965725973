"""Oriented gradients of the photo as the target (MaskFeat, Wei et al. 2021, arXiv 2112.09133)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ...errors import ConfigError
from ...losses import mse
from ..backbones.hog import hog
from ..base import to_grey
from .base import Target, TargetBase


class HogTarget(TargetBase):
    """cell: side of a cell in pixels. bins: orientations in 0..180 degrees.

    weight: multiplies the squared error summed over a photo's cells and bins. It is 1 / (2 sigma^2) of a Gaussian
    decoder with the standard deviation sigma, so that beside it a KL is in nats: 30 says that a bin, of which a
    cell's vector is at most 1 long, is known to about 0.13.
    """

    kind: Literal["hog"] = "hog"
    cell: int = Field(4, ge=2)
    bins: int = Field(9, ge=2)
    weight: float = Field(30.0, gt=0)


class Hog(Target):
    """Outputs are the histograms, float [B, bins, H / cell, W / cell]. grey: of the photos' brightness alone."""

    def __init__(self, config: HogTarget, image_size: int, *, grey: bool = False) -> None:
        super().__init__()
        if image_size % config.cell or image_size < 2 * config.cell:
            raise ConfigError(
                f"target.cell is {config.cell}, which does not divide photos of {image_size} pixels into at least "
                "2 x 2 cells; name a divisor, for example 4"
            )
        self.config = config
        self.channels = config.bins
        self.size = image_size // config.cell
        self.grey = grey

    def loss(self, outputs: Tensor, pictures: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted squared error; part `reconstruction`."""
        with torch.no_grad():
            target = hog(to_grey(pictures) if self.grey else pictures, self.config.cell, self.config.bins)
        total = self.config.weight * mse(outputs, target)
        return total, {"reconstruction": total.detach()}

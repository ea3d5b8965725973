"""What a backbone sees of a photo: its colours, its brightness, or its oriented gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ...errors import ConfigError
from ..base import to_grey
from .hog import hog

Seen = Literal["pixels", "gradients"]


@dataclass(frozen=True, slots=True)
class Inputs:
    """How pictures float [B, 3, H, W] in 0..1 go into a backbone; nothing of it is learnt.

    seen: `pixels`, or `gradients`, histograms of the gradients' orientations (Dalal and Triggs 2005, see hog.hog) of
    `bins` directions, one a cell of `cell` x `cell` pixels. grey: of the brightness alone. cell and bins count for
    gradients only.
    """

    seen: Seen = "pixels"
    grey: bool = False
    cell: int = 4
    bins: int = 9

    @property
    def channels(self) -> int:
        """Channels of what goes in."""
        if self.seen == "gradients":
            return self.bins
        return 1 if self.grey else 3

    def side(self, image_size: int) -> int:
        """Return the side of what goes in of photos of image_size pixels.

        Raises ConfigError where cells do not divide the photos into at least 2 x 2.
        """
        if self.seen == "pixels":
            return image_size
        fitting = [cell for cell in range(1, image_size // 2 + 1) if image_size % cell == 0]
        if self.cell not in fitting:
            raise ConfigError(
                f"model.cell is {self.cell}, which does not divide photos of {image_size} pixels (images.size) into at "
                f"least 2 x 2 cells; name one of {', '.join(map(str, fitting))}"
            )
        return image_size // self.cell

    def __call__(self, pictures: Tensor) -> Tensor:
        """Return what goes in, float [B, channels, side, side]."""
        if self.grey:
            pictures = to_grey(pictures)
        return hog(pictures, self.cell, self.bins) if self.seen == "gradients" else pictures

"""A classical descriptor as a model like any other: gradient histograms or pixels, then principal components.

Nothing is learnt by gradients. It is the floor that a trained model has to beat at equal dimensions, in a bundle that
can be released and fused with others. The numbers are those of `evaluation.baselines`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..errors import ConfigError
from .backbones import check_image_size
from .backbones.hog import block_histograms
from .base import Batch, Latents, Losses, Model, ModelConfig, Step, to_grey
from .readout import Reduction, ReductionConfig

_MOST = 16_384  # numbers whose exact PCA still takes minutes, not hours


class DescriptorReadOutConfig(ReductionConfig):
    """dims: components that are kept, null for all numbers. See ReductionConfig for the other fields."""

    dims: int | None = Field(default=64, ge=1)


class DescriptorConfig(ModelConfig):
    """features: `hog`, histograms of oriented gradients (Dalal and Triggs 2005), or `pixels`, values in 0..1.

    Of `hog`: cells of `cell` pixels, blocks of block x block cells, `bins` directions. grey: of the brightness alone;
    without it the channel with the strongest gradient counts at every pixel. read_out: the PCA, fitted on training
    photos.
    """

    kind: Literal["descriptor"] = "descriptor"
    features: Literal["hog", "pixels"] = "hog"
    cell: int = Field(default=4, ge=1)
    block: int = Field(default=2, ge=1)
    bins: int = Field(default=9, ge=2)
    grey: bool = False
    read_out: DescriptorReadOutConfig = DescriptorReadOutConfig()


class Descriptor(Model):
    """Features of a fixed formula and their principal components; has buffers and no parameters."""

    trains: ClassVar[bool] = False

    def __init__(self, config: DescriptorConfig, image_size: int) -> None:
        super().__init__()
        check_image_size(image_size)
        self.config = config
        self.image_size = image_size
        number = self.features(torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8)).shape[1]
        if number > _MOST:
            raise ConfigError(
                f"model.features {config.features} of photos of {image_size} pixels are {number} numbers, more than "
                f"the {_MOST} that a PCA is fitted of; set "
                + ("a larger model.cell" if config.features == "hog" else "model.grey, or a smaller images.size")
            )
        self.reduction = Reduction(config.read_out, number)
        self.latent_dim = self.reduction.latent_dim
        self.fits = self.reduction.needs_fit

    def features(self, images: Tensor) -> Tensor:
        """Return the features, float32 [B, features], of photos uint8 [B, 3, H, W], before the PCA."""
        # Whole numbers, not 0..1, so that equal gradients are equal; histograms do not depend on the scale.
        pictures = images.to(torch.float32)
        if self.config.grey:
            pictures = to_grey(pictures)
        if self.config.features == "hog":
            return block_histograms(pictures, self.config.cell, self.config.block, self.config.bins)
        # Pixel after pixel, its channels together.
        return (pictures / 255.0).permute(0, 2, 3, 1).flatten(1)

    def forward(self, batch: Batch, step: Step) -> Losses:
        """Raise ConfigError: there is no loss."""
        raise ConfigError("model.kind descriptor is not trained; only its PCA is fitted")

    def encode(self, images: Tensor, condition: Tensor | None = None) -> Latents:
        """Return mean, float32 [B, latent_dim], of photos, uint8 [B, 3, H, W]."""
        return Latents(self.reduction.reduced(self.features(images)))

    def fit(self, batches: Iterable[Batch]) -> None:
        """Fit the components."""
        self.reduction.fit_batches(batches, self.features)

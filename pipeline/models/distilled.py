"""A small student of a large teacher (Hinton et al. 2015, arXiv 1503.02531; of features Romero et al. 2014, 1412.6550).

The teacher looks once at every training photo, at a resolution of its own. The student sees small pixels, learns to say
the same of them, and how alike any two photos of a batch are; it then encodes a catalogue in a fraction of the time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from ..errors import ConfigError
from ..images.augment import ViewsConfig, one_view
from ..losses import relation
from ..losses.precision import widened
from .backbones import Norm, check_image_size, initialise
from .backbones.inputs import Inputs, Seen
from .backbones.resnet import ResNet
from .base import Batch, Latents, Losses, Model, ModelConfig, Step, Taught, to_float
from .bottleneck import still
from .readout import Reduction, ReductionConfig, pooling_matrix
from .targets.features import cosine_error
from .teachers import FeatureScale, Scale, Teacher, refuse_conditional


class DistilledConfig(ModelConfig):
    """teacher: a model_id, or the config of a `pretrained` or `descriptor`; its features are brought to `scale`.

    latent_dim: numbers a photo becomes. channels, blocks, whole_first, norm, grey, input, cell, bins: of the backbone,
    a ResNet, as in TwoViewsConfig. layout: its last map is averaged to at most so many cells a side before the
    projection; 1 forgets where things are. cosine_weight, relation_weight: of the two terms, see Distilled. views: how
    a photo is changed before the student sees it, for the same features; null for not at all. read_out: principal
    components of the latents, by default all numbers as they are.

    numbers, cells: how many the teacher's features are and the side of their layout; the training fills them in,
    nobody else.
    """

    kind: Literal["distilled"] = "distilled"
    teacher: Teacher | None = None
    scale: Scale = "common"
    latent_dim: int = Field(64, ge=1)
    channels: tuple[int, ...] = Field((16, 32, 64, 128), min_length=1)
    blocks: int = Field(1, ge=1)
    whole_first: bool = False
    norm: Norm = "group"
    grey: bool = False
    input: Seen = "pixels"
    cell: int = Field(4, ge=1)
    bins: int = Field(9, ge=2)
    layout: int = Field(2, ge=1)
    cosine_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    relation_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    views: ViewsConfig | None = ViewsConfig(min_area=0.6, brightness=0.2, contrast=0.2)
    read_out: ReductionConfig = ReductionConfig()
    numbers: int | None = Field(None, ge=1)
    cells: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _learns_something(self) -> DistilledConfig:
        if min(self.channels) < 1:
            raise ValueError(f"channels are {self.channels}; every width is at least 1")
        if not self.cosine_weight and not self.relation_weight:
            raise ValueError("cosine_weight and relation_weight are both 0, which leaves nothing to learn; raise one")
        return self

    def taught_by(self) -> str | ModelConfig | None:
        """Return the teacher."""
        return self.teacher

    def taught(self, teacher: Taught) -> DistilledConfig:
        """Return the config with its teacher as it was found. Raises ConfigError for one that is told categories."""
        if self.numbers is not None or self.cells is not None:
            raise ConfigError("model.numbers and model.cells are those of the teacher's features; leave them out")
        refuse_conditional(teacher)
        found = {"teacher": teacher.model_id, "numbers": teacher.numbers, "cells": teacher.cells}
        return self.model_copy(update=found)


class Distilled(Model):
    """Backbone, projection, and in training a linear head from the projection to the teacher's features.

    The loss is cosine_weight * (1 - cosine of what the head says and the features, a mean over cells) +
    relation_weight * `losses.relation` of the projections and the features: latents are compared by cosine, and these
    are to be the teacher's cosines.
    """

    compares: ClassVar[bool] = True
    pooling: Tensor

    def __init__(self, config: DistilledConfig, image_size: int) -> None:
        super().__init__()
        check_image_size(image_size)
        self.config = config
        self.image_size = image_size
        self.inputs = Inputs(config.input, config.grey, config.cell, config.bins)
        self.network = ResNet(
            image_size,
            config.channels,
            blocks=config.blocks,
            in_channels=self.inputs.channels,
            norm=config.norm,
            whole_first=config.whole_first,
            side=self.inputs.side(image_size),
        )
        if config.numbers is None or config.cells is None:
            raise ConfigError(
                "a distilled model needs to know its teacher's features, and this one has no teacher yet; name a "
                "finished model of this store in model.teacher, or the config of a pretrained one, and train it"
            )
        width, grid, _ = self.network.shape
        layout = min(grid, config.layout)
        self.register_buffer("pooling", pooling_matrix(grid, layout), persistent=False)
        self.projection = nn.Linear(width * layout**2, config.latent_dim)
        self.head = nn.Linear(config.latent_dim, config.numbers)
        initialise(self.projection)
        initialise(self.head)
        self.scale = FeatureScale(config.scale, config.numbers // config.cells**2, config.cells)
        self.num_features, self.prepares = config.numbers, self.scale.needs_fit
        self.reduction = Reduction(config.read_out, config.latent_dim)
        self.latent_dim = self.reduction.latent_dim
        self.fits = self.reduction.needs_fit

    def forward(self, batch: Batch, step: Step) -> Losses:
        """Return the weighted terms, means over photos; parts `cosine` and `relation`, without their weights."""
        wanted = self.scale(batch.features)
        rows = self._projected(batch.images)
        cosine = cosine_error(self.head(rows).view_as(wanted), wanted) / self.scale.cells**2
        related = relation(rows, wanted.flatten(1), over_ranks=self.training)
        total = self.config.cosine_weight * cosine + self.config.relation_weight * related
        return Losses(total, {"cosine": cosine.detach(), "relation": related.detach()})

    def augmented(self, images: Tensor) -> Tensor:
        """Return a random view of each photo, uint8 [B, 3, H, W], where there are to be some."""
        return images if self.config.views is None else one_view(images, self.config.views)

    def encode(self, images: Tensor, condition: Tensor | None = None) -> Latents:
        """Return mean, float32 [B, latent_dim], of photos as they are, uint8 [B, 3, H, W]."""
        return Latents(self.reduction.reduced(self._still(images)))

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """Return the map after every stage of the backbone, finest first, of pictures float [B, 3, H, W]."""
        return self.network.maps(self.inputs(pictures))

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Set the scale of the teacher's features."""
        self.scale.fit(batches)

    def fit(self, batches: Iterable[Batch]) -> None:
        """Fit the read-out's components where it has some."""
        self.reduction.fit_batches(batches, self._still)

    def _still(self, images: Tensor) -> Tensor:
        with still(self.network):
            return self._projected(images)

    def _projected(self, images: Tensor) -> Tensor:
        """Return the projections of photos uint8 [B, 3, H, W], float32 [B, latent_dim]."""
        features: Tensor = self.network(self.inputs(to_float(images)))
        cells = self.pooling.to(features.dtype) @ features @ self.pooling.T.to(features.dtype)
        return widened(self.projection(cells.flatten(1)))

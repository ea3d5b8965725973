"""A small student of a large teacher (Hinton et al. 2015, arXiv 1503.02531; of features Romero et al. 2014, 1412.6550).

The teacher looks once at every training photo, at a resolution of its own. The student sees small pixels, learns to say
the same of them, and how alike any two photos of a batch are; it then encodes a catalogue in a fraction of the time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch.nn.functional as F
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
from .readout import Reduction, ReductionConfig
from .targets.features import cosine_error
from .teachers import FeatureScale, Scale, Teacher, refuse_conditional


class DistilledConfig(ModelConfig):
    """teacher: a model_id, or the config of a `pretrained` or `descriptor`; its features are brought to `scale`.

    latent_dim: numbers a photo becomes. channels, blocks, whole_first, norm, grey, input, cell, bins: of the backbone,
    a ResNet, as in TwoViewsConfig. cosine_weight, relation_weight: of the two terms (see Distilled). views: how a photo
    may be changed before the student sees it, for the same features. read_out: components of the latents, none by
    default. numbers, cells: how many the teacher's features are and the side of their layout; the training fills them
    in, nobody else.
    """

    kind: Literal["distilled"] = "distilled"
    teacher: Teacher | None = None
    scale: Scale = "common"
    latent_dim: int = Field(64, ge=1)
    channels: tuple[int, ...] = Field((32, 64, 128), min_length=1)
    blocks: int = Field(1, ge=1)
    whole_first: bool = False
    norm: Norm = "group"
    grey: bool = False
    input: Seen = "pixels"
    cell: int = Field(4, ge=1)
    bins: int = Field(9, ge=2)
    pooled_cells: int = Field(2, ge=1)
    cosine_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    relation_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    views: ViewsConfig = ViewsConfig(min_area=0.6, brightness=0.2, contrast=0.2)
    read_out: ReductionConfig = ReductionConfig()
    numbers: int | None = Field(None, ge=1)
    cells: int | None = Field(None, ge=1)


class Distilled(Model):
    """Backbone, projection; a linear head from the projection to the teacher's features in training."""

    def __init__(self, config: DistilledConfig, image_size: int) -> None:
        super().__init__()
        check_image_size(image_size)
        self.config = config
        self.image_size = image_size
        self.inputs = Inputs(config.input, config.grey, config.cell, config.bins)
        self.network = ResNet(image_size, config.channels, blocks=config.blocks, in_channels=self.inputs.channels,
            norm=config.norm, whole_first=config.whole_first, side=self.inputs.side(image_size))
        width, grid, _ = self.network.shape
        assert config.numbers and config.cells
        self.scale = FeatureScale(config.scale, config.numbers // config.cells**2, config.cells)
        self.num_features, self.begins = config.numbers, self.scale.needs_fit
        self.pool = min(grid, config.pooled_cells)
        self.projection = nn.Linear(width * self.pool**2, config.latent_dim)
        self.head = nn.Linear(config.latent_dim, config.numbers)
        initialise(self.projection); initialise(self.head)
        self.latent_dim = config.latent_dim

    def augmented(self, images: Tensor) -> Tensor:
        return one_view(images, self.config.views)

    def begin(self, batches):
        self.scale.fit(batches)

    def _proj(self, images):
        f = self.network(self.inputs(to_float(images)))
        f = F.adaptive_avg_pool2d(f, self.pool).flatten(1)
        return widened(self.projection(f))

    def forward(self, batch: Batch, step: Step) -> Losses:
        wanted = self.scale(batch.features)
        rows = self._proj(batch.images)
        said = self.head(rows)
        cos = cosine_error(said[:, :, None, None], wanted.flatten(1)[:, :, None, None])
        rel = relation(rows, wanted.flatten(1), over_ranks=self.training)
        c = self.config
        return Losses(c.cosine_weight * cos + c.relation_weight * rel, {"cosine": cos.detach(), "relation": rel.detach()})

    def encode(self, images: Tensor, condition: Tensor | None = None) -> Latents:
        with still(self.network):
            return Latents(self._proj(images))

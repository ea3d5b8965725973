"""What models have in common that learn from two views of each photo: a backbone, a projector, the latents' read-out.

Views of one photo are to be alike and views of different photos not, so latents hold what the views' changes leave
alone. The projector takes the loss's wish to forget upon itself and is not used afterwards (Chen et al. 2020, arXiv
2002.05709, section 4.2), unless the read-out names it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor, nn

from ..errors import InputError
from ..images import ImagesConfig
from ..images.augment import ViewsConfig, two_views
from ..losses.collectives import sum_over_ranks
from ..losses.precision import widened
from ..storage import Files
from .backbones import Norm, check_image_size, initialise
from .backbones.inputs import Inputs, Seen
from .backbones.resnet import ResNet
from .base import Batch, Latents, Model, ModelConfig, to_float
from .bottleneck import still
from .readout import ReadOut, ReadOutConfig
from .tuned import BackboneConfig, TunedBackbone


class TwoViewsReadOutConfig(ReadOutConfig):
    """source: what is read out, the `backbone`'s last map, or what the `projector` makes of that map's mean.

    The projector's output has no layout, so pool is `global`; dims and whiten are as for a map.
    """

    source: Literal["backbone", "projector"] = "backbone"

    @model_validator(mode="after")
    def _a_projection_has_no_layout(self) -> TwoViewsReadOutConfig:
        if self.source == "projector" and self.pool != "global":
            raise ValueError(
                f"source is projector and pool is {self.pool}, but the projector sees the map's mean alone; set pool "
                "to global, or source to backbone"
            )
        return self


class TwoViewsConfig(ModelConfig):
    """channels: width of each stage of the backbone, a ResNet of `blocks` blocks a stage; every stage halves the side.

    whole_first: the first stage keeps the photo's side, at four times the work. norm: `group`, `none`, or `batch`,
    which needs statistics over all workers. grey: brightness alone goes in. input: `pixels`, or `gradients`: the
    backbone sees fixed histograms of oriented gradients of `bins` directions instead, one a cell of `cell` pixels,
    hence at a side of images.size / cell; views are of the photos all the same. projector: widths of the projector's
    hidden and last layer. temperature: the smaller, the more the photos that look most alike count. views: how the
    views differ. read_out: how latents come of the backbone's last map, or of the projector's output.
    """

    channels: tuple[int, ...] = Field((16, 32, 64), min_length=1)
    blocks: int = Field(1, ge=1)
    whole_first: bool = False
    norm: Norm = "group"
    grey: bool = False
    input: Seen = "pixels"
    cell: int = Field(4, ge=1)
    bins: int = Field(9, ge=2)
    projector: tuple[int, int] = (128, 64)
    temperature: float = Field(0.2, gt=0)
    views: ViewsConfig = ViewsConfig()
    read_out: TwoViewsReadOutConfig = TwoViewsReadOutConfig()
    backbone: BackboneConfig | None = None

    @model_serializer(mode="wrap")
    def _without_no_backbone(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)  # keys and stored configs of those without one stay as they were
        return {name: value for name, value in values.items() if name != "backbone" or value is not None}

    @model_validator(mode="after")
    def _a_pretrained_backbone_sees_colours(self) -> TwoViewsConfig:
        if self.backbone is not None and (self.grey or self.input != "pixels"):
            raise ValueError("a pretrained backbone sees pixels in colour; leave grey and input out")
        return self

    def file(self) -> str | None:
        """Return the file of the backbone's weights."""
        return None if self.backbone is None else self.backbone.file()

    def described(self, files: Files) -> TwoViewsConfig:
        """Return the config with what the backbone's file says; see `PretrainedConfig.described`."""
        if self.backbone is None:
            return self
        return self.model_copy(update={"backbone": self.backbone.described(files)})

    def transforms(self, images: ImagesConfig) -> tuple[ImagesConfig, ...]:
        """Return the backbone's own preprocessing where it is pretrained."""
        return (images,) if self.backbone is None else self.backbone.transforms(images)

    @model_validator(mode="after")
    def _widths_are_positive(self) -> TwoViewsConfig:
        if min(self.channels) < 1 or min(self.projector) < 1:
            raise ValueError(f"channels are {self.channels}, projector {self.projector}; every width is at least 1")
        return self


class TwoViews(Model):
    """A backbone whose last map's mean goes through a projector in training, and through the read-out afterwards."""

    views: ClassVar[int] = 2

    def __init__(self, config: TwoViewsConfig, image_size: int) -> None:
        super().__init__()
        self.inputs = Inputs(config.input, config.grey, config.cell, config.bins)
        self.view_changes = config.views
        self.network: ResNet | TunedBackbone
        if config.backbone is None:
            check_image_size(image_size)
            self.image_size = image_size
            self.network = ResNet(
                image_size,
                config.channels,
                blocks=config.blocks,
                in_channels=self.inputs.channels,
                norm=config.norm,
                whole_first=config.whole_first,
                side=self.inputs.side(image_size),
            )
        else:
            self.network = TunedBackbone(config.backbone, image_size)
            self.image_size = self.network.inner.image_size
        width, grid, _ = self.network.shape
        hidden, last = config.projector
        self.projector = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, last))
        initialise(self.projector)
        self.from_projector = config.read_out.source == "projector"
        self.read_out = ReadOut(config.read_out, *((last, 1) if self.from_projector else (width, grid)))
        self.latent_dim = self.read_out.latent_dim
        self.fits = self.read_out.needs_fit
        self.spread = Spread(last)

    def augmented(self, images: Tensor) -> Tensor:
        """Return two random views of photos uint8 [B, 3, H, W]: uint8 [2 B, 3, H, W]."""
        return two_views(images, self.view_changes)

    def encode(self, images: Tensor, condition: Tensor | None = None) -> Latents:
        """Return mean, float32 [B, latent_dim], of photos as they are, uint8 [B, 3, H, W]."""
        with still(self.network):
            return Latents(self.read_out.vectors(self._read(images)))

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """Return the map after every stage of the backbone, finest first, of pictures float [B, 3, H, W]."""
        return self.network.maps(self.inputs(pictures))

    def use_file(self, data: bytes, source: str) -> None:
        """Begin with the weights of a pretrained backbone's file."""
        assert isinstance(self.network, TunedBackbone)  # noqa: S101 - who has none names no file
        self.network.inner.use_file(data, source)

    def fit(self, batches: Iterable[Batch]) -> None:
        """Fit the read-out's components where it has some."""
        with still(self.network):
            self.read_out.fit_batches(batches, lambda images: self.read_out.pooled(self._read(images)))

    def scalars(self) -> dict[str, float]:
        """Return how far the projections are spread since the last call, over all ranks; see Spread.collect."""
        return self.spread.collect(next(self.parameters()).device)

    def _read(self, images: Tensor) -> Tensor:
        """Return what the read-out reads of photos uint8 [N, 3, H, W]: maps, or projections [N, d, 1, 1]."""
        features: Tensor = self.network(self.inputs(to_float(images)))
        if not self.from_projector:
            return features
        rows: Tensor = self.projector(features.mean(dim=(2, 3)))
        return rows[:, :, None, None]

    def _projected(self, images: Tensor, network: nn.Module, projector: nn.Module) -> Tensor:
        """Return the projections of photos uint8 [N, 3, H, W], float32 [N, d] of length 1."""
        features: Tensor = network(self.inputs(to_float(images)))
        rows: Tensor = projector(features.mean(dim=(2, 3)))
        return F.normalize(widened(rows), dim=1)


def check_views(images: Tensor) -> None:
    """Raise InputError unless there are as many first views as second ones."""
    if len(images) % 2 or not len(images):
        raise InputError(f"{len(images)} views are no pairs; pass `augmented(photos)`, one view of each, then another")


class Spread:
    """Adds up rows of length 1 to tell whether they collapse; no module and no buffers, which DDP would overwrite.

    All is kept on the device, so that noting a step never waits for it.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._sums: Tensor | None = None  # float64 [d + 2, d]: of outer products, of rows, and their number in a corner

    @torch.no_grad()
    def note(self, rows: Tensor) -> None:
        """Take note of rows [N, d]."""
        rows = rows.detach().double()
        number = torch.full((1, self.width), float(len(rows)), dtype=torch.float64, device=rows.device)
        sums = torch.cat([rows.T @ rows, rows.sum(dim=0, keepdim=True), number])
        self._sums = sums if self._sums is None else self._sums + sums

    def collect(self, device: torch.device) -> dict[str, float]:
        """Return the measures since the last call over all ranks, and begin again; every rank must call it.

        projection/std: root mean square over dimensions of the standard deviation, times the root of their number: 1
        where rows lie evenly on the sphere, 0 where all are one. projection/effective_rank: exp of the entropy of the
        singular values, between 1 and d (Garrido et al. 2022, arXiv 2210.02885). Empty when no rank noted a row.
        """
        sums, self._sums = self._sums, None
        if sums is None:
            sums = torch.zeros(self.width + 2, self.width, dtype=torch.float64, device=device)
        sums = sum_over_ranks(sums).cpu()
        number = float(sums[-1, 0])
        if number == 0:
            return {}
        moments, mean = sums[:-2] / number, sums[-2] / number
        variance = float((moments.diagonal() - mean.square()).sum().clamp_min(0.0))
        values = torch.linalg.eigvalsh(moments).clamp_min(0.0).sqrt()
        shares = values / values.sum()
        return {
            "projection/std": variance**0.5,
            "projection/effective_rank": float((-torch.special.xlogy(shares, shares).sum()).exp()),
        }

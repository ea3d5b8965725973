"""Teachers: finished encoders whose features another model learns to give, or is made on.

A teacher is a bundle of the store, named by its model_id, or the configuration of one that needs no training steps,
which then gets its bundle first. Its features are the mean of its latents, written once for all training photos.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ..errors import ConfigError, InputError
from .base import Batch, Model, Taught, as_dict, full_precision
from .descriptor import DescriptorConfig
from .pretrained import PretrainedConfig
from .readout import ReadOut

MODEL_ID = r"^[0-9a-f]{64}$"
Teacher = (
    Annotated[str, Field(pattern=MODEL_ID)]
    | Annotated[PretrainedConfig | DescriptorConfig, Field(discriminator="kind")]
)
Scale = Literal["common", "each_number", "each_photo"]

_FLATTEST = 1e-6  # of the largest spread: a number that all photos share is not blown up


class HeldTeacher(BaseModel):
    """A teacher as the training found it: its model config, what its photos are decoded by, side of these in pixels,
    how many numbers its features are and the side of the layout they keep.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: dict[str, Any]
    transforms: tuple[dict[str, Any], ...]
    image_size: int = Field(ge=1)
    numbers: int = Field(ge=1)
    cells: int = Field(ge=1)

    @property
    def channels(self) -> int:
        """Return the numbers a cell."""
        return self.numbers // self.cells**2


def held_teacher(teacher: Taught) -> HeldTeacher:
    """Return what a bundle keeps of the teacher it holds."""
    return HeldTeacher(
        model=as_dict(teacher.config),
        transforms=tuple(as_dict(transform) for transform in teacher.transforms),
        image_size=teacher.image_size,
        numbers=teacher.numbers,
        cells=teacher.cells,
    )


def refuse_conditional(teacher: Taught) -> None:
    """Raise ConfigError for a teacher that is told each photo's category: nobody tells it here."""
    if teacher.config.conditional:
        raise ConfigError(
            f"teacher {teacher.model_id} is a {teacher.config.kind}, which is told each photo's category, and a "
            "teacher is told none; name a model of another kind"
        )


def cells_of(model: Model) -> int:
    """Return the side of the layout that a model's latents keep, channel first; 1 where they keep none."""
    read_out = getattr(model, "read_out", None)
    if isinstance(read_out, ReadOut) and not read_out.needs_fit:
        return read_out.cells
    return 1


class FeatureScale(nn.Module):
    """Features float [B, D] to maps float32 [B, channels, cells, cells] on a scale that losses and networks know.

    `common`: less the training photos' mean of every number, divided by one spread for all, the root of their mean
    variance, so that numbers keep their shares: the squares of a photo sum up to D in the mean. `each_number`: every
    number is divided by its own spread. `each_photo`: the numbers of every cell get mean 0 and variance 1, and nothing
    is fitted. The buffers mean and factor [D] are there where something is.
    """

    mean: Tensor
    factor: Tensor

    def __init__(self, scale: Scale, channels: int, cells: int) -> None:
        super().__init__()
        self.scale = scale
        self.channels, self.cells = channels, cells
        self.needs_fit = scale != "each_photo"
        self.fitted = not self.needs_fit
        if self.needs_fit:
            self.register_buffer("mean", torch.zeros(channels * cells * cells))
            self.register_buffer("factor", torch.zeros(channels * cells * cells))

    @property
    def numbers(self) -> int:
        """Return D."""
        return self.channels * self.cells**2

    def forward(self, features: Tensor | None) -> Tensor:
        """Return the maps. Raises ConfigError before `fit`, InputError for features of another length or none."""
        if features is None:
            raise InputError("this model learns from a teacher's features and the batch has none; give Batch.features")
        if features.ndim != 2 or features.shape[1] != self.numbers:
            raise InputError(f"features are {list(features.shape)}; the teacher's are [B, {self.numbers}]")
        if not self.fitted:
            raise ConfigError("the scale of the teacher's features is not known yet; call the model's prepare first")
        with full_precision(features.device.type):
            maps = features.float()
            if self.needs_fit:
                maps = (maps - self.mean) * self.factor
            maps = maps.reshape(-1, self.channels, self.cells, self.cells)
            if not self.needs_fit:
                maps = F.layer_norm(maps.movedim(1, -1), (self.channels,)).movedim(-1, 1)
            return maps

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> None:
        """Set mean and factor by the features of batches, summed in float64; raises InputError where all are alike."""
        if not self.needs_fit:
            return
        count, shift = 0, torch.zeros(self.numbers).double()
        sums, squares = torch.zeros_like(shift), torch.zeros_like(shift)
        for batch in batches:
            if batch.features is None or batch.features.shape[1] != self.numbers:
                raise InputError(f"a batch lacks the {self.numbers} features a photo that the teacher gives")
            rows = batch.features.detach().cpu().double()
            # About the first photo: squares of large numbers would lose what sets photos apart.
            shift = rows[0].clone() if not count else shift
            count += len(rows)
            sums += (rows - shift).sum(dim=0)
            squares += (rows - shift).square().sum(dim=0)
        if not count:
            raise InputError("there are no photos to learn the scale of the teacher's features from")
        variance = (squares / count - (sums / count).square()).clamp_min(0.0)
        if not bool(variance.sum() > 0):
            raise InputError("the teacher says the same of all photos; name another teacher")
        if self.scale == "common":
            variance = variance.mean().expand(self.numbers)
        spread = variance.sqrt()
        self.mean.copy_(shift + sums / count)
        self.factor.copy_(1.0 / spread.clamp_min(_FLATTEST * spread.max()))
        self.fitted = True

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.fitted = not self.needs_fit or bool(self.factor.any())  # no buffer: see Reduction

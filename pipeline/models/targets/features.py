"""Features as the target: what is in the photo rather than its pixels (arXiv 2003.07441).

Of a map of a frozen encoder, computed at every step; or of a teacher, a finished model at a resolution of its own,
whose features of all training photos are written once.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor

from ...errors import ConfigError
from ...losses import mse
from ...losses.precision import full_precision, widened
from ..base import Taught
from ..frozen import FrozenConfig, FrozenEncoder, resnet18_map
from ..teachers import Scale, Teacher, refuse_conditional
from .base import Target, TargetBase

FeatureLoss = Literal["mse", "cosine"]


class FeatureTarget(TargetBase):
    """Exactly one of encoder and teacher; neither where the model sees features, which are then the target.

    teacher: a model_id, or the config of a `pretrained` or `descriptor`; its features are brought to `scale` (see
    teachers.FeatureScale). encoder: whose map, with exactly one layer; every position is standardised over its
    channels, as `scale: each_photo` does. channels, size: the map's; known where the encoder is a ResNet-18, and filled
    in by the training where there is a teacher.

    loss: `mse`, the squared error summed over the map, or `cosine`, 1 - cosine of each position, summed over positions.
    weight: multiplies it. Of `mse` it is 1 / (2 sigma^2) of a Gaussian decoder with the standard deviation sigma, so
    that beside it a KL is in nats: with the scale `common` the numbers' mean variance is 1, so a weight of 2 says that
    a number is known to half of their spread.
    """

    later: ClassVar[frozenset[str]] = frozenset({"teacher", "loss", "scale"})

    kind: Literal["features"] = "features"
    encoder: FrozenConfig | None = None
    teacher: Teacher | None = None
    loss: FeatureLoss = "mse"
    scale: Scale = "common"
    channels: int | None = Field(None, ge=1)
    size: int | None = Field(None, ge=1)
    weight: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _one_known_map(self) -> FeatureTarget:
        if self.encoder is not None and self.teacher is not None:
            raise ValueError("a feature target has both an encoder and a teacher; name one of them")
        if self.encoder is None:
            return self
        if self.loss != "mse" or self.scale != "common":
            raise ValueError("loss and scale are of a teacher's features; an encoder's are standardised, loss mse")
        if len(self.encoder.layers) != 1:
            raise ValueError(
                f"encoder.layers of a feature target is {list(self.encoder.layers)}; name exactly one, for example [2]"
            )
        if self.encoder.model_id is not None and (self.channels is None or self.size is None):
            raise ValueError("a feature target of a bundle needs channels and size of the bundle's map; name both")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        # What has an encoder keeps its train key and the bytes of its bundle.
        return values if self.encoder is None else {n: v for n, v in values.items() if n not in self.later}

    def frozen(self) -> FrozenConfig | None:
        """Return the encoder, where there is one."""
        return self.encoder

    def taught(self, teacher: Taught) -> FeatureTarget:
        """Return the target of a teacher's features as they were found. Raises ConfigError for one told categories."""
        if self.channels is not None or self.size is not None:
            raise ConfigError("target.channels and target.size are those of the teacher's features; leave them out")
        refuse_conditional(teacher)
        shape = {"channels": teacher.numbers // teacher.cells**2, "size": teacher.cells}
        return self.model_copy(update={**shape, **({} if self.teacher is None else {"teacher": teacher.model_id})})


class Features(Target):
    """Outputs are a map, float [B, channels, size, size], standardised at every position."""

    def __init__(self, config: FeatureTarget, encoder: FrozenConfig, image_size: int) -> None:
        super().__init__()
        channels, size = config.channels, config.size
        if channels is None or size is None:
            known = resnet18_map(encoder.layers[0], image_size)
            channels, size = channels or known[0], size or known[1]
        self.config = config
        self.encoder_config = encoder
        self.image_size = image_size
        self.channels, self.size = channels, size
        self._frozen: tuple[FrozenEncoder, ...] = ()  # in a tuple: never a submodule, so never state or a parameter

    def loss(self, outputs: Tensor, pictures: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted squared error; part `reconstruction`. Raises ConfigError before `use_frozen`."""
        if not self._frozen:
            raise ConfigError("the feature target has no encoder yet: give model.use_frozen what load_frozen returned")
        with torch.no_grad():
            found = self._frozen[0].maps(pictures)[0].movedim(1, -1)
            target = F.layer_norm(found, found.shape[-1:]).movedim(-1, 1)
        total = self.config.weight * mse(outputs, target)
        return total, {"reconstruction": total.detach()}

    def use_frozen(self, frozen: FrozenEncoder) -> None:
        """Take the encoder. Raises ConfigError unless its map has the channels and the size that were asked for."""
        with torch.no_grad():
            found = frozen.maps(torch.zeros(1, 3, self.image_size, self.image_size))
        shape = tuple(found[0].shape[1:])
        if shape != (self.channels, self.size, self.size):
            raise ConfigError(
                f"target.channels is {self.channels} and target.size {self.size}, but layer "
                f"{self.encoder_config.layers[0]} of the encoder gives {shape[0]} channels of {shape[1]} x {shape[2]} "
                f"for photos of {self.image_size} pixels; set channels={shape[0]} size={shape[1]}"
            )
        self._frozen = (frozen,)


class TeacherFeatures(Target):
    """Outputs are a teacher's features as scaled maps, float [B, channels, size, size]; the model brings these."""

    def __init__(self, config: FeatureTarget) -> None:
        super().__init__()
        if config.channels is None or config.size is None:
            raise ConfigError(
                "the target's teacher is not known yet; train the model, which finds the teacher on its store"
            )
        self.config = config
        self.channels, self.size = config.channels, config.size

    def loss(self, outputs: Tensor, pictures: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted error; part `reconstruction`. pictures: the scaled maps, as the outputs are."""
        error = mse(outputs, pictures) if self.config.loss == "mse" else cosine_error(outputs, pictures)
        total = self.config.weight * error
        return total, {"reconstruction": total.detach()}


def cosine_error(outputs: Tensor, wanted: Tensor) -> Tensor:
    """Return 1 - cosine over channels, summed over positions, a mean over photos; maps [B, C, h, w] to []."""
    with full_precision(outputs.device.type):
        likeness = F.cosine_similarity(widened(outputs), widened(wanted), dim=1)
        return (1.0 - likeness).flatten(1).sum(dim=1).mean()

"""The target contract: what a reconstructing model is asked to bring back of a photo."""

from __future__ import annotations

from abc import ABC, abstractmethod

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ...errors import ConfigError, NotReconstructing
from ..frozen import FrozenConfig, FrozenEncoder


class TargetBase(BaseModel):
    """Base of the targets' configurations; `kind` tells them apart."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: str

    def frozen(self) -> FrozenConfig | None:
        """Return which frozen encoder the target looks through, or None."""
        return None


class Target(nn.Module, ABC):
    """What the decoder's outputs, float [B, channels, size, size], are compared with; it has no state of its own."""

    channels: int
    size: int

    @abstractmethod
    def loss(self, outputs: Tensor, pictures: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss [] of outputs for pictures, float [B, 3, H, W] in 0..1, and its detached parts.

        Summed over each photo, a mean over photos; the total is the sum of the parts, one of which is `reconstruction`.
        Computed in float32 whatever autocast says.
        """

    def picture(self, outputs: Tensor) -> Tensor:
        """Return outputs as pictures, float [B, 3, H, W] in 0..1. Raises NotReconstructing for other targets."""
        raise NotReconstructing(
            f"a model with the target {type(self).__name__.lower()!r} decodes no pictures; train with the target pixels"
        )

    def use_frozen(self, frozen: FrozenEncoder) -> None:
        """Take the encoder that the configuration's `frozen()` asked for. Raises ConfigError where none is asked."""
        raise ConfigError(f"the target {type(self).__name__.lower()!r} looks through no frozen encoder")

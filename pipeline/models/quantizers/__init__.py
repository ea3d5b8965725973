"""Quantizers: vectors to codes and back. The table of kinds and the union of their configurations.

To add a quantizer: its file, one line in QUANTIZERS, one member in QuantizerConfig; the fields of its configuration
are the keywords of its constructor.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...errors import ConfigError
from .base import CodebookQuantizer, GradientPath, Quantised, Quantizer
from .ema import EMAQuantizer
from .following import Start
from .fsq import FSQQuantizer
from .gradient import GradientQuantizer
from .measures import CodebookMeasures, near_duplicate_share
from .simvq import SimVQQuantizer


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _CodebookConfig(_Config):
    """What the quantizers with a codebook share; see CodebookQuantizer.

    num_codes: rows of the codebook. code_dim: their length, and that of the vectors to quantise.
    """

    num_codes: int = Field(default=256, ge=2)
    code_dim: int = Field(default=16, ge=1)
    commitment_weight: float = Field(default=0.25, ge=0)
    normalise: bool = False
    gradient: GradientPath = "straight_through"


class _FollowingConfig(_CodebookConfig):
    """What the quantizers whose codebook follows the data share; see FollowingQuantizer."""

    decay: float = Field(default=0.99, ge=0, lt=1)
    restart_threshold: float = Field(default=0.1, ge=0, lt=1)
    init: Start = "kmeans"


class EMAConfig(_FollowingConfig):
    """A codebook that follows by moving averages; see EMAQuantizer."""

    kind: Literal["ema"] = "ema"


class GradientConfig(_FollowingConfig):
    """A codebook that the optimiser moves; see GradientQuantizer."""

    kind: Literal["gradient"] = "gradient"


class SimVQConfig(_CodebookConfig):
    """A fixed basis under one learned linear map; see SimVQQuantizer."""

    kind: Literal["simvq"] = "simvq"


class FSQConfig(_Config):
    """No codebook: every number is rounded to one of its levels; see FSQQuantizer. code_dim is len(levels)."""

    kind: Literal["fsq"] = "fsq"
    levels: tuple[Annotated[int, Field(ge=3, le=256)], ...] = Field(default=(8, 6, 5), min_length=1)


QuantizerConfig = Annotated[EMAConfig | GradientConfig | FSQConfig | SimVQConfig, Field(discriminator="kind")]

QUANTIZERS: dict[str, type[Quantizer]] = {
    "ema": EMAQuantizer,
    "gradient": GradientQuantizer,
    "fsq": FSQQuantizer,
    "simvq": SimVQQuantizer,
}

__all__ = [
    "QUANTIZERS",
    "CodebookMeasures",
    "CodebookQuantizer",
    "EMAConfig",
    "EMAQuantizer",
    "FSQConfig",
    "FSQQuantizer",
    "GradientConfig",
    "GradientPath",
    "GradientQuantizer",
    "Quantised",
    "Quantizer",
    "QuantizerConfig",
    "SimVQConfig",
    "SimVQQuantizer",
    "build_quantizer",
    "near_duplicate_share",
]


def build_quantizer(config: EMAConfig | GradientConfig | FSQConfig | SimVQConfig) -> Quantizer:
    """Return a new quantizer, its weights drawn from torch's generator. Raises ConfigError for an unknown kind."""
    if config.kind not in QUANTIZERS:
        raise ConfigError(f"quantizer.kind is {config.kind!r}; known kinds: {', '.join(sorted(QUANTIZERS))}")
    return QUANTIZERS[config.kind](**config.model_dump(exclude={"kind"}))

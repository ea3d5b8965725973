"""Priors: how likely a photo's grid of codes is. The table of kinds and the union of their configurations.

To add a prior: its file, one line in PRIORS, one member in AnyPriorConfig, one section in planning/prior_section.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from ...errors import ConfigError
from .base import Prior, PriorConfig
from .code_draws import check_draw, decode_codes, draw, sample
from .pixelcnn import PixelCNN, PixelCNNConfig
from .transformer import CodesTransformer, TransformerConfig

PRIORS: dict[str, tuple[type[PriorConfig], type[Prior]]] = {
    "pixelcnn": (PixelCNNConfig, PixelCNN),
    "transformer": (TransformerConfig, CodesTransformer),
}

AnyPriorConfig = Annotated[PixelCNNConfig | TransformerConfig, Field(discriminator="kind")]

__all__ = [
    "PRIORS",
    "AnyPriorConfig",
    "Prior",
    "PriorConfig",
    "build_prior",
    "check_draw",
    "decode_codes",
    "draw",
    "sample",
]


def build_prior(config: PriorConfig, *, num_codes: int, grid: tuple[int, int], labels: Sequence[str] = ()) -> Prior:
    """Return a new prior on the CPU, in training mode, its weights drawn from torch's global generator.

    num_codes: K of the codebook. grid: rows and columns of a photo's codes, (1, 1) of a single code. labels: the
    categories that a prior `by_category` knows. Raises ConfigError for an unknown kind or a grid without a cell.
    """
    if config.kind not in PRIORS:
        raise ConfigError(f"prior.kind is {config.kind!r}; known kinds: {', '.join(sorted(PRIORS))}")
    if num_codes < 1 or min(grid) < 1:
        raise ConfigError(f"a prior over {num_codes} codes in a grid of {grid[0]} x {grid[1]}; all must be at least 1")
    _, prior_class = PRIORS[config.kind]
    return prior_class(config, num_codes, grid, tuple(labels))

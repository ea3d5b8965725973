"""What codebooks a model has."""

from __future__ import annotations

import numpy as np
import torch

from ..tables.codebook_table import CodeLevel
from .base import Model
from .quantizers import Quantizer


def codebook_sizes(model: Model) -> tuple[int, ...]:
    """Return how many codes each level (`Model.code_levels`) has, in no order; () for a model without codes.

    Levels that share a quantizer have its number each.
    """
    if not model.num_latent_codes:
        return ()
    levels = model.code_levels(torch.zeros((1, model.num_latent_codes), dtype=torch.int64))
    sizes = [found.num_codes for found in model.modules() if isinstance(found, Quantizer)]
    return tuple(sizes) if len(sizes) == len(levels) else (max(sizes),) * len(levels)


def code_levels(model: Model) -> tuple[CodeLevel, ...]:
    """Return a model's codebooks by level, each with its codes' vectors; () for a model without codes."""
    if not model.num_latent_codes:
        return ()
    cells = model.code_levels(torch.arange(model.num_latent_codes)[None])
    # Its own ones: those of a teacher that it holds are further down.
    named = [(name, found) for name, found in model.named_children() if isinstance(found, Quantizer)]
    return tuple(
        CodeLevel(name, _vectors(_of_level(name, named)), where.flatten().numpy().astype(np.int64))
        for name, where in cells.items()
    )


def _of_level(level: str, named: list[tuple[str, Quantizer]]) -> Quantizer:
    """Return the quantizer of a level: the only one, or the one whose name begins with the level's."""
    return next(found for name, found in named if len(named) == 1 or name.startswith(f"{level}_"))


@torch.no_grad()
def _vectors(quantizer: Quantizer) -> np.ndarray:
    return quantizer.codebook_rows().float().cpu().numpy()

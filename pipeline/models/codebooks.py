"""What codebooks a model has."""

from __future__ import annotations

import torch

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

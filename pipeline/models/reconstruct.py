"""Pictures through a model and back, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from .base import Model
from .conditions import condition_of


def reconstruct(
    model: Model, photos: npt.NDArray[np.uint8], categories: Sequence[str | None] | None = None
) -> npt.NDArray[np.uint8]:
    """Return photos, uint8 [B, H, W, 3], as the model's decoder draws them from their latents, same shape.

    categories: the photos' own, for a conditional model; None there: none of them has one. Raises NotReconstructing
    where the model has no decoder to pixels.
    """
    images = torch.from_numpy(photos).permute(0, 3, 1, 2).contiguous()
    condition = None if categories is None else condition_of(model.labels, categories)
    with torch.inference_mode():
        decoded = model.reconstruct(images, condition)
    made = (decoded.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return np.ascontiguousarray(made.numpy())

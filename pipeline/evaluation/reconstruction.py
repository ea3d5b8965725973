"""How well a model draws photos again: error, structure, detail, and which categories it serves worst."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..losses.ssim import ssim
from ..models.base import Model, to_float

_LAPLACE = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))
_GREY = (0.299, 0.587, 0.114)  # luma of RGB (ITU-R BT.601)


@dataclass(frozen=True, slots=True)
class PhotoErrors:
    """One number a photo, float64 [n] each, pictures in 0..1.

    mse: mean squared error of a value. ssim: structural similarity. detail, drawn_detail: variance of the Laplacian of
    the photo and of its reconstruction, what they hold of edges and texture.
    """

    mse: NDArray[np.float64]
    ssim: NDArray[np.float64]
    detail: NDArray[np.float64]
    drawn_detail: NDArray[np.float64]

    def __len__(self) -> int:
        """Return n."""
        return len(self.mse)


@dataclass(frozen=True, slots=True)
class CategoryError:
    """A category's mean errors over its photos."""

    category: str
    photos: int
    mse: float
    ssim: float


def photo_errors(pictures: Tensor, drawn: Tensor) -> PhotoErrors:
    """Return the errors of reconstructions, both float [B, 3, H, W] in 0..1. Raises InputError for unequal shapes."""
    if pictures.shape != drawn.shape:
        raise InputError(f"photos {list(pictures.shape)} and reconstructions {list(drawn.shape)} are not of one shape")
    wide, redrawn = pictures.double(), drawn.double()
    values = (
        (wide - redrawn).square().mean(dim=(1, 2, 3)),
        ssim(redrawn, wide),
        _laplacian_variance(wide),
        _laplacian_variance(redrawn),
    )
    return PhotoErrors(*(value.detach().cpu().numpy().astype(np.float64) for value in values))


def reconstruct_errors(
    model: Model,
    pixels: NDArray[np.uint8],
    *,
    conditions: NDArray[np.int64] | None = None,
    batch_size: int = 250,
) -> PhotoErrors:
    """Return the errors of `model.reconstruct` over photos, uint8 [n, size, size, 3], in evaluation mode.

    conditions: rows of a conditional model's table [n] (`models.conditions.condition_of`), or None. The model stays in
    evaluation mode. Raises NotReconstructing where the model draws no pictures, InputError without photos.
    """
    if not len(pixels):
        raise InputError("there are no photos to reconstruct; give at least one")
    model.eval()
    found = []
    with torch.inference_mode():
        for start in range(0, len(pixels), batch_size):
            rows = np.s_[start : start + batch_size]
            images = torch.from_numpy(np.ascontiguousarray(pixels[rows].transpose(0, 3, 1, 2)))
            given = None if conditions is None else torch.from_numpy(np.asarray(conditions[rows], np.int64))
            found.append(photo_errors(to_float(images), model.reconstruct(images, given).float()))
    return joined(found)


def joined(parts: Sequence[PhotoErrors]) -> PhotoErrors:
    """Return the errors of several batches as one."""
    names = PhotoErrors.__slots__
    return PhotoErrors(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def reconstruction_measures(errors: PhotoErrors) -> dict[str, float]:
    """Return `mse` (a value, 0..1 scale), `ssim`, both means over photos, and `high_frequency`.

    high_frequency: the reconstructions' Laplacian variance as a share of the photos', summed over photos before the
    division, since one flat photo would decide a mean of ratios. Below 1 is blur, above 1 is noise; 0 where the photos
    themselves are flat.
    """
    total = float(errors.detail.sum())
    return {
        "mse": float(errors.mse.mean()),
        "ssim": float(errors.ssim.mean()),
        "high_frequency": float(errors.drawn_detail.sum()) / total if total > 0 else 0.0,
    }


def category_errors(errors: PhotoErrors, categories: Sequence[str | None]) -> list[CategoryError]:
    """Return every category's mean errors, the worst by mean squared error first; photos without one are left out.

    A mean over photos hides them: nine photos of ten of one category decide it. Raises InputError when the numbers of
    photos and categories differ.
    """
    if len(categories) != len(errors):
        raise InputError(f"{len(errors)} photos and {len(categories)} categories do not fit; give one a photo")
    known = np.array([name is not None for name in categories], np.bool_)
    names = np.array([name or "" for name in categories])
    found = []
    for name in np.unique(names[known]).tolist():
        own = known & (names == name)
        found.append(CategoryError(name, int(own.sum()), float(errors.mse[own].mean()), float(errors.ssim[own].mean())))
    return sorted(found, key=lambda entry: (-entry.mse, entry.category))


def _laplacian_variance(pictures: Tensor) -> Tensor:
    """Return the variance [B] of the Laplacian of the grey picture, without its border."""
    grey = (pictures * pictures.new_tensor(_GREY).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    edges = F.conv2d(grey, pictures.new_tensor(_LAPLACE).view(1, 1, 3, 3))
    return edges.flatten(1).var(dim=1, correction=0)

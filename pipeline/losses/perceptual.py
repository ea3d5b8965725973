"""How far two pictures' feature maps are apart (LPIPS, Zhang et al. 2018, arXiv 1801.03924, equation 1 with w = 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ConfigError
from .precision import full_precision, widened

_SMALL = 1e-6  # squared length below which a position counts as without features: its gradient stays finite


def feature_distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Return the distance of feature maps, a mean over photos; lists of [B, C, h, w] to [].

    At every position the channels are scaled to length 1; the squared difference is summed over channels, averaged over
    positions and summed over layers, so each layer adds at most 4. Raises ConfigError when the lists do not fit.
    """
    if not first or [one.shape for one in first] != [two.shape for two in second]:
        raise ConfigError(
            f"feature maps of shapes {[tuple(one.shape) for one in first]} and {[tuple(two.shape) for two in second]} "
            "cannot be compared; take both from one encoder"
        )
    with full_precision(first[0].device.type):
        layers = [(_unit(one) - _unit(two)).square().sum(dim=1).mean() for one, two in zip(first, second, strict=True)]
        return torch.stack(layers).sum()


def _unit(features: Tensor) -> Tensor:
    features = widened(features)
    return features * torch.rsqrt(features.square().sum(dim=1, keepdim=True) + _SMALL)

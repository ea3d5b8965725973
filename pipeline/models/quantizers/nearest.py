"""The nearest code of a vector."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base import full_precision


def nearest_code(rows: Tensor, codebook: Tensor) -> Tensor:
    """Return the number of the nearest (L2) code of every row, [N, d] and [K, d] to int64 [N]; ties to the smaller.

    |r - c|^2 = |r|^2 - 2 r.c + |c|^2 without the term that is the same for every code; measured from the codebook's own
    centre, so that codes far from the origin do not drown their differences in rounding. Autocast has no say.
    """
    with full_precision(rows.device.type):
        codebook = codebook.detach()
        centre = codebook.mean(dim=0)
        centred = codebook - centre
        distances = centred.square().sum(dim=1) - 2.0 * (rows.detach() - centre) @ centred.T
        return distances.argmin(dim=1)


def nearest_in_blocks(rows: Tensor, codebook: Tensor, *, cells: int = 2**24) -> Tensor:
    """Return `nearest_code` of many rows, with a table of at most `cells` distances in memory at a time."""
    block = max(1, cells // codebook.shape[0])
    return torch.cat([nearest_code(part, codebook) for part in torch.split(rows, block)])

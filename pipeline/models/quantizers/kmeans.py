"""k-means: where a codebook begins (Lloyd 1982; k-means++ of Arthur and Vassilvitskii 2007)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .nearest import nearest_in_blocks


@torch.no_grad()
def kmeans(rows: Tensor, start: Tensor, *, iterations: int, spherical: bool = False) -> Tensor:
    """Return centres, float32 [K, d], after Lloyd iterations over rows [N, d] from the centres `start` [K, d].

    A centre that no row chose takes the row farthest from its own centre, as scikit-learn does. spherical: centres are
    scaled to length one in every iteration (for rows of length one: cosine k-means).
    """
    centres = start.clone()
    for _ in range(iterations):
        labels = nearest_in_blocks(rows, centres)
        labels = _fill_empty(rows, centres, labels)
        counts = torch.bincount(labels, minlength=len(centres)).to(rows.dtype).unsqueeze(1)
        sums = torch.zeros_like(centres).index_add_(0, labels, rows)
        # An empty centre is left only where a row that moved away was the last of another: it stays for an iteration.
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
        if spherical:
            centres = F.normalize(centres, dim=1)
    return centres


def _fill_empty(rows: Tensor, centres: Tensor, labels: Tensor) -> Tensor:
    """Return labels in which every empty centre has one row, among the farthest from their own centres."""
    empty = (torch.bincount(labels, minlength=len(centres)) == 0).nonzero().squeeze(1)
    number = min(len(empty), len(rows))
    if number == 0:
        return labels
    distances = (rows - centres[labels]).square().sum(dim=1)
    farthest = distances.topk(number).indices
    labels = labels.clone()
    labels[farthest] = empty[:number]
    return labels


@torch.no_grad()
def spread_out(rows: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Return positions of `number` rows of [N, d], int64, by k-means++: each drawn by its squared distance to the rest.

    All draws come from the CPU generator at once, so that a GPU is never waited for. Where rows run out of distinct
    values, one is taken again.
    """
    shares = torch.rand(number, generator=generator, dtype=torch.float64).to(rows.device)
    chosen = torch.empty(number, dtype=torch.int64, device=rows.device)
    chosen[0] = (shares[0] * len(rows)).long()
    distances = torch.full((len(rows),), torch.inf, dtype=torch.float64, device=rows.device)
    for index in range(1, number):
        latest = (rows - rows[chosen[index - 1]]).square().sum(dim=1).double()
        distances = torch.minimum(distances, latest)
        sums = distances.cumsum(0)
        # right: a row of distance 0 has no width in the sums and is never drawn
        chosen[index] = torch.searchsorted(sums, shares[index : index + 1] * sums[-1], right=True)[0]
        chosen[index].clamp_(max=len(rows) - 1)
    return chosen

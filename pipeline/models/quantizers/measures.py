"""What is said of a codebook: over all steps and all ranks, since the last time it was asked.

Perplexity alone must not be the goal: restarts raise it by crowding codes together (notes, row A4). So it always
comes with the used codes, the share of near-duplicates and the error.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...losses.collectives import sum_over_ranks

NEAR_DUPLICATE = 0.99  # cosine between two codes, seen from the mean code


class CodebookMeasures:
    """Counts the codes chosen and adds up the error; no module and no buffers, which DDP would overwrite with rank 0's.

    All is kept on the device, so that noting a step never waits for it.
    """

    def __init__(self, num_codes: int) -> None:
        self.num_codes = num_codes
        self._totals: Tensor | None = None  # float64 [K + 1] of this rank: uses of every code, sum of squared errors
        self._restarted: int | Tensor = 0

    def note(self, codes: Tensor, squared_error: Tensor) -> None:
        """Take note of codes chosen, int64 [N], and the sum of their vectors' squared distances to them, []."""
        if self._totals is None:
            self._totals = torch.zeros(self.num_codes + 1, dtype=torch.float64, device=codes.device)
        ones = self._totals.new_ones(()).expand(codes.shape[0])
        self._totals.index_add_(0, codes, ones)
        self._totals[-1] += squared_error

    def note_restarts(self, number: int | Tensor) -> None:
        """Take note of codes that began anew on every rank; a number on a device is not waited for."""
        self._restarted = self._restarted + number

    def collect(self, codebook: Tensor) -> dict[str, float]:
        """Return the measures since the last call over all ranks, and begin again; every rank must call it.

        codebook: the codes as they are now, [K, d]. perplexity: exp of the entropy (nats) of the codes chosen, between
        1 and K; its logarithm is also what a code tells of its vector. used_codes: chosen at least once.
        quantisation_error: mean squared distance of a vector to its code. near_duplicate_share: see the function.
        restarted: how often a code began anew. Empty when no rank saw a vector in between.
        """
        totals = self._totals
        if totals is None:
            totals = torch.zeros(self.num_codes + 1, dtype=torch.float64, device=codebook.device)
        restarted, self._totals, self._restarted = self._restarted, None, 0
        totals = sum_over_ranks(totals)
        used, error = totals[:-1], totals[-1]
        vectors = used.sum()
        if float(vectors.item()) == 0:
            return {}
        shares = used / vectors
        return {
            "codebook/perplexity": float((-torch.special.xlogy(shares, shares).sum()).exp().item()),
            "codebook/used_codes": float((used > 0).sum().item()),
            "codebook/quantisation_error": float((error / vectors).item()),
            "codebook/near_duplicate_share": near_duplicate_share(codebook),
            "codebook/restarted": float(restarted),
        }


@torch.no_grad()
def near_duplicate_share(codebook: Tensor, threshold: float = NEAR_DUPLICATE) -> float:
    """Return the share of codes, [K, d], that some other code nearly equals, in 0..1.

    Nearly: the cosine between the two, seen from the mean code, is above `threshold`. Codes of one number (d = 1) know
    only two directions, there it says nothing.
    """
    centred = codebook.double() - codebook.double().mean(dim=0)
    # Codes at the mean itself have no direction; all of them are duplicates where there are two.
    lost = centred.norm(dim=1) <= 1e-12 * codebook.double().norm(dim=1).max()
    directions = F.normalize(centred, dim=1, eps=1e-300)
    closest = torch.empty_like(directions[:, 0])
    for start in range(0, len(directions), 1024):
        cosines = directions[start : start + 1024] @ directions.T
        own = torch.arange(len(cosines), device=cosines.device)
        cosines[own, own + start] = -1.0
        closest[start : start + 1024] = cosines.amax(dim=1)
    duplicates = torch.where(lost, lost.sum() > 1, closest > threshold)
    return float(duplicates.double().mean().item())

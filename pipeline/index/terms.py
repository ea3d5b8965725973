"""What each latent contributes to the score of a pair of photos."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .gaussians import below_median, gaussian
from .latents import Float64, LatentArrays
from .metric import Metric
from .metrics import METRICS

_ROOTED = ("l2", "w2")  # minus the root of a sum over latents
_SUMMED = ("kl", "reverse_kl", "jeffreys")  # minus a sum over latents
_COSINE = "cosine"


def latent_terms(metric: Metric, query: LatentArrays, item: LatentArrays) -> Float64 | None:
    """Return the terms float64 [d] of a pair's score, which sum to it; latents that a mask leaves out have 0.

    query, item: latents [1]. Of a divergence each latent's own, in nats; of a cosine the product of the two unit
    vectors' coordinates; of a distance D = sqrt(sum D_i^2), which is no sum, the shares -D_i^2 / D. None for a metric
    that is no sum over latents.
    """
    base, _, mask = metric.name.partition("/")
    if base not in (*_ROOTED, *_SUMMED, _COSINE):
        return None
    kept = _kept(mask, query)
    if base == _COSINE:
        sides = [np.where(kept, side.mean[0].astype(np.float64), 0.0) for side in (query, item)]
        lengths = [float(np.sqrt(np.sum(side * side))) for side in sides]
        # Each divided by its own: the product of two short vectors' lengths may be 0 where neither is.
        left, right = (side / (length or 1.0) for side, length in zip(sides, lengths, strict=True))
        products: Float64 = left * right
        return products
    # Each latent as a photo of one latent: its score is the metric's over that latent alone.
    own = np.where(kept, METRICS[base].pair_scores(_apart(query), _apart(item)), 0.0)
    if base in _SUMMED:
        return own
    distance = float(np.sqrt(np.sum(own * own)))
    return 0.0 - own * own / (distance or 1.0)


def _kept(mask: str, query: LatentArrays) -> NDArray[np.bool_]:
    """Return which latents a metric's mask keeps, as the last part of its name says it; bool [d]."""
    dim = query.mean.shape[1]
    if not mask:
        return np.ones(dim, np.bool_)
    if mask == "query_median":
        narrow: NDArray[np.bool_] = below_median(gaussian(query).log_var)[0]
        return narrow
    bits = np.frombuffer(bytes.fromhex(mask.rpartition(":")[2]), np.uint8)
    kept: NDArray[np.bool_] = np.unpackbits(bits, count=dim).astype(np.bool_)
    return kept


def _apart(latents: LatentArrays) -> LatentArrays:
    """Return the d latents of one photo as d photos of one latent."""
    log_var = None if latents.log_var is None else latents.log_var[0][:, None]
    return LatentArrays(mean=latents.mean[0][:, None], log_var=log_var)

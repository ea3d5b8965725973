"""How a gradient passes a choice that has none: from the chosen values back to the vectors they were chosen for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SHORT = 1e-6  # a vector of this length has no direction to turn from or to


def straight_through(vectors: Tensor, values: Tensor) -> Tensor:
    """Return the values, with their gradient handed to the vectors unchanged: x + sg(q - x), both [..., d].

    No gradient reaches the values (Bengio et al. 2013, arXiv 1308.3432; arXiv 1711.00937, section 3.2).
    """
    return vectors + (values - vectors).detach()


def rotate(vectors: Tensor, values: Tensor) -> Tensor:
    """Return the values, with their gradient turned and scaled as the values are to the vectors; both [..., d].

    The rotation trick (Fifty et al. 2024, arXiv 2410.06424, section 4.2): q = sg(|q| / |x| R) x with R = I - 2 w w' +
    2 q^ x^', w the unit vector between x^ and q^. The angle between a gradient and its code then stays the angle
    between what the vector gets and the vector. A vector or value of no length gets the gradient unchanged.
    """
    with torch.no_grad():
        length, target_length = vectors.norm(dim=-1, keepdim=True), values.norm(dim=-1, keepdim=True)
        turns = (length > SHORT) & (target_length > SHORT)
        direction, target = F.normalize(vectors, dim=-1), F.normalize(values, dim=-1)
        between = F.normalize(direction + target, dim=-1)
        scale = target_length / length.clamp_min(SHORT)
    reflected = vectors - 2.0 * between * (between * vectors).sum(dim=-1, keepdim=True)
    turned = scale * (reflected + 2.0 * target * (direction * vectors).sum(dim=-1, keepdim=True))
    # Opposite directions leave `between` to rounding, so the values themselves go forward.
    return straight_through(torch.where(turns, turned, vectors), values)

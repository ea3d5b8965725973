"""How alike the photos of a batch are to a student, and to its teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from .collectives import gather_rows, rank_and_world
from .precision import full_precision, widened


def relation(student: Tensor, teacher: Tensor, *, over_ranks: bool) -> Tensor:
    """Return how far a batch's pairwise cosines are from the teacher's; [B, d] and [B, D] to [].

    A student need not give what its teacher says, nor as many numbers, if photos lie to each other as they do there
    (Park et al. 2019, Relational Knowledge Distillation, arXiv 1904.05068; of cosines as in Tung and Mori 2019,
    arXiv 1907.09682). The squared difference, a mean over a photo's pairs with all other photos, then over photos; 0
    for a photo alone. The teacher's rows have no gradient, every student's row has, on whichever rank it lies.

    With over_ranks the other photos are those of all ranks, each of which calls this with equally many: the mean over
    ranks of the values and of the gradients is then that of one rank with all photos. Raises ConfigError for unlike
    numbers of rows.
    """
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        raise ConfigError(
            f"student's rows are {list(student.shape)}, the teacher's {list(teacher.shape)}; both need one row a photo"
        )
    with full_precision(student.device.type):
        own, wanted = F.normalize(widened(student), dim=1), F.normalize(widened(teacher.detach()), dim=1)
        others, known = (gather_rows(own), gather_rows(wanted)) if over_ranks else (own, wanted)
        begin = rank_and_world()[0] * len(own) if over_ranks else 0
        itself = begin + torch.arange(len(own), device=own.device)
        apart = (own @ others.T - wanted @ known.T).square()
        apart = apart.scatter(1, itself[:, None], 0.0)  # a photo is like itself whatever has been learnt
        return apart.sum(dim=1).mean() / max(len(others) - 1, 1)

"""What a student learns of a teacher's shares of prototypes, and how those are kept from being all alike.

Autocast is off in here, as in losses.contrastive: cosines divided by a small temperature do not survive half precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError
from .collectives import gather_rows, rank_and_world
from .precision import full_precision, widened

_ROUNDS = 3  # as SwAV and DINOv2 have it


def distillation(student: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Return the cross entropy of a student's shares of K prototypes to wanted ones; logits and shares [B, K] to [].

    Caron et al. 2021 (DINO, arXiv 2104.14294), algorithm 1: logits are divided by the temperature; a mean over photos.
    The wanted shares have no gradient. Raises ConfigError for unlike shapes or a temperature that is not positive.
    """
    if student.ndim != 2 or student.shape != wanted.shape:
        raise ConfigError(f"logits are {list(student.shape)}, shares {list(wanted.shape)}; both need one shape [B, K]")
    _check(temperature)
    with full_precision(student.device.type):
        logarithms = (widened(student) / temperature).log_softmax(dim=1)
        return -(widened(wanted.detach()) * logarithms).sum(dim=1).mean()


def centred_shares(teacher: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """Return a teacher's shares [B, K] of its logits [B, K] less their running mean `centre` [K]; DINO, algorithm 1.

    Raises ConfigError for a temperature that is not positive.
    """
    _check(temperature)
    with full_precision(teacher.device.type):
        return ((widened(teacher) - centre) / temperature).softmax(dim=1)


def balanced_shares(teacher: Tensor, temperature: float, *, over_ranks: bool) -> Tensor:
    """Return a teacher's shares [B, K] of its logits [B, K], such that a batch has about as much of every prototype.

    Three rounds of Sinkhorn and Knopp on exp(logits / temperature): prototypes are brought to equal sums, then photos
    to the sum 1 (Caron et al. 2020, SwAV, arXiv 2006.09882, section 3 and listing 1; in place of a centre as in DINOv2,
    arXiv 2304.07193, section 4). Without gradient. With over_ranks the batch is that of all ranks, each of which brings
    equally many photos. Raises ConfigError for a temperature that is not positive.
    """
    _check(temperature)
    with torch.no_grad(), full_precision(teacher.device.type):
        own = widened(teacher)
        logarithms = (gather_rows(own) if over_ranks else own) / temperature
        for _ in range(_ROUNDS):
            logarithms = logarithms - logarithms.logsumexp(dim=0, keepdim=True)
            logarithms = logarithms.log_softmax(dim=1)
        begin = rank_and_world()[0] * len(own) if over_ranks else 0
        return logarithms[begin : begin + len(own)].exp()


def _check(temperature: float) -> None:
    if not temperature > 0:
        raise ConfigError(f"temperature is {temperature}; it is above 0, for example 0.04")

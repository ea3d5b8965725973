"""Losses that compare photos: views of the same photo are to lie close together, views of others far apart.

All rows are compared by cosine. Autocast is off in here: a difference of similarities divided by a small temperature
does not survive half precision.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from .collectives import gather_rows, rank_and_world
from .precision import full_precision, widened


def nt_xent(first: Tensor, second: Tensor, temperature: float, *, over_ranks: bool) -> Tensor:
    """Return the normalised temperature-scaled cross entropy of two views of each photo, [B, d] each, to [].

    Chen et al. 2020, arXiv 2002.05709, equation 1: each of the 2 B rows has to tell its other view from all other rows,
    itself excluded; a mean over rows. With over_ranks those are the rows of all ranks, and every rank must call this
    with equally many: the mean over ranks of the values and of the gradients is then that of one rank with all photos.
    A photo alone has nothing to be told from: its loss is 0. Raises ConfigError for unlike shapes or a temperature
    that is not positive.
    """
    _check(first, second, temperature)
    with full_precision(first.device.type):
        anchors = _unit(torch.cat([first, second]))
        count = len(anchors)
        others = gather_rows(anchors) if over_ranks else anchors
        own = torch.arange(count, device=anchors.device)
        begin = rank_and_world()[0] * count if over_ranks else 0
        logits = anchors @ others.T / temperature
        itself = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, (begin + own)[:, None], value=True)
        partner = begin + (own + count // 2) % count
        return F.cross_entropy(logits.masked_fill(itself, -torch.inf), partner)


def sup_con(first: Tensor, second: Tensor, groups: Tensor, temperature: float, *, over_ranks: bool) -> Tensor:
    """Return the supervised contrastive loss of two views of each photo, [B, d] each, to [].

    Khosla et al. 2020, arXiv 2004.11362, equation 2 (the sum outside of the logarithm): each of the 2 B rows has to
    tell every row of its photo's group from all other rows, itself excluded; a mean over rows. groups: int64 [B]; a
    negative one is no group, and such a photo has its own other view alone, as in `nt_xent`. over_ranks: as there.
    Raises ConfigError for unlike shapes or a temperature that is not positive.
    """
    _check(first, second, temperature)
    if groups.shape != first.shape[:1]:
        raise ConfigError(f"groups are {list(groups.shape)} for {len(first)} photos; give one of each")
    with full_precision(first.device.type):
        anchors = _unit(torch.cat([first, second]))
        count = len(anchors)
        rank, world = rank_and_world() if over_ranks else (0, 1)
        photo = rank * len(groups) + torch.arange(len(groups), device=groups.device)
        mine = torch.where(groups < 0, -1 - photo, groups).repeat(2)
        others = gather_rows(anchors) if over_ranks else anchors
        # Whole numbers below 2^53 travel as they are.
        theirs = gather_rows(mine.double()[:, None])[:, 0].long() if world > 1 else mine
        own = torch.arange(count, device=anchors.device)
        logits = anchors @ others.T / temperature
        itself = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, (rank * count + own)[:, None], value=True)
        shares = logits - logits.masked_fill(itself, -torch.inf).logsumexp(dim=1, keepdim=True)
        alike = (mine[:, None] == theirs) & ~itself
        return -((shares * alike).sum(dim=1) / alike.sum(dim=1)).mean()


def info_nce(
    queries: Tensor, keys: Tensor, queue: Tensor, temperature: float, *, filled: Tensor | None = None
) -> Tensor:
    """Return the cross entropy of telling each query's key from the rows of a queue; [B, d], [B, d], [K, d] to [].

    He et al. 2020, arXiv 1911.05722, equation 1; a mean over queries. Keys and queue have no gradient. The queue's rows
    are taken as they are, of length 1; queries and keys are brought to it. filled: how many of the queue's first rows
    count, int64 []; None: all. Without any the loss is 0. Raises ConfigError for unlike shapes or a
    temperature that is not positive.
    """
    _check(queries, keys, temperature)
    with full_precision(queries.device.type):
        queries, keys = _unit(queries), _unit(keys.detach())
        right = (queries * keys).sum(dim=1, keepdim=True)
        wrong = queries @ queue.detach().to(queries.dtype).T
        if filled is not None:
            wrong = wrong.masked_fill(torch.arange(len(queue), device=queue.device) >= filled, -torch.inf)
        logits = torch.cat([right, wrong], dim=1) / temperature
        return F.cross_entropy(logits, torch.zeros(len(queries), dtype=torch.int64, device=queries.device))


def info_nce_in_batch(queries: Tensor, keys: Tensor, temperature: float, *, over_ranks: bool) -> Tensor:
    """Return the cross entropy of telling each query's key from the batch's other keys; [B, d] twice to [].

    Chen et al. 2021 (MoCo v3, arXiv 2104.02057), algorithm 1: a mean over queries, times 2 temperature. Keys have no
    gradient. With over_ranks the other keys are those of all ranks, of which each must bring equally many: the mean
    over ranks of the values and of the gradients is then that of one rank with all photos. Raises ConfigError for
    unlike shapes or a temperature that is not positive.
    """
    _check(queries, keys, temperature)
    with full_precision(queries.device.type):
        queries, keys = _unit(queries), _unit(keys.detach())
        others = gather_rows(keys) if over_ranks else keys
        begin = rank_and_world()[0] * len(keys) if over_ranks else 0
        own = begin + torch.arange(len(queries), device=queries.device)
        return 2.0 * temperature * F.cross_entropy(queries @ others.T / temperature, own)


def triplet(anchors: Tensor, positives: Tensor, negatives: Tensor, *, margin: float = 1.0) -> Tensor:
    """Return by how much each anchor is not nearer, by `margin`, to its positive than to its negative; [B, d] to [].

    Euclidean distances of the rows as they are, a mean over anchors (Schroff et al. 2015, arXiv 1503.03832, equation 3,
    with distances in place of their squares, as in torch.nn.TripletMarginLoss). Raises ConfigError for unlike shapes.
    """
    if not anchors.shape == positives.shape == negatives.shape:
        shapes = ", ".join(str(list(rows.shape)) for rows in (anchors, positives, negatives))
        raise ConfigError(f"anchors, positives and negatives are {shapes}; all three need one shape [B, d]")
    anchors, positives, negatives = widened(anchors), widened(positives), widened(negatives)
    near, far = F.pairwise_distance(anchors, positives), F.pairwise_distance(anchors, negatives)
    return (near - far + margin).clamp_min(0.0).mean()


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(widened(rows), dim=1)


def _check(first: Tensor, second: Tensor, temperature: float) -> None:
    if first.ndim != 2 or first.shape != second.shape:
        raise ConfigError(f"views are {list(first.shape)} and {list(second.shape)}; both need one shape [B, d]")
    if not temperature > 0:
        raise ConfigError(f"temperature is {temperature}; it is above 0, for example 0.2")

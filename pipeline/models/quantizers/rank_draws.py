"""Rows drawn from all ranks: the same on every rank, and the same that one rank draws of the concatenated batch."""

from __future__ import annotations

import torch
from torch import Tensor

from ...losses.collectives import from_first, pick_rows, rank_and_world, rows_per_rank
from .kmeans import kmeans, spread_out

ROWS_PER_CODE = 64  # of the sample for k-means; faiss trains well on 39 to 256
MANY_ROWS, FEW_PER_CODE = 2**16, 4  # of large codebooks fewer rows, or the first step would take minutes
ITERATIONS = 10


def draw(number: int, total: int, seed: int) -> Tensor:
    """Return positions below `total`, int64 [number], on the CPU; all different where there are enough."""
    generator = torch.Generator().manual_seed(seed)
    if total >= number:
        return torch.randperm(total, generator=generator)[:number]
    return torch.randint(total, (number,), generator=generator)


def sample(rows: Tensor, number: int, seed: int) -> Tensor:
    """Return `number` rows, [number, d], of all ranks' rows [N, d]; every rank must call it."""
    per_rank = rows_per_rank(rows)
    chosen = draw(number, int(per_rank.sum().item()), seed).to(rows.device)
    return pick_rows(rows, from_first(chosen), per_rank)


def sample_centres(rows: Tensor, number: int, seed: int, *, spherical: bool) -> Tensor:
    """Return the k-means centres, [number, d], of a sample of all ranks' rows [N, d]; every rank must call it.

    At most 64 rows per centre travel, and of more than 65,536 at most 4. Rank 0 alone computes, so that ranks on
    different hardware agree too. With fewer rows than centres these are rows, some more than once.
    """
    per_rank = rows_per_rank(rows)
    total = int(from_first(per_rank.sum()).item())
    if total <= number:
        return sample(rows, number, seed)
    wanted = min(ROWS_PER_CODE * number, max(FEW_PER_CODE * number, MANY_ROWS))
    drawn = sample(rows, min(total, wanted), seed)
    centres = drawn[:number].clone()
    if rank_and_world()[0] == 0:
        begin = drawn[spread_out(drawn, number, torch.Generator().manual_seed(seed))]
        centres = kmeans(drawn, begin, iterations=ITERATIONS, spherical=spherical)
    return from_first(centres)


def replacements(dead: Tensor, rows: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return which codes begin anew, bool [K], and as which of all ranks' rows [N, d], [number, d].

    dead: what this rank thinks, bool [K]; rank 0's word counts, and which rows too, so that no rank waits in a
    collective alone. Every rank must call it.
    """
    per_rank = rows_per_rank(rows)
    # -1: the code lives.
    decision = torch.full_like(dead, -1, dtype=torch.int64)
    if bool(dead.any()):
        decision[dead] = draw(int(dead.sum().item()), int(per_rank.sum().item()), seed).to(rows.device)
    decision = from_first(decision)
    dead = decision >= 0
    if not bool(dead.any()):
        return dead, rows[:0]
    return dead, pick_rows(rows, decision[dead], per_rank)

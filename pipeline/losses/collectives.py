"""What a loss or a quantizer asks of its peers: sums, rank 0's word, rows that lie on other ranks.

Whether there are peers is asked at every call: what is built before the process group joins it too. Only `gather_rows`
lets a gradient through.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import ConfigError


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the number of ranks; (0, 1) where torch.distributed is not running."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks, the same bits on every rank; the tensor itself may be overwritten."""
    if rank_and_world()[1] > 1:
        dist.all_reduce(values)
    return values


def from_first(values: Tensor) -> Tensor:
    """Return rank 0's tensor on every rank; the others' may be overwritten."""
    if rank_and_world()[1] > 1:
        dist.broadcast(values, src=0)
    return values


def rows_per_rank(rows: Tensor) -> Tensor:
    """Return how many rows each rank holds, int64 [world_size], on every rank."""
    rank, world = rank_and_world()
    numbers = torch.zeros(world, dtype=torch.int64, device=rows.device)
    numbers[rank] = rows.shape[0]
    return sum_over_ranks(numbers)


def pick_rows(rows: Tensor, chosen: Tensor, per_rank: Tensor) -> Tensor:
    """Return rows [R, d] of the concatenation of every rank's `rows` [N, d], in rank order, on every rank.

    chosen: positions in the concatenation, int64 [R], the same on every rank; per_rank: `rows_per_rank(rows)`. Only the
    chosen rows travel.
    """
    rank, _ = rank_and_world()
    local = chosen - per_rank[:rank].sum()
    mine = (local >= 0) & (local < rows.shape[0])
    if not len(rows):
        return sum_over_ranks(rows.new_zeros(len(chosen), rows.shape[1]))
    # By a mask, not by positions of it, which a GPU would have to be waited for.
    picked = torch.where(mine.unsqueeze(1), rows[local.clamp(0, len(rows) - 1)], rows.new_zeros(()))
    return sum_over_ranks(picked)


def gather_rows(rows: Tensor) -> Tensor:
    """Return every rank's `rows` [N, d] as one tensor [world_size * N, d] in rank order, on every rank.

    The one collective here with a gradient: that of a rank's rows is the sum of what all ranks' losses ask of them.
    Without it, or with another rank's rows detached, a loss that compares photos has the wrong gradient. Every rank
    must call this, and run the backward pass. Raises ConfigError, on every rank, where ranks hold unlike numbers.
    """
    _, world = rank_and_world()
    if world == 1:
        return rows
    numbers = rows_per_rank(rows).tolist()  # asked each time: gathering unlike numbers would hang or be garbage
    if len(set(numbers)) > 1:
        raise ConfigError(
            f"ranks hold {numbers} photos of a batch, and a loss that compares the photos of all ranks needs equally "
            "many on each; use a train.batch_size that is a multiple of train.workers"
        )
    gathered: Tensor = _GatherRows.apply(rows)
    return gathered


class _GatherRows(torch.autograd.Function):
    """All-gather whose gradient is summed over ranks; the functions of torch.distributed.nn do the same."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rank, world = rank_and_world()
        ctx.own = slice(rank * len(rows), (rank + 1) * len(rows))
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(world)]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient.clone(memory_format=torch.contiguous_format))[ctx.own]

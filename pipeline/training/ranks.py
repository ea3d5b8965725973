"""Where one training process stands among its peers, and the few collectives the loop needs."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import ConfigError

ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Ranks:
    """rank of world_size processes, computing on `device`; with world_size 1 no process group is needed."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Return whether this is rank 0, which writes what is written once."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over all ranks, on every rank."""
        if self.world_size > 1:
            values = values.clone()
            dist.all_reduce(values)
            values /= self.world_size
        return values

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks, on every rank."""
        if self.world_size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def largest(self, numbers: Sequence[int]) -> list[int]:
        """Return the largest of every number over all ranks, on every rank."""
        if self.world_size == 1:
            return list(numbers)
        shared = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return [int(number) for number in shared.tolist()]

    def from_first(self, number: int) -> int:
        """Return rank 0's number on every rank."""
        if self.world_size == 1:
            return number
        shared = torch.tensor([number], dtype=torch.int64, device=self.device)
        dist.broadcast(shared, src=0)
        return int(shared.item())

    def wait_for_all(self) -> None:
        """Return once every rank has come here."""
        self.mean(torch.zeros(1, device=self.device)).item()

    def place(self, model: ModelT) -> ModelT:
        """Return the model on this rank's device, with batch norms whose statistics are those of all ranks.

        Raises ConfigError for batch norms on several CPU ranks: torch has them synchronised on GPUs only.
        """
        kind = nn.modules.batchnorm._BatchNorm
        # Those of a finished model that this one holds are no longer about any batch.
        normed = [name for name, module in model.named_modules() if isinstance(module, kind) and module.training]
        if normed and self.world_size > 1:
            if self.device.type != "cuda":
                raise ConfigError(
                    f"{self.world_size} training workers on CPUs and {type(model).__name__} has batch norms "
                    f"({normed[0]}), which would see each worker's photos alone; use norm group, or train.workers 1"
                )
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        if self.device.type == "cuda":  # convolutions in bf16 are fastest with the channels last
            model = model.to(memory_format=torch.channels_last)
        return model.to(self.device)

    @contextmanager
    def exchange(self, parallel: nn.Module, *, now: bool) -> Iterator[None]:
        """Within this context a backward pass averages gradients over the ranks only if `now`; else they wait."""
        if not now and isinstance(parallel, DistributedDataParallel):
            with parallel.no_sync():
                yield
        else:
            yield

    def parallel(self, model: nn.Module) -> nn.Module:
        """Return the module whose forward averages gradients over the ranks: the model itself for one rank."""
        if self.world_size == 1:
            return model
        # Of 1 x 1 kernels both layouts are the same memory under two names; nothing is slower.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
        if self.device.type == "cuda":
            return DistributedDataParallel(model, device_ids=[self.device])
        if self.world_size == 2:
            return DistributedDataParallel(model)
        # DDP otherwise regroups its buckets after the first step of a process, and with three or more ranks (a sum of
        # two has only one order) the order of a sum follows the buckets: a resumed training would differ in the last
        # bit. Looking for unused parameters keeps the first grouping.
        warnings.filterwarnings("ignore", "find_unused_parameters=True was specified", UserWarning)
        return DistributedDataParallel(model, find_unused_parameters=True)


def seed_rank(seed: int, rank: int) -> None:
    """Seed torch, numpy and random for one rank; ranks draw different noise."""
    number = int(np.random.SeedSequence([seed, rank]).generate_state(1, np.uint64)[0])
    torch.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of every global random generator, in types that `torch.load(weights_only=True)` admits."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, gauss],
        "python": random.getstate(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random(state: dict[str, Any], device: torch.device) -> None:
    """Set every global random generator to a state of `random_state`."""
    torch.set_rng_state(state["torch"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    if device.type == "cuda" and "cuda" in state:  # a training may go on on a GPU that began without one
        torch.cuda.set_rng_state(state["cuda"], device)

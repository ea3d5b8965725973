"""Contrastive losses on two and four gloo ranks under DDP against one rank with all photos; the wrong ways beside them.

Every rank runs `rank_main`; see tests/ranks.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.losses import info_nce, nt_xent, relation, sup_con, triplet
from pipeline.losses.collectives import gather_rows

PHOTOS, WIDTH, STEPS, TEMPERATURE = 16, 12, 3, 0.2
NAMES = ["nt_xent", "info_nce", "triplet", "sup_con", "relation"]
ALONE, DETACHED = "nt_xent of each rank alone", "nt_xent of detached rows"
RELATION_ALONE = "relation of each rank alone"


def detached_nt_xent(first: Tensor, second: Tensor) -> Tensor:
    """Return the known wrong loss: the right value, but other ranks' rows have no gradient."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    own = F.normalize(torch.cat([first, second]), dim=1)
    parts = [torch.empty_like(own) for _ in range(world)]
    torch.distributed.all_gather(parts, own.detach().contiguous())
    parts[rank] = own
    logits = own @ torch.cat(parts).T / TEMPERATURE
    begin, row = rank * len(own), torch.arange(len(own))
    logits[row, begin + row] = -torch.inf
    return F.cross_entropy(logits, begin + (row + len(first)) % len(own))


class Trained(nn.Module):
    """A small encoder whose forward pass is the loss of that name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.name = name
        self.encoder = nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, 8))
        self.queue = F.normalize(torch.randn(24, 8), dim=1)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        if self.name.startswith("relation"):  # the second photo's numbers are the teacher's features
            return relation(self.encoder(first), second, over_ranks=self.name != RELATION_ALONE)
        groups = torch.where(first[:, 1] > 0.8, -1, (first[:, 0] > 0).long())  # of the photos, whichever rank has them
        first, second = self.encoder(first), self.encoder(second)
        if self.name == "sup_con":
            return sup_con(first, second, groups, TEMPERATURE, over_ranks=True)
        if self.name == DETACHED:
            return detached_nt_xent(first, second)
        if self.name == "info_nce":
            return info_nce(first, second, self.queue, TEMPERATURE)
        if self.name == "triplet":
            return triplet(first, second, self.queue[:1].to(first.dtype).expand_as(first))
        return nt_xent(first, second, TEMPERATURE, over_ranks=self.name != ALONE)


def run(name: str, rank: int, world: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Return the loss, a mean over ranks, and every gradient, after each of a few steps."""
    module = Trained(name).to(dtype)
    trained: Any = nn.parallel.DistributedDataParallel(module) if world > 1 else module
    optimiser = torch.optim.SGD(module.parameters(), 0.05)
    found: dict[str, Tensor] = {}
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        photos = torch.randn(PHOTOS, WIDTH, generator=generator, dtype=torch.float64)
        other = photos + 0.5 * torch.randn(PHOTOS, WIDTH, generator=generator, dtype=torch.float64)
        share = slice(rank * PHOTOS // world, (rank + 1) * PHOTOS // world)
        optimiser.zero_grad()
        loss = trained(photos[share].to(dtype), other[share].to(dtype))
        loss.backward()
        value = loss.detach().clone()
        if world > 1:
            torch.distributed.all_reduce(value)
        found[f"{step} loss"] = value / world
        found |= {f"{step} {key}": weight.grad.clone() for key, weight in module.named_parameters()}
        optimiser.step()
    return found


def gathered(rank: int, world: int) -> dict[str, Tensor]:
    """Return gathered rows, their gradient under a weight that differs by rank, and what unlike numbers give."""
    rows = (torch.arange(6.0).view(3, 2) + 10.0 * rank).T.requires_grad_()  # not contiguous
    everything = gather_rows(rows)
    ((rank + 1.0) * everything.square().sum()).backward()
    assert rows.grad is not None
    refused = 0
    try:
        gather_rows(torch.zeros(3 + rank, 2))
    except ConfigError as error:
        refused = int(str(error).startswith(f"ranks hold {list(range(3, 3 + world))} photos"))
    return {"rows": everything.detach(), "gradient": rows.grad, "refused": torch.tensor(refused)}


def rank_main(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    found: dict[str, Any] = {name: run(name, rank, world) for name in [*NAMES, ALONE, DETACHED, RELATION_ALONE]}
    found["single precision"] = run("nt_xent", rank, world, torch.float32)
    found["gathered"] = gathered(rank, world)
    torch.save(found, Path(folder) / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 4], ids=["2 ranks", "4 ranks"])
def ranks(request: pytest.FixtureRequest, run_ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each of several processes found, by case."""
    return run_ranks(__file__, request.param, tmp_path_factory.mktemp("ranks"))


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest relative difference of two sets of tensors, each by its own length."""
    assert found.keys() == expected.keys()
    return max(((found[key] - expected[key]).norm() / expected[key].norm().clamp_min(1e-12)).item() for key in found)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_ranks_have_the_losses_and_gradients_of_one(ranks: list[dict[str, Any]], name: str) -> None:
    expected = run(name, 0, 1)
    for rank in ranks:
        assert difference(rank[name], expected) < 1e-10


@pytest.mark.slow
def test_in_single_precision_too(ranks: list[dict[str, Any]]) -> None:
    expected = run("nt_xent", 0, 1, torch.float32)
    print(f"{len(ranks)} ranks, float32: {difference(ranks[0]['single precision'], expected):.1e}")
    assert max(difference(rank["single precision"], expected) for rank in ranks) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", [ALONE, DETACHED, RELATION_ALONE])
def test_no_gather_and_a_detached_gather_have_other_gradients(ranks: list[dict[str, Any]], name: str) -> None:
    right = "relation" if name == RELATION_ALONE else "nt_xent"
    expected = {key: value for key, value in run(right, 0, 1).items() if key.startswith("0 encoder")}
    found = {key: ranks[0][name][key] for key in expected}
    print(f"{name}, {len(ranks)} ranks: {difference(found, expected):.3f}")
    assert difference(found, expected) > 0.05


@pytest.mark.slow
def test_a_detached_gather_has_the_right_value(ranks: list[dict[str, Any]]) -> None:
    """Why it takes a look at gradients to see it."""
    expected = run("nt_xent", 0, 1)["0 loss"]
    torch.testing.assert_close(ranks[0][DETACHED]["0 loss"], expected, rtol=1e-10, atol=0.0)


@pytest.mark.slow
def test_rows_come_in_rank_order_and_their_gradient_is_the_sum_over_ranks(ranks: list[dict[str, Any]]) -> None:
    world = len(ranks)
    expected = torch.cat([(torch.arange(6.0).view(3, 2) + 10.0 * rank).T for rank in range(world)])
    for number, rank in enumerate(ranks):
        assert torch.equal(rank["gathered"]["rows"], expected)
        own = expected[2 * number : 2 * number + 2]
        torch.testing.assert_close(rank["gathered"]["gradient"], 2.0 * own * sum(range(1, world + 1)))
        assert rank["gathered"]["refused"].item() == 1

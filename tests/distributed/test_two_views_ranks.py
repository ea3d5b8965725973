"""SimCLR, MoCo, MoCo v3 and DINO on two and four gloo ranks under DDP against one rank with all photos.

Losses, weights, the queue, the copies, the centre. Every rank runs `rank_main`; see tests/ranks.py.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.models import Batch, ModelConfig, Step, build_model, dino, moco, moco_v3, simclr
from pipeline.models.dino import DINOConfig
from pipeline.models.moco import MoCoConfig
from pipeline.models.moco_v3 import MoCoV3Config
from pipeline.models.simclr import SimCLRConfig

PHOTOS, STEPS = 16, 4
SMALL: dict[str, Any] = {"channels": (8, 16), "projector": (16, 8)}
CONFIGS: dict[str, ModelConfig] = {
    "simclr": SimCLRConfig(**SMALL),
    "moco": MoCoConfig(queue=100, momentum=0.9, **SMALL),
    "moco_v3": MoCoV3Config(momentum=0.9, predictor=12, **SMALL),
    "dino": DINOConfig(momentum=0.9, prototypes=12, **SMALL),
    "dino with a centre": DINOConfig(momentum=0.9, prototypes=12, centring="mean", centre_momentum=0.5, **SMALL),
}
CONTROLS = {f"{kind} of each rank alone": kind for kind in CONFIGS}


def shown(step: int, mine: slice) -> Tensor:
    """Return two views of a rank's photos, uint8 [2 B, 3, 16, 16]: the same of a photo wherever it lies."""
    generator = torch.Generator().manual_seed(step)
    views = torch.randint(0, 256, (2, PHOTOS, 3, 16, 16), dtype=torch.uint8, generator=generator)
    views[1] = views[0] // 2 + views[1] // 2
    return views[:, mine].flatten(0, 1)


def run(case: str, rank: int, world: int) -> dict[str, Any]:
    """Return a training's state, the mean over ranks of every step's loss, and its measures."""
    torch.manual_seed(0)
    model = build_model(CONFIGS[CONTROLS.get(case, case)], image_size=16)
    trained: Any = torch.nn.parallel.DistributedDataParallel(model) if world > 1 else model
    optimiser = torch.optim.SGD(model.parameters(), 0.05)
    losses = []
    for step in range(STEPS):
        optimiser.zero_grad()
        batch = Batch(shown(step, slice(rank * PHOTOS // world, (rank + 1) * PHOTOS // world)))
        total = trained(batch, Step(step, STEPS)).total
        total.backward()
        optimiser.step()
        model.after_step()
        losses.append(total.detach())
    means = torch.stack(losses)
    if world > 1:
        torch.distributed.all_reduce(means)
    model.eval()  # in which no rank may wait for another
    if rank == 0:
        model(batch, Step(0, STEPS))
    return {"state": {**model.state_dict(), "losses": means / world}, "scalars": model.scalars()}


def rank_main(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    # As the loop does: of 1 x 1 kernels both layouts are the same memory.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    found = {case: run(case, rank, world) for case in CONFIGS}
    right, gather = simclr.nt_xent, moco.gather_rows
    simclr.nt_xent = lambda *rows, over_ranks: right(*rows, over_ranks=False)  # type: ignore[assignment]
    moco.gather_rows = lambda rows: rows
    moco.rank_and_world = lambda: (0, 1)
    in_batch = moco_v3.info_nce_in_batch
    moco_v3.info_nce_in_batch = lambda *rows, over_ranks: in_batch(*rows, over_ranks=False)  # type: ignore[assignment]
    balanced = dino.balanced_shares
    dino.balanced_shares = lambda *rows, over_ranks: balanced(*rows, over_ranks=False)  # type: ignore[assignment]
    dino.sum_over_ranks = lambda values: values
    dino.rows_per_rank = lambda rows: torch.tensor([len(rows)])
    assert gather is not moco.gather_rows
    found |= {case: run(case, rank, world) for case in CONTROLS}
    torch.save(found, Path(folder) / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 4], ids=["2 ranks", "4 ranks"])
def ranks(request: pytest.FixtureRequest, run_ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each of several processes found, by case."""
    return run_ranks(__file__, request.param, tmp_path_factory.mktemp("ranks"))


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest relative difference of two sets of tensors, each by its own length."""
    assert found.keys() == expected.keys()
    pairs = [(found[key].double(), expected[key].double()) for key in expected]
    return max(((one - other).norm() / other.norm().clamp_min(1e-3)).item() for one, other in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("case", sorted(CONFIGS))
def test_ranks_train_as_one_does(ranks: list[dict[str, Any]], case: str) -> None:
    """All of it: losses, weights, of MoCo the following network and the queue in its order; and equal on all ranks."""
    expected = run(case, 0, 1)
    print(f"{case}, {len(ranks)} ranks: {difference(ranks[0][case]['state'], expected['state']):.1e}")
    for rank in ranks:
        assert difference(rank[case]["state"], expected["state"]) < 1e-4
        assert rank[case]["scalars"] == pytest.approx(expected["scalars"], rel=1e-4)
    for name, tensor in ranks[0][case]["state"].items():
        assert all(torch.equal(rank[case]["state"][name], tensor) for rank in ranks), name


@pytest.mark.slow
@pytest.mark.parametrize("case", sorted(CONTROLS))
def test_ranks_that_keep_to_their_own_photos_train_otherwise(ranks: list[dict[str, Any]], case: str) -> None:
    expected = run(CONTROLS[case], 0, 1)["state"]
    assert difference(ranks[0][case]["state"], expected) > 0.01

"""Two gloo ranks against one rank with the concatenated batch: a VQ-VAE-2 under DDP, both codebooks and the gradients.

In float64, so that what is left is no rounding. Every rank runs `rank_main`; see tests/ranks.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from pipeline.models import Batch, Step, build_model, vqvae2
from pipeline.models.quantizers import following

STEPS, PHOTOS, SIZE, WORLD = 6, 16, 20, 2
TOLERANCE = 1e-5  # relative
EMA = {"kind": "ema", "num_codes": 24, "code_dim": 4, "restart_threshold": 0.3}
GRADIENT = {"kind": "gradient", "num_codes": 20, "code_dim": 3, "restart_threshold": 0.3, "normalise": True}
# The control comes last: ranks whose codebooks never learnt of the process group.
BOTH, MIXED, ALONE = "ema on both levels", "ema above gradient", "ranks alone"
CASES = [BOTH, MIXED, ALONE]


def new(case: str) -> Any:
    torch.manual_seed(0)
    bottom = GRADIENT if case == MIXED else EMA
    config = vqvae2.VQVAE2Config.model_validate(
        {"channels": [4, 6, 8], "top_quantizer": EMA, "bottom_quantizer": bottom}
    )
    return build_model(config, image_size=SIZE).double()


def run(model: Any, rank: int, world: int) -> dict[str, Any]:
    """Train on this rank's half of every batch; return state, gradients and measures."""
    trained: Any = DistributedDataParallel(model) if world > 1 else model
    optimiser = torch.optim.SGD(model.parameters(), 1e-5)
    noted = {}
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        images = torch.randint(0, 256, (PHOTOS, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
        size = PHOTOS // world
        optimiser.zero_grad()
        trained(Batch(images[rank * size : (rank + 1) * size]), Step(step, STEPS)).total.backward()
        noted |= {f"gradient {step} {name}": value.grad.clone() for name, value in model.named_parameters()}
        optimiser.step()
        model.after_step()
    return {"state": model.state_dict() | noted, "scalars": model.scalars()}


def run_all(models: dict[str, Any], rank: int, world: int) -> dict[str, Any]:
    to_float, summed = vqvae2.to_float, following.sum_over_ranks
    vqvae2.to_float = lambda images: images.double() / 255
    found = {}
    try:
        for case, model in models.items():
            if case == ALONE:
                following.sum_over_ranks = lambda values: values
            found[case] = run(model, rank, world)
    finally:
        vqvae2.to_float, following.sum_over_ranks = to_float, summed
    return found


def rank_main(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    # Built before the process group exists: whether there are peers must not be settled here.
    models = {case: new(case) for case in CASES}
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    torch.save(run_all(models, rank, world), Path(folder) / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found = run_all({case: new(case) for case in CASES}, 0, 1)
    torch.set_num_threads(before)
    return found


@pytest.fixture(scope="module")
def ranks(run_ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each process ended with."""
    return run_ranks(__file__, WORLD, tmp_path_factory.mktemp("ranks"))


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the relative error |a - b| / |b|; a b of nothing but rounding (of codes at their means) counts as 1e-9."""
    size = max(expected.double().norm().item(), 1e-9)
    return (found.double() - expected.double()).norm().item() / size


@pytest.mark.slow
@pytest.mark.parametrize("case", [BOTH, MIXED])
def test_ranks_equal_one_with_the_concatenated_batch(
    case: str, ranks: list[dict[str, Any]], one: dict[str, Any]
) -> None:
    expected, first = one[case], ranks[0][case]
    assert expected["state"].keys() == first["state"].keys()
    for name, tensor in expected["state"].items():
        assert apart(first["state"][name], tensor) < TOLERANCE, name
    for other in ranks[1:]:
        assert all(torch.equal(tensor, first["state"][name]) for name, tensor in other[case]["state"].items())
        assert other[case]["scalars"] == first["scalars"]
    assert first["scalars"] == pytest.approx(expected["scalars"], rel=TOLERANCE)
    for level in ("top", "bottom"):
        assert expected["scalars"][f"{level}/codebook/used_codes"] > 1


@pytest.mark.slow
def test_without_sums_over_ranks_the_codebooks_of_both_levels_part(ranks: list[dict[str, Any]]) -> None:
    # DDP sends rank 0's buffers round before every forward pass, so what is left is what the last step moved.
    first, second = (rank[ALONE]["state"] for rank in ranks)
    for level in ("top", "bottom"):
        assert not torch.equal(first[f"{level}_quantizer.codebook"], second[f"{level}_quantizer.codebook"])

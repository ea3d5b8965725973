"""Two and four gloo ranks against one rank with the concatenated batch: FSQ, SimVQ, and a VQ-VAE of every quantizer.

In float64, so that what is left is no rounding. Every rank runs all cases in one go.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.models import Batch, Step, build_model, seen, vqvae
from pipeline.models.quantizers import FSQQuantizer, Quantised, SimVQQuantizer

STEPS, MODEL_STEPS, PHOTOS, CELLS, DIM = 30, 5, 16, 4, 3
WORLDS = [2, 4]
TOLERANCE = 1e-5  # relative; measured: 1e-15, and 3e-8 of a gradient that is zero but for rounding
FSQ, SIMVQ, ROTATION, ALONE = "fsq", "simvq", "simvq by rotation", "simvq of ranks alone"
CODERS = [FSQ, SIMVQ, ROTATION, ALONE]
CODEBOOK = {"num_codes": 24, "code_dim": 4}
MODELS: dict[str, dict[str, Any]] = {
    "ema": {"kind": "ema", **CODEBOOK, "restart_threshold": 0.3},
    "gradient": {"kind": "gradient", **CODEBOOK, "restart_threshold": 0.3, "gradient": "rotation", "normalise": True},
    "fsq": {"kind": "fsq", "levels": [5, 4, 3]},
    "simvq": {"kind": "simvq", **CODEBOOK, "normalise": True},
}
MODEL_CASES = [*(f"{kind} grid" for kind in MODELS), "ema single"]


def vectors(step: int) -> Tensor:
    """Return one step's vectors, float64 [16, 4, 3]."""
    return 2 * torch.randn(PHOTOS, CELLS, DIM, generator=torch.Generator().manual_seed(100 + step)).double()


def shard(rows: Tensor, rank: int, world: int) -> Tensor:
    size = len(rows) // world
    return rows[rank * size : (rank + 1) * size]


class Coder(nn.Module):
    """The least that trains: a linear encoder before a quantizer, and something to bring back."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.encoder = nn.Linear(DIM, DIM)
        path: Any = "rotation" if case == ROTATION else "straight_through"
        self.quantizer: Any = FSQQuantizer((5, 4, 6)) if case == FSQ else SimVQQuantizer(24, DIM, gradient=path)
        self.decoder = nn.Linear(DIM, DIM)

    def forward(self, rows: Tensor) -> Tensor:
        quantised: Quantised = self.quantizer(self.encoder(rows))
        return quantised.loss + (self.decoder(quantised.passed) - rows).square().sum() / len(rows)


def new(case: str) -> Any:
    torch.manual_seed(0)
    if case in CODERS:
        return Coder(case).double()
    kind, codes = case.split()
    config = vqvae.VQVAEConfig.model_validate({"channels": [4, 8], "codes": codes, "quantizer": MODELS[kind]})
    return build_model(config, image_size=16).double()


def gradients(module: nn.Module, step: int) -> dict[str, Tensor]:
    named = module.named_parameters()
    return {f"gradient {step} {name}": value.grad.clone() for name, value in named if value.grad is not None}


def run_coder(coder: Coder, rank: int, world: int, *, wrapped: bool) -> dict[str, Any]:
    trained: Any = DistributedDataParallel(coder) if wrapped else coder
    optimiser = torch.optim.SGD(coder.parameters(), 0.005)
    noted = {}
    for step in range(STEPS):
        optimiser.zero_grad()
        trained(shard(vectors(step), rank, world)).backward()
        if step in {0, STEPS - 1}:
            noted |= gradients(coder, step)
        optimiser.step()
        coder.quantizer.update()
    return {"state": coder.state_dict() | noted, "scalars": coder.quantizer.scalars()}


def run_model(model: Any, rank: int, world: int) -> dict[str, Any]:
    trained: Any = DistributedDataParallel(model) if world > 1 else model
    optimiser = torch.optim.SGD(model.parameters(), 1e-5)
    noted = {}
    for step in range(MODEL_STEPS):
        generator = torch.Generator().manual_seed(step)
        images = torch.randint(0, 256, (PHOTOS, 3, 16, 16), dtype=torch.uint8, generator=generator)
        optimiser.zero_grad()
        trained(Batch(shard(images, rank, world)), Step(step, MODEL_STEPS)).total.backward()
        noted |= gradients(model, step)
        optimiser.step()
        model.after_step()
    return {"state": model.state_dict() | noted, "scalars": model.scalars()}


def run_all(modules: dict[str, Any], rank: int, world: int) -> dict[str, Any]:
    before = seen.to_float
    seen.to_float = lambda images: images.double() / 255
    try:
        found = {case: run_coder(modules[case], rank, world, wrapped=world > 1 and case != ALONE) for case in CODERS}
        return found | {case: run_model(modules[case], rank, world) for case in MODEL_CASES}
    finally:
        seen.to_float = before


def rank_main(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    # Built before the process group exists: whether there are peers must not be settled here.
    modules = {case: new(case) for case in [*CODERS, *MODEL_CASES]}
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    torch.save(run_all(modules, rank, world), Path(folder) / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found = run_all({case: new(case) for case in [*CODERS, *MODEL_CASES]}, 0, 1)
    torch.set_num_threads(before)
    return found


@pytest.fixture(scope="module", params=WORLDS)
def ranks(request: pytest.FixtureRequest, run_ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each process of a world ended with."""
    return run_ranks(__file__, request.param, tmp_path_factory.mktemp("ranks"))


def apart(found: Tensor, expected: Tensor) -> float:
    """Return the relative error |a - b| / |b|; a b of nothing but rounding (of codes at their means) counts as 1e-9."""
    size = max(expected.double().norm().item(), 1e-9)
    return (found.double() - expected.double()).norm().item() / size


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CODERS if case != ALONE] + MODEL_CASES)
def test_ranks_equal_one_with_the_concatenated_batch(
    case: str, ranks: list[dict[str, Any]], one: dict[str, Any]
) -> None:
    expected = one[case]
    assert any(name.startswith("gradient 0 ") for name in expected["state"])
    for name, tensor in expected["state"].items():
        assert apart(ranks[0][case]["state"][name], tensor) < TOLERANCE, name
    for rank in ranks:
        assert rank[case]["state"].keys() == expected["state"].keys()
        assert all(torch.equal(tensor, ranks[0][case]["state"][name]) for name, tensor in rank[case]["state"].items())
        assert rank[case]["scalars"] == ranks[0][case]["scalars"]
    assert ranks[0][case]["scalars"] == pytest.approx(expected["scalars"], rel=TOLERANCE)
    assert expected["scalars"]["codebook/used_codes"] > 1


@pytest.mark.slow
def test_without_averaged_gradients_the_codebooks_part(ranks: list[dict[str, Any]], one: dict[str, Any]) -> None:
    wrong = [rank[ALONE]["state"] for rank in ranks]
    for name in ("gradient 0 quantizer.linear.weight", "quantizer.linear.weight"):
        assert apart(wrong[0][name], one[ALONE]["state"][name]) > 1000 * TOLERANCE
        assert not torch.equal(wrong[0][name], wrong[1][name])

"""Two and four gloo ranks against one rank with the concatenated batch: the VAEs' losses, gradients and weights.

Every rank runs `rank_main`; see tests/ranks.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.models import Batch, ModelConfig, Step, build_model, gaussian, seen
from pipeline.models.cvae import CVAEConfig
from pipeline.models.vae import VAEConfig

STEPS, PHOTOS = 6, 16
SMALL: dict[str, Any] = {"channels": (4, 8), "latent_dim": 5}
CONFIGS: dict[str, ModelConfig] = {
    "free-bits": VAEConfig(free_bits=0.2, kl_warmup=0.5, beta=2.0, **SMALL),
    "cvae": CVAEConfig(condition_dim=4, **SMALL),
    "alone": VAEConfig(free_bits=0.2, kl_warmup=0.5, beta=2.0, **SMALL),
    "rebalance": VAEConfig(rebalance=True, **SMALL),
}


def noise(rows: int, columns: int, step: int) -> torch.Tensor:
    """Return the noise of all ranks' photos at a step, float64."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1000 + step), dtype=torch.float64)


def build(case: str) -> Any:
    torch.manual_seed(0)
    model = build_model(CONFIGS[case], image_size=16, labels=("bags", "hats") if case == "cvae" else ()).double()
    with torch.no_grad():  # dimensions that say much, little and nothing, so that free bits decide between them
        scale = torch.tensor([1.5, 1.0, 0.7, 0.4, 0.1], dtype=torch.float64)
        model.get_parameter("to_latents.weight")[:5] *= scale[:, None]
    return model


def patch(case: str, mine: slice, step: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a photo the same noise and the same dropped condition wherever it lies, and compute in float64."""
    monkeypatch.setattr(torch, "randn_like", lambda values: noise(PHOTOS, values.shape[1], step[0])[mine])
    monkeypatch.setattr(torch, "rand", lambda *_, **__: noise(PHOTOS, 1, 50 + step[0]).sigmoid()[mine, 0])
    monkeypatch.setattr(seen, "to_float", lambda images: images.double() / 255)
    if case == "alone":  # the control: every rank decides by its own photos which dimensions are free
        right = gaussian.kl_with_free_bits
        monkeypatch.setattr(gaussian, "kl_with_free_bits", lambda *values, over_ranks: right(*values, over_ranks=False))


def train(case: str, rank: int, world: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return a training's weights, last gradients and every step's loss on this rank."""
    model = build(case)
    mine = slice(rank * PHOTOS // world, (rank + 1) * PHOTOS // world)
    step = [0]
    patch(case, mine, step, monkeypatch)
    trained: Any = torch.nn.parallel.DistributedDataParallel(model) if world > 1 else model
    optimiser = torch.optim.SGD(model.parameters(), 1e-4)
    losses = []
    for step[0] in range(STEPS):
        generator = torch.Generator().manual_seed(step[0])
        images = torch.randint(0, 256, (PHOTOS, 3, 16, 16), dtype=torch.uint8, generator=generator)
        condition = torch.randint(0, 4, (PHOTOS,), generator=generator) if case == "cvae" else None
        optimiser.zero_grad()
        batch = Batch(images[mine], None if condition is None else condition[mine])
        total = trained(batch, Step(step[0], STEPS)).total
        total.backward()
        optimiser.step()
        model.after_step()
        losses.append(total.item())
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"state": model.state_dict(), "gradients": gradients, "losses": losses}


def all_cases(rank: int, world: int) -> dict[str, dict[str, Any]]:
    found = {}
    for case in CONFIGS:
        with pytest.MonkeyPatch.context() as monkeypatch:
            found[case] = train(case, rank, world, monkeypatch)
    return found


def rank_main(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    torch.save(all_cases(rank, world), Path(folder) / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def one() -> dict[str, dict[str, Any]]:
    return all_cases(0, 1)


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest, run_ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What 2 or 4 processes ended with, each on its share of the photos."""
    return run_ranks(__file__, request.param, tmp_path_factory.mktemp("ranks"))


def difference(several: list[dict[str, Any]], one: dict[str, Any]) -> float:
    """Return the largest relative error of a gradient tensor, a weight tensor or a step's loss."""
    errors = []
    for kind in ("gradients", "state"):
        for name, expected in one[kind].items():
            errors += [float((rank[kind][name] - expected).norm() / expected.norm()) for rank in several]
    for step, expected in enumerate(one["losses"]):
        mean = sum(rank["losses"][step] for rank in several) / len(several)
        errors.append(abs(mean - expected) / abs(expected))
    return max(errors)


@pytest.mark.slow
def test_several_ranks_train_as_one_does(
    ranks: list[dict[str, dict[str, Any]]], one: dict[str, dict[str, Any]]
) -> None:
    for case in ("free-bits", "cvae", "rebalance"):
        several = [rank[case] for rank in ranks]
        for other in several[1:]:
            for name, tensor in several[0]["state"].items():
                assert torch.equal(tensor, other["state"][name]), name
        assert difference(several, one[case]) < 1e-9, case  # float64: only the order of sums differs


@pytest.mark.slow
def test_free_bits_that_each_rank_decides_alone_train_another_model(
    ranks: list[dict[str, dict[str, Any]]], one: dict[str, dict[str, Any]]
) -> None:
    assert difference([rank["alone"] for rank in ranks], one["free-bits"]) > 1e-4

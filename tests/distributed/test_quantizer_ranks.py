"""Two and four gloo ranks against one rank with the concatenated batch: codebooks, gradients, a VQ-VAE under DDP.

Every rank runs all cases in one go; see tests/ranks.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.models import Batch, Step, build_model
from pipeline.models.quantizers import EMAConfig, EMAQuantizer, GradientQuantizer, Quantised, following
from pipeline.models.quantizers.kmeans import spread_out
from pipeline.models.quantizers.rank_draws import sample
from pipeline.models.vqvae import VQVAEConfig

STEPS, PHOTOS, CELLS, CODES, DIM = 50, 24, 4, 24, 6
WORLDS = [2, 4]
FAR, START, UNEVEN, ALONE = "ema far away", "ema from k-means", "ema on uneven ranks", "ema of ranks alone"
COSINE, GRADIENT, MODEL = "ema by cosine", "gradient far away", "a VQ-VAE"
EMA_CASES = [FAR, START, UNEVEN, COSINE]


def vectors(step: int) -> torch.Tensor:
    """Return one step's vectors, float32 [24, 4, 6], in tight clusters, so that rounding decides no choice."""
    centres = torch.randn(20, DIM, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(100 + step)
    which = torch.randint(20, (PHOTOS, CELLS), generator=generator)
    return centres[which] + 0.02 * torch.randn(PHOTOS, CELLS, DIM, generator=generator)


def shard(rows: torch.Tensor, rank: int, world: int, *, uneven: bool = False) -> torch.Tensor:
    """Return a rank's rows; uneven: rank 0 has three, the last the most."""
    cuts = [round(index * len(rows) / world) for index in range(world + 1)]
    if uneven:
        cuts = [0, *range(3, 2 + world), len(rows)]
    return rows[cuts[rank] : cuts[rank + 1]]


class Coder(nn.Module):
    """The least that trains: a linear encoder before a gradient codebook, and something to bring back."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(DIM, DIM)
        self.quantizer = GradientQuantizer(CODES, DIM, decay=0.9, restart_threshold=0.3)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        quantised: Quantised = self.quantizer(self.encoder(rows))
        return quantised.loss + (quantised.passed - rows).square().sum() / len(rows)


def far_away(quantizer: EMAQuantizer | GradientQuantizer) -> None:
    """Put the codes where no vector is, so that they begin anew."""
    codebook = torch.randn(CODES, DIM) * 0.01 + 30.0
    state = quantizer.state_dict() | {"codebook": codebook, "initialised": torch.tensor(True)}
    quantizer.load_state_dict(state | ({"code_sum": codebook.clone()} if "code_sum" in state else {}))


def new(case: str) -> Any:
    torch.manual_seed(0)
    if case == MODEL:
        return build_model(
            VQVAEConfig(channels=(8, 8), quantizer=EMAConfig(num_codes=24, code_dim=6, restart_threshold=0.3)),
            image_size=16,
        )
    module: Any = (
        Coder() if case == GRADIENT else EMAQuantizer(CODES, DIM, restart_threshold=0.3, normalise=case == COSINE)
    )
    if case in {FAR, UNEVEN, ALONE, GRADIENT}:
        far_away(module.quantizer if case == GRADIENT else module)
    return module


def run_ema(case: str, quantizer: EMAQuantizer, rank: int, world: int) -> dict[str, Any]:
    first = None
    for step in range(STEPS):
        quantizer(shard(vectors(step), rank, world, uneven=case == UNEVEN))
        first = quantizer.codebook.clone() if first is None else first
        quantizer.update()
    return {"state": quantizer.state_dict() | {"first": first}, "scalars": quantizer.scalars()}


def run_gradient(coder: Coder, rank: int, world: int) -> dict[str, Any]:
    trained: Any = DistributedDataParallel(coder) if world > 1 else coder
    optimiser = torch.optim.SGD(coder.parameters(), 0.01)
    gradients = {}
    for step in range(STEPS):
        optimiser.zero_grad()
        trained(shard(vectors(step), rank, world)).backward()
        if step in {0, STEPS - 1}:
            named = coder.named_parameters()
            gradients |= {f"gradient {step} {name}": value.grad.clone() for name, value in named}  # type: ignore[union-attr]
        optimiser.step()
        coder.quantizer.update()
    return {"state": coder.state_dict() | gradients, "scalars": coder.quantizer.scalars()}


def run_model(model: Any, rank: int, world: int) -> dict[str, Any]:
    trained: Any = DistributedDataParallel(model) if world > 1 else model
    # SGD: Adam would turn the rounding of tiny gradients into whole steps.
    optimiser = torch.optim.SGD(model.parameters(), 1e-5)
    for step in range(10):
        images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        trained(Batch(shard(images, rank, world)), Step(step, 10)).total.backward()
        optimiser.step()
        model.after_step()
    return {"state": model.state_dict(), "scalars": model.scalars()}


def run(case: str, module: Any, rank: int, world: int) -> dict[str, Any]:
    if case == MODEL:
        return run_model(module, rank, world)
    if case == GRADIENT:
        return run_gradient(module, rank, world)
    return run_ema(case, module, rank, world)


def rank_main(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    # Built before the process group exists: whether there are peers must not be settled here.
    modules = {case: new(case) for case in [*EMA_CASES, GRADIENT, MODEL, ALONE]}
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    found = {}
    for case, module in modules.items():
        if case == ALONE:  # the control, the last one: what a quantizer does that never learnt of the process group
            following.sum_over_ranks = lambda values: values
        found[case] = run(case, module, rank, world)
    torch.save(found, Path(folder) / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def worlds(run_ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What every rank of every world found, by case."""
    return {world: run_ranks(__file__, world, tmp_path_factory.mktemp("ranks")) for world in WORLDS}


@pytest.fixture(params=WORLDS, ids=lambda world: f"{world} ranks")
def ranks(request: pytest.FixtureRequest, worlds: dict[int, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return worlds[request.param]


def one_rank(case: str) -> dict[str, Any]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run(case, new(case), 0, 1)
    finally:
        torch.set_num_threads(before)


def assert_same_bits(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first["state"].keys() == second["state"].keys()
    for name, tensor in first["state"].items():
        assert torch.equal(tensor, second["state"][name]), name
    assert first["scalars"] == second["scalars"]


def farthest(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """Return the largest relative difference (of norms) between two runs' tensors."""
    worst = 0.0
    for name, tensor in expected["state"].items():
        difference = (found["state"][name].double() - tensor.double()).norm().item()
        worst = max(worst, difference / max(tensor.double().norm().item(), 1e-30))
    return worst


@pytest.mark.slow
@pytest.mark.parametrize("case", [*EMA_CASES, GRADIENT])
def test_many_ranks_make_the_codebook_of_one(case: str, ranks: list[dict[str, Any]]) -> None:
    for other in ranks[1:]:
        assert_same_bits(ranks[0][case], other[case])
    found, one = ranks[0][case], one_rank(case)
    print(f"{case}, {len(ranks)} ranks: {farthest(found, one):.1e}, restarted {one['scalars']['codebook/restarted']}")
    assert farthest(found, one) < 1e-5
    assert found["scalars"] == pytest.approx(one["scalars"], rel=1e-4)
    if case in {FAR, UNEVEN, GRADIENT}:  # codes that begin among the data are all used here
        assert one["scalars"]["codebook/restarted"] > 0


@pytest.mark.slow
def test_the_first_codes_of_many_ranks_are_scikit_learns_centres(ranks: list[dict[str, Any]]) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    rows = vectors(0).flatten(0, 1)
    drawn = sample(rows, len(rows), 0)
    begin = drawn[spread_out(drawn, CODES, torch.Generator().manual_seed(0))]
    oracle = cluster.KMeans(CODES, init=begin.numpy(), n_init=1, max_iter=10, tol=0, algorithm="lloyd").fit(drawn)
    expected = torch.from_numpy(oracle.cluster_centers_).float()
    for found in ranks:
        torch.testing.assert_close(found[START]["state"]["first"], expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_without_sums_over_ranks_the_codebooks_part(ranks: list[dict[str, Any]]) -> None:
    first, second = (found[ALONE]["state"]["codebook"] for found in ranks[:2])
    assert (first - second).abs().max() > 0.01


@pytest.mark.slow
def test_a_vqvae_under_ddp_trains_as_one_rank_does(ranks: list[dict[str, Any]]) -> None:
    for other in ranks[1:]:
        assert_same_bits(ranks[0][MODEL], other[MODEL])
    for name, tensor in one_rank(MODEL)["state"].items():
        torch.testing.assert_close(ranks[0][MODEL]["state"][name], tensor, rtol=1e-4, atol=1e-5)

"""A prior trained by two gloo ranks is the one that a single process trains.

Every rank runs `rank_main`; see tests/ranks.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from pipeline.models.priors import PRIORS, PriorConfig, build_prior
from pipeline.training import Loop, TrainConfig
from pipeline.training.codes import Codes, CodesLoader
from pipeline.training.ranks import Ranks

WORLD, BATCH, GRID, K = 2, 16, (3, 3), 5


def train(kind: str, ranks: Ranks, *, held_out: int) -> dict[str, torch.Tensor]:
    """Return the weights, and the validation's measure as `nats`, of a short training."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, K, (150, *GRID)).astype(np.int32)
    codes[:, 1:] = codes[:, :1]
    data = Codes(codes, rng.integers(0, 4, 150).astype(np.int32), np.arange(150) >= 150 - held_out)
    loader = CodesLoader(
        data, batch_size=BATCH // ranks.world_size, rank=ranks.rank, world_size=ranks.world_size, seed=0
    )
    values = {"kind": kind, "width": 8, "dropout": 0, "by_category": True, "condition_dropout": 0}
    config: PriorConfig = PRIORS[kind][0].model_validate(values)
    torch.manual_seed(0)
    prior = build_prior(config, num_codes=K, grid=GRID, labels=("a", "b"))
    loop = Loop(prior, loader, TrainConfig(epochs=3, batch_size=BATCH, optimiser="sgd", learning_rate=0.3), ranks)
    weights = {name: tensor.detach().clone() for name, tensor in loop.run().state_dict().items()}
    return {**weights, "nats": torch.tensor(loop.validation.measures["validation/nats_per_code"])}


def rank_main(rank: int, world: int, folder: str) -> None:
    """Train every kind as one rank, with one held-out photo, so that a rank has none."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    made = {kind: train(kind, Ranks(rank, world), held_out=1) for kind in PRIORS}
    torch.save(made, Path(folder) / f"rank-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(run_ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What every rank ended with, by kind."""
    return run_ranks(__file__, WORLD, tmp_path_factory.mktemp("priors"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", PRIORS)
def test_two_ranks_train_what_one_does(ranks: list[dict[str, dict[str, torch.Tensor]]], kind: str) -> None:
    one = train(kind, Ranks(), held_out=1)
    first, second = (rank[kind] for rank in ranks)
    for name, tensor in one.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(
            first[name], tensor, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert first["nats"] < np.log(K)  # it learned something

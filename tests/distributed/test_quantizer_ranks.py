"""Two gloo ranks against one rank with the concatenated batch: codebooks, and a whole VQ-VAE under DDP.

This file is also the program that every rank runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.models import Batch, Step, build_model
from pipeline.models.quantizers import EMAQuantizer, ema
from pipeline.models.vqvae import VQVAEConfig

STEPS = 50
CONFIG = VQVAEConfig(num_codes=24, code_dim=6, channels=(8, 8), restart_threshold=0.3)


def vectors(step: int) -> torch.Tensor:
    """Return one step's vectors, float32 [96, 6], in tight clusters, so that rounding decides no choice."""
    centres = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(100 + step)
    return centres[torch.randint(20, (96,), generator=generator)] + 0.02 * torch.randn(96, 6, generator=generator)


def shard(rows: torch.Tensor, rank: int, world: int, *, uneven: bool) -> torch.Tensor:
    """Return a rank's rows; uneven: a third for rank 0, the rest for rank 1."""
    if world == 1:
        return rows
    cut = len(rows) // 3 if uneven else len(rows) // 2
    return rows[:cut] if rank == 0 else rows[cut:]


def new_quantizer(*, far: bool) -> EMAQuantizer:
    """Return a quantizer that draws its codebook from the first batch, or has one far from all data."""
    torch.manual_seed(0)
    quantizer = EMAQuantizer(24, 6, restart_threshold=0.3)
    if far:
        codebook = torch.randn(24, 6) * 0.01 + 30.0
        state = quantizer.state_dict()
        state |= {"codebook": codebook, "code_sum": codebook.clone(), "initialised": torch.tensor(True)}
        quantizer.load_state_dict(state)
    return quantizer


def run_quantizer(quantizer: EMAQuantizer, rank: int, world: int, *, uneven: bool = False) -> dict[str, Any]:
    for step in range(STEPS):
        quantizer(shard(vectors(step), rank, world, uneven=uneven))
        quantizer.update()
    return {"state": quantizer.state_dict(), "scalars": quantizer.scalars()}


def run_model(rank: int, world: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = build_model(CONFIG, image_size=16)
    trained: Any = torch.nn.parallel.DistributedDataParallel(model) if world > 1 else model
    # SGD: Adam would turn the rounding of tiny gradients into whole steps.
    optimiser = torch.optim.SGD(model.parameters(), 1e-5)
    for step in range(10):
        images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        trained(Batch(shard(images, rank, world, uneven=False)), Step(step, 10)).total.backward()
        optimiser.step()
        model.after_step()
    return {"state": model.state_dict(), "scalars": model.scalars()}


def run(case: str, quantizer: EMAQuantizer | None, rank: int, world: int) -> dict[str, Any]:
    if quantizer is None:
        return run_model(rank, world)
    if case == "alone":  # the control: what a quantizer does that never learnt of the process group
        ema.sum_over_ranks = lambda values: values
    return run_quantizer(quantizer, rank, world, uneven=case == "uneven")


def rank_main(case: str, rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    # Built before the process group exists: whether there are peers must not be settled here.
    quantizer = None if case == "model" else new_quantizer(far=case != "drawn")
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    torch.save(run(case, quantizer, rank, world), Path(folder) / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


def two_ranks(case: str, folder: Path) -> list[dict[str, Any]]:
    """Run two processes and return what each ended with."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", __file__, case, str(rank), "2", str(folder)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


def assert_same_bits(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first["state"].keys() == second["state"].keys()
    for name, tensor in first["state"].items():
        assert torch.equal(tensor, second["state"][name]), name
    assert first["scalars"] == second["scalars"]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["drawn", "far", "uneven"])
def test_two_ranks_make_the_codebook_of_one(case: str, tmp_path: Path) -> None:
    first, second = two_ranks(case, tmp_path)
    assert_same_bits(first, second)
    one = run_quantizer(new_quantizer(far=case != "drawn"), 0, 1)
    torch.testing.assert_close(first["state"]["codebook"], one["state"]["codebook"], rtol=0, atol=1e-6)
    assert torch.equal(first["state"]["code_count"], one["state"]["code_count"])
    assert first["scalars"] == pytest.approx(one["scalars"], rel=1e-4)
    if case != "drawn":  # codes drawn from the data are all used here
        assert one["scalars"]["codebook/restarted"] > 0


@pytest.mark.slow
def test_without_sums_over_ranks_the_codebooks_part(tmp_path: Path) -> None:
    first, second = two_ranks("alone", tmp_path)
    assert (first["state"]["codebook"] - second["state"]["codebook"]).abs().max() > 0.01


@pytest.mark.slow
def test_a_vqvae_under_ddp_trains_as_one_rank_does(tmp_path: Path) -> None:
    first, second = two_ranks("model", tmp_path)
    assert_same_bits(first, second)
    one = run_model(0, 1)
    for name, tensor in one["state"].items():
        torch.testing.assert_close(first["state"][name], tensor, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    rank_main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])

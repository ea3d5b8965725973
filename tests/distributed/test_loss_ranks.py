"""Every loss on two and four gloo ranks under DDP: values and gradients are those of one rank with all photos.

In float64, where the order of sums does not matter. Every rank runs `rank_main`; see tests/ranks.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.losses import (
    RunningMean,
    commitment,
    feature_distance,
    kl_per_dimension,
    kl_to_standard_normal,
    kl_with_free_bits,
    reconstruction_loss,
)
from pipeline.models.frozen import FrozenConfig, FrozenEncoder
from pipeline.models.targets import FeatureTarget, HogTarget, PerceptualConfig, PixelTarget, build_target

PHOTOS, SIDE, DIMENSIONS = 16, 16, 12
FREE_BITS = 0.25
NAMES = ["bce", "mse", "ssim", "commitment", "kl", "free bits", "features", "perceptual", "hog", "rebalanced"]
CONTROLS = ["free bits of one rank", "rebalanced by one rank"]


class Frozen(FrozenEncoder):
    """One convolution with weights that every rank draws alike."""

    def __init__(self) -> None:
        torch.manual_seed(5)
        super().__init__(nn.Conv2d(3, 6, 3, 2, 1).double(), (0,))

    def _all(self, pictures: Tensor) -> list[Tensor]:
        return [self.network(pictures.double())]


class Trained(nn.Module):
    """A small autoencoder whose forward pass is the loss of that name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.name = name
        self.encoder = nn.Linear(3 * SIDE * SIDE, 2 * DIMENSIONS)
        self.decoder = nn.Linear(DIMENSIONS, 3 * SIDE * SIDE)
        self.small = nn.Linear(DIMENSIONS, 9 * 16)
        self.balance = RunningMean(["reconstruction", "kl"])
        encoder = FrozenConfig(model_id="0" * 64, layers=(0,))
        self.perceptual = build_target(PixelTarget(perceptual=PerceptualConfig(weight=0.5, encoder=encoder)), SIDE)
        self.perceptual.use_frozen(Frozen())
        self.features = build_target(FeatureTarget(encoder=encoder, channels=6, size=8), SIDE)
        self.features.use_frozen(Frozen())
        self.hog = build_target(HogTarget(), SIDE)

    def forward(self, pictures: Tensor) -> Tensor:
        # Dimensions of very different size, so that free bits divide them differently for different photos.
        mean, log_var = self.encoder(pictures.flatten(1)).chunk(2, dim=1)
        mean = mean * torch.linspace(0.5, 4.0, DIMENSIONS, dtype=mean.dtype)
        logits = self.decoder(mean).unflatten(1, (3, SIDE, SIDE))
        match self.name:
            case "bce" | "mse" | "ssim":
                return reconstruction_loss(self.name, logits, pictures)
            case "commitment":
                return commitment(mean, mean.round())
            case "kl":
                return kl_to_standard_normal(mean, log_var)
            case "free bits":
                return kl_with_free_bits(mean, log_var, FREE_BITS, over_ranks=True)
            case "free bits of one rank":  # the control: each rank's own mean decides
                return kl_per_dimension(mean, log_var).mean(dim=0).clamp_min(FREE_BITS).sum()
            case "features":
                features = feature_distance([logits[..., ::2, ::2]], [pictures[..., ::2, ::2]])
                return features + self.features.loss(logits.repeat(1, 2, 1, 1)[..., ::2, ::2], pictures)[0]
            case "perceptual":
                return self.perceptual.loss(logits, pictures)[0]
            case "hog":
                return self.hog.loss(self.small(mean).unflatten(1, (9, 4, 4)), pictures)[0]
        parts = {
            "reconstruction": reconstruction_loss("mse", logits, pictures),
            "kl": kl_to_standard_normal(mean, log_var),
        }
        self.balance.note(parts)
        weights = self.balance.weights()
        return sum((weights[name].double() * part for name, part in parts.items()), torch.zeros(()).double())


def run(name: str, rank: int, world: int) -> dict[str, Tensor]:
    """Return the loss, a mean over ranks, and every gradient after a few steps."""
    module = Trained(name).double()
    trained: Any = module
    if world > 1:
        trained = nn.parallel.DistributedDataParallel(module, find_unused_parameters=True)
    if name == "rebalanced by one rank":
        from pipeline.losses import rebalance

        rebalance.sum_over_ranks = lambda values: values
    optimiser = torch.optim.SGD(module.parameters(), 1e-4)
    found: dict[str, Tensor] = {}
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        pictures = torch.rand(PHOTOS, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
        pictures = pictures * torch.linspace(0.1, 1.0, PHOTOS, dtype=torch.float64).view(-1, 1, 1, 1)
        share = PHOTOS // world
        optimiser.zero_grad()
        loss = trained(pictures[rank * share : (rank + 1) * share])
        loss.backward()
        optimiser.step()
        module.balance.update()
        found[f"loss {step}"] = loss.detach().clone()
    if world > 1:
        for value in found.values():
            torch.distributed.all_reduce(value)
            value.div_(world)
    found |= {key: weight.grad for key, weight in module.named_parameters() if weight.grad is not None}
    return found


def rank_main(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    found = {name: run(name, rank, world) for name in [*NAMES, *CONTROLS]}  # the last one breaks rebalancing
    torch.save(found, Path(folder) / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest, run_ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each of several processes found, by name."""
    return run_ranks(__file__, request.param, tmp_path_factory.mktemp("ranks"))


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest relative difference of two sets of tensors, each by its own length."""
    assert found.keys() == expected.keys()
    return max(((found[key] - expected[key]).norm() / expected[key].norm().clamp_min(1e-12)).item() for key in found)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_ranks_have_the_gradients_of_one(ranks: list[dict[str, Any]], name: str) -> None:
    expected = run(name, 0, 1)
    for rank in ranks:
        assert difference(rank[name], expected) < 1e-6  # 1e-8 where features pass through float32, else 1e-15


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTROLS)
def test_what_each_rank_decides_alone_is_another_loss(ranks: list[dict[str, Any]], name: str) -> None:
    right = "free bits" if name.startswith("free") else "rebalanced"
    expected = run(right, 0, 1)
    assert max(difference(rank[name], expected) for rank in ranks) > 1e-3

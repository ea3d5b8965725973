"""Priors: causality to the last bit, the entropy of a known source, categories, training through the loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from pipeline.errors import ConfigError, InputError
from pipeline.models.base import Batch, Step
from pipeline.models.priors import PRIORS, AnyPriorConfig, Prior, build_prior
from pipeline.models.priors.pixelcnn import PixelCNN, PixelCNNConfig
from pipeline.models.priors.transformer import TransformerConfig
from pipeline.training import Loop, TrainConfig
from pipeline.training.codes import Codes, CodesLoader

GRID = (4, 5)
K = 7
SMALL = {
    "pixelcnn": PixelCNNConfig(width=8, layers=3),
    "pixelcnn5": PixelCNNConfig(width=8, layers=2, kernel=5),
    "transformer": TransformerConfig(width=8, layers=2, heads=2),
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """The models are small: more threads only wait for each other."""
    torch.set_num_threads(1)


def small(name: str, *, labels: tuple[str, ...] = ()) -> Prior:
    config = SMALL[name].model_copy(update={"by_category": bool(labels)})
    torch.manual_seed(3)
    prior = build_prior(config, num_codes=K, grid=GRID, labels=labels)
    for parameter in prior.parameters():  # no zero at the start may hide a way that the signal could take
        nn.init.normal_(parameter, std=0.5)
    return prior.eval()


def jacobian(prior: Prior) -> Tensor:
    """Return [cells, cells]: the largest change of any logit of cell i with any number of the vector of cell j."""
    cells = GRID[0] * GRID[1]
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(1, *GRID, prior.settings.width, generator=generator)
    full = torch.autograd.functional.jacobian(lambda given: prior.from_vectors(given, None), vectors)
    return full.view(K, cells, cells, -1).abs().amax(dim=(0, 3))


@pytest.mark.parametrize("name", SMALL)
def test_logits_know_earlier_codes_alone(name: str):
    found = jacobian(small(name))
    cells = torch.arange(len(found))
    later = cells[:, None] <= cells[None, :]
    assert found[later].max() == 0.0  # exactly, the own cell and all after it


@pytest.mark.parametrize("name", SMALL)
def test_logits_know_their_neighbours_before(name: str):
    found = jacobian(small(name)).view(*GRID, *GRID)
    for row, column in ((1, 0), (2, 2), (3, 4)):
        above = found[row, column, row - 1]
        assert above[max(column - 1, 0) : column + 2].min() > 0  # above, to both sides: no blind spot
        assert column == 0 or found[row, column, row, column - 1] > 0


def test_mask_b_in_the_first_layer_would_see_the_own_code():
    prior = small("pixelcnn")
    assert isinstance(prior, PixelCNN)
    prior.layers[0].strict = False
    assert jacobian(prior).diagonal().max() > 1e-3


def test_one_masked_stack_would_have_a_blind_spot():
    """The known wrong version: masked 3 x 3 convolutions one upon another never see a cell above on the right."""

    values = torch.randn(1, 1, 6, 6, requires_grad=True)
    torch.manual_seed(0)
    made: Tensor = values
    for layer in range(3):
        mask = torch.tensor([[1.0, 1, 1], [1, float(layer > 0), 0], [0, 0, 0]])  # A, then B
        made = nn.functional.conv2d(made, torch.randn(1, 1, 3, 3) * mask, padding=1)
    (found,) = torch.autograd.grad(made[0, 0, 4, 2], values)
    assert found[0, 0, 3, 3] != 0
    assert found[0, 0, 3, 5] == 0  # in the row above, three to the right: a code before, and never seen
    prior = build_prior(PixelCNNConfig(width=4, layers=3), num_codes=K, grid=(6, 6)).eval()
    vectors = torch.randn(1, 6, 6, 4)
    seen = torch.autograd.functional.jacobian(lambda given: prior.from_vectors(given, None)[0, :, 4, 2], vectors)
    assert seen.abs().sum(dim=(0, 1, 4))[3, 5] > 0


@pytest.mark.parametrize("name", SMALL)
def test_the_probabilities_of_all_grids_sum_to_one(name: str):
    torch.manual_seed(1)
    prior = build_prior(SMALL[name], num_codes=3, grid=(2, 3)).eval()
    every = torch.cartesian_prod(*[torch.arange(3)] * 6).view(-1, 2, 3)
    assert len(every) == 3**6
    assert float((-prior.nats(every).detach().double()).exp().sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_nats_are_the_sum_of_log_softmax(name: str):
    prior = small(name)
    codes = torch.randint(0, K, (3, *GRID))
    logs = prior.logits(codes).detach().double().log_softmax(dim=1)
    expected = [
        -sum(float(logs[n, codes[n, i, j], i, j]) for i in range(GRID[0]) for j in range(GRID[1])) for n in range(3)
    ]
    assert prior.nats(codes).tolist() == pytest.approx(expected, rel=1e-5)
    losses = prior(Batch(torch.empty(3, 3, 0, 0, dtype=torch.uint8), None, codes), Step(0, 1))
    assert losses.total.item() == pytest.approx(sum(expected) / 3 / 20, rel=1e-5)
    assert losses.parts["nats_per_code"].item() == losses.total.item()


def markov_grids(number: int, seed: int) -> tuple[np.ndarray, float]:
    """Return grids [n, 4, 4] of 3 states and their entropy a code: each cell depends on those above and to the left.

    p(cell | left, above) = a row of a table; borders count as state 0. The entropy is exact: the chain over rows is
    small enough to be summed over all rows.
    """
    states, side = 3, 4
    rng = np.random.default_rng(11)
    table = rng.dirichlet(np.full(states, 0.4), (states, states))
    draws = np.random.default_rng(seed)
    grids = np.zeros((number, side, side), np.int32)
    for i in range(side):
        for j in range(side):
            left = grids[:, i, j - 1] if j else np.zeros(number, int)
            above = grids[:, i - 1, j] if i else np.zeros(number, int)
            shares = table[left, above].cumsum(axis=1)
            grids[:, i, j] = np.minimum((draws.random((number, 1)) > shares).sum(axis=1), states - 1)
    rows = np.stack(np.meshgrid(*[range(states)] * side, indexing="ij"), -1).reshape(-1, side)
    step = np.ones((len(rows), len(rows)))  # from the row above to a row
    for j in range(side):
        left = rows[:, j - 1] if j else np.zeros(len(rows), int)
        step *= table[left[None, :], rows[:, j][:, None], rows[:, j][None, :]]
    assert np.allclose(step.sum(axis=1), 1)
    entropy, at = 0.0, np.eye(len(rows))[0]  # the border above is a row of state 0
    for _ in range(side):
        entropy -= float((at[:, None] * np.where(step > 0, step * np.log(np.maximum(step, 1e-300)), 0)).sum())
        at = at @ step
    return grids, entropy / side**2


@pytest.mark.parametrize(
    ("config", "epochs"),
    [(PixelCNNConfig(width=16, layers=2, dropout=0), 4), (TransformerConfig(width=32, layers=2, dropout=0), 4)],
    ids=["pixelcnn", "transformer"],
)
@pytest.mark.slow
def test_a_known_source_is_learned_to_its_entropy(config: PixelCNNConfig | TransformerConfig, epochs: int):
    grids, entropy = markov_grids(12_000, seed=0)
    held_out = np.arange(len(grids)) >= 8_000
    loader = CodesLoader(Codes(grids, held_out=held_out), batch_size=128, rank=0, world_size=1, seed=0)
    torch.manual_seed(0)
    prior = build_prior(config, num_codes=3, grid=(4, 4))
    loop = Loop(prior, loader, TrainConfig(epochs=epochs, batch_size=128, learning_rate=1e-2))
    loop.run()
    measured = loop.validation.measures["validation/nats_per_code"]
    assert set(loop.validation.measures) == {"validation/total", "validation/nats_per_code"}
    # What the held-out grids themselves weigh under the true table differs from the entropy by sampling alone.
    assert measured == pytest.approx(entropy, abs=0.02)
    assert measured > entropy - 0.01  # below it, a prior would have looked at what it predicts
    shares = np.bincount(grids.reshape(-1)) / grids.size
    unigram = float(-(shares * np.log(shares)).sum())
    assert measured + 0.1 < unigram < math.log(3)


@pytest.mark.parametrize("name", SMALL)
def test_categories_are_heard(name: str):
    prior = small(name, labels=("shoe", "bag"))
    codes = torch.randint(0, K, (1, *GRID)).expand(5, -1, -1)
    nats = prior.nats(codes, torch.tensor([0, 1, 2, 3, 9])).tolist()
    assert len({round(value, 3) for value in nats[:4]}) == 4
    assert nats[4] == pytest.approx(nats[1], rel=1e-5)  # beyond all labels: unknown
    assert prior.nats(codes)[0].item() == pytest.approx(nats[0], rel=1e-5)
    plain = small(name)
    assert torch.equal(plain.nats(codes, torch.tensor([0, 1, 2, 3, 9])), plain.nats(codes))


@pytest.mark.slow
@pytest.mark.parametrize("kind", PRIORS)
def test_a_category_lowers_the_nats_of_its_codes(kind: str):
    rng = np.random.default_rng(0)
    category = rng.integers(2, 4, 1500).astype(np.int32)
    codes = np.where(rng.random((1500, 3, 3)) < 0.9, category[:, None, None] - 2, rng.integers(0, 2, (1500, 3, 3)))
    data = Codes(codes.astype(np.int32), category, np.arange(1500) >= 1200)
    loader = CodesLoader(data, batch_size=100, rank=0, world_size=1, seed=0)
    config = TypeAdapter(AnyPriorConfig).validate_python({"kind": kind, "width": 8, "layers": 1, "by_category": True})
    torch.manual_seed(0)
    prior = build_prior(config, num_codes=2, grid=(3, 3), labels=("a", "b"))
    Loop(prior, loader, TrainConfig(epochs=6, batch_size=100, learning_rate=2e-2)).run()
    ask = torch.from_numpy(codes[1200:])
    truth = torch.from_numpy(category[1200:]).long()
    right, hidden, wrong = (prior.nats(ask, told).mean().item() / 9 for told in (truth, None, 5 - truth))
    known = -(0.95 * math.log(0.95) + 0.05 * math.log(0.05))  # per code, when the category is known
    assert right == pytest.approx(known, abs=0.03)
    assert right + 0.03 < hidden + 1e-9 < wrong


def test_dropout_of_conditions_hides_their_share_in_training_only():
    prior = small("transformer", labels=("shoe",))
    condition = torch.full((20_000,), 2)
    assert torch.equal(prior._dropped(condition), condition)
    prior.train()
    share = float((prior._dropped(condition) == 0).float().mean())
    assert share == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("told", [True, False], ids=["category", "none"])
def test_every_weight_gets_a_gradient(name: str, told: bool):
    """On several GPUs a weight without one stops the training."""
    for grid in (GRID, (1, 1)):
        config = SMALL[name].model_copy(update={"by_category": told})
        prior = build_prior(config, num_codes=K, grid=grid, labels=("shoe",))
        codes = torch.randint(0, K, (2, *grid))
        prior(Batch(torch.empty(2, 3, 0, 0, dtype=torch.uint8), None, codes), Step(0, 1)).total.backward()
        assert [weights for weights, values in prior.named_parameters() if values.grad is None] == []


def test_a_single_code_is_a_grid_too():
    for config in SMALL.values():
        prior = build_prior(config, num_codes=K, grid=(1, 1)).eval()
        logits = prior.logits(torch.tensor([[[0]], [[5]]]))
        assert torch.equal(logits[0], logits[1])  # nothing comes before it


def test_what_cannot_be_built_or_read_says_so():
    with pytest.raises(ConfigError, match="0 codes"):
        build_prior(SMALL["pixelcnn"], num_codes=0, grid=GRID)
    with pytest.raises(ConfigError, match="known kinds: pixelcnn, transformer"):
        build_prior(SMALL["pixelcnn"].model_copy(update={"kind": "lstm"}), num_codes=2, grid=GRID)
    with pytest.raises(ValidationError, match="odd"):
        PixelCNNConfig(kernel=4)
    with pytest.raises(ValidationError, match="multiple of heads"):
        TransformerConfig(width=6, heads=4)
    with pytest.raises(InputError, match=r"reads \[B, 4, 5\]"):
        small("pixelcnn").logits(torch.zeros(2, 5, 4, dtype=torch.int64))
    with pytest.raises(InputError, match="reads codes"):
        small("pixelcnn")(Batch(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)), Step(0, 1))
    loader = CodesLoader(Codes(np.zeros((4, *GRID), np.int32)), batch_size=2, rank=0, world_size=1, seed=0)
    with pytest.raises(ConfigError, match="augment"):
        Loop(small("pixelcnn"), loader, TrainConfig(batch_size=2, augment="light"))

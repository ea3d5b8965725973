"""Contrastive losses on one rank: against explicit float64 formulas, lightly, pytorch-metric-learning and torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from lightly.loss import NTXentLoss
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.losses import info_nce, info_nce_in_batch, nt_xent, sup_con, triplet
from pipeline.losses.collectives import gather_rows

TEMPERATURES = [0.05, 0.2, 1.0]


def rows(number: int, width: int, seed: int) -> Tensor:
    return torch.randn(number, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def views(number: int = 7, width: int = 5) -> tuple[Tensor, Tensor]:
    first = rows(number, width, 0)
    return first, first + 0.3 * rows(number, width, 1)


def cosine(one: Tensor, other: Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


def explicit_nt_xent(first: Tensor, second: Tensor, temperature: float) -> float:
    """Return equation 1 of arXiv 2002.05709, written out row by row."""
    both = [*first, *second]
    terms = []
    for row, anchor in enumerate(both):
        partner = (row + len(first)) % len(both)
        others = [math.exp(cosine(anchor, both[k]) / temperature) for k in range(len(both)) if k != row]
        terms.append(-math.log(math.exp(cosine(anchor, both[partner]) / temperature) / sum(others)))
    return sum(terms) / len(terms)


def gradients(loss: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_nt_xent_is_its_formula(temperature: float) -> None:
    first, second = views()
    found = nt_xent(first, second, temperature, over_ranks=False)
    assert found.item() == pytest.approx(explicit_nt_xent(first, second, temperature), rel=1e-12)
    assert found.shape == ()


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_nt_xent_is_lightlys(temperature: float) -> None:
    first, second = (view.float().requires_grad_() for view in views(16, 8))
    ours = nt_xent(first, second, temperature, over_ranks=False)
    theirs = NTXentLoss(temperature=temperature, memory_bank_size=0)(first, second)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6, abs=1e-6)
    for one, other in zip(gradients(ours, first, second), gradients(theirs, first, second), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_nt_xent_is_pytorch_metric_learnings(temperature: float) -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    oracle = losses.SelfSupervisedLoss(losses.NTXentLoss(temperature=temperature))
    first, second = (view.float().requires_grad_() for view in views(16, 8))
    ours, theirs = nt_xent(first, second, temperature, over_ranks=False), oracle(first, second)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6, abs=1e-6)
    for mine, other in zip(gradients(ours, first, second), gradients(theirs, first, second), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_a_row_that_is_compared_with_itself_is_another_loss() -> None:
    """The control: the known error of leaving the diagonal in."""
    first, second = views()
    unit = nn.functional.normalize(torch.cat([first, second]), dim=1)
    partner = torch.arange(14).roll(-7)
    wrong = nn.functional.cross_entropy(unit @ unit.T / 0.2, partner)
    assert abs(wrong.item() / explicit_nt_xent(first, second, 0.2) - 1.0) > 0.1


def test_nt_xent_does_not_mind_lengths_order_or_which_view_is_first() -> None:
    first, second = views()
    found = nt_xent(first, second, 0.2, over_ranks=False)
    swapped = nt_xent(second, first, 0.2, over_ranks=False)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(2))
    longer = nt_xent(first[order] * 3.0, second[order] * 0.1, 0.2, over_ranks=False)
    torch.testing.assert_close(swapped, found, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(longer, found, rtol=1e-12, atol=0.0)


def test_nt_xent_at_its_ends() -> None:
    same = torch.ones(6, 4, dtype=torch.float64)
    collapsed = nt_xent(same, same, 0.1, over_ranks=False)
    assert collapsed.item() == pytest.approx(math.log(11))  # 11 rows, none of which can be told from another
    apart = torch.eye(6, dtype=torch.float64)
    assert nt_xent(apart, apart, 0.01, over_ranks=False).item() < 1e-12
    alone = torch.ones(1, 4, requires_grad=True)
    loss = nt_xent(alone, alone, 0.1, over_ranks=False)
    loss.backward()
    assert loss.item() == 0.0
    assert alone.grad is not None
    assert torch.equal(alone.grad, torch.zeros(1, 4))


def test_info_nce_is_its_formula_and_moves_queries_alone() -> None:
    queries, keys = (view.requires_grad_() for view in views())
    queue = nn.functional.normalize(rows(11, 5, 3), dim=1).requires_grad_()
    found = info_nce(queries, keys, queue, 0.2)
    terms = []
    for query, key in zip(queries.detach(), keys.detach(), strict=True):
        right = math.exp(cosine(query, key) / 0.2)
        wrong = sum(math.exp(cosine(query, row) / 0.2) for row in queue.detach())
        terms.append(-math.log(right / (right + wrong)))
    assert found.item() == pytest.approx(sum(terms) / len(terms), rel=1e-12)
    found.backward()
    assert queries.grad is not None
    assert queries.grad.norm() > 0.01
    assert keys.grad is None
    assert queue.grad is None


def test_info_nce_is_nt_xent_where_the_queue_holds_the_others() -> None:
    """One query's loss by another way: in NT-Xent of two photos each row has two others to be told from."""
    first, second = views(2)
    unit = nn.functional.normalize(torch.cat([first, second]), dim=1)
    terms = []
    for row in range(4):
        partner = (row + 2) % 4
        rest = [k for k in range(4) if k not in (row, partner)]
        terms.append(info_nce(unit[row : row + 1], unit[partner : partner + 1], unit[rest], 0.3))
    torch.testing.assert_close(torch.stack(terms).mean(), nt_xent(first, second, 0.3, over_ranks=False))


def test_a_queue_that_is_not_full_counts_as_far_as_it_is() -> None:
    queries, keys = views()
    queue = nn.functional.normalize(rows(11, 5, 3), dim=1)
    for filled in (0, 4, 11):
        found = info_nce(queries.requires_grad_(), keys, queue, 0.2, filled=torch.tensor(filled))
        torch.testing.assert_close(found, info_nce(queries, keys, queue[:filled], 0.2))
    (gradient,) = gradients(info_nce(queries, keys, queue, 0.2, filled=torch.tensor(0)), queries)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_triplet_is_torchs() -> None:
    """To rounding: the kernels of another instruction set add in another order."""
    leaves = [rows(20, 6, seed).requires_grad_() for seed in range(3)]
    for margin in (0.2, 1.0):
        ours, theirs = triplet(*leaves, margin=margin), nn.TripletMarginLoss(margin=margin)(*leaves)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
        for mine, other in zip(gradients(ours, *leaves), gradients(theirs, *leaves), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-14)
        anchor, positive, negative = leaves
        near, far = (anchor - positive).norm(dim=1), (anchor - negative).norm(dim=1)
        exact = (near - far + margin).clamp_min(0).mean()  # the control: without torch's eps of 1e-6
        assert abs(exact / theirs - 1).item() > 1e-9


def test_half_precision_is_refused_inside() -> None:
    first, second = (view.float() for view in views())
    queue = nn.functional.normalize(rows(11, 5, 3).float(), dim=1)
    expected = [nt_xent(first, second, 0.1, over_ranks=False), info_nce(first, second, queue, 0.1)]
    with torch.autocast("cpu", torch.bfloat16):
        found = [nt_xent(first, second, 0.1, over_ranks=False), info_nce(first, second, queue, 0.1)]
        rounded = nn.functional.normalize(first, dim=1) @ queue.T
    assert found == expected
    assert rounded.dtype == torch.bfloat16  # the control: what would have been computed


def test_gather_rows_without_peers_is_the_rows() -> None:
    first, _ = views()
    assert gather_rows(first) is first


def test_what_does_not_fit_is_refused() -> None:
    first, second = views()
    with pytest.raises(ConfigError, match=r"\[7, 5\] and \[6, 5\]"):
        nt_xent(first, second[:6], 0.1, over_ranks=False)
    with pytest.raises(ConfigError, match="temperature is 0"):
        nt_xent(first, second, 0.0, over_ranks=False)
    with pytest.raises(ConfigError, match="temperature is nan"):
        info_nce(first, second, second, math.nan)
    with pytest.raises(ConfigError, match="one shape"):
        triplet(first, second, second[:6])


def log_softmax(values: np.ndarray) -> np.ndarray:
    shifted = values - values.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def test_info_nce_in_a_batch_is_its_formula() -> None:
    queries, keys = rows(7, 5, 0), rows(7, 5, 1)
    q, k = (side.numpy() / np.linalg.norm(side.numpy(), axis=1, keepdims=True) for side in (queries, keys))
    expected = -2 * 0.2 * np.diag(log_softmax(q @ k.T / 0.2)).mean()
    found = info_nce_in_batch(queries, keys, 0.2, over_ranks=False)
    assert float(found.detach()) == pytest.approx(expected, abs=1e-12)
    # The control: the keys of other photos are not the right answer.
    assert float(info_nce_in_batch(queries, keys.roll(1, dims=0), 0.2, over_ranks=False)) != pytest.approx(expected)
    keys.requires_grad_()
    queries.requires_grad_()
    info_nce_in_batch(queries, keys, 0.2, over_ranks=False).backward()
    assert keys.grad is None
    assert queries.grad is not None


def test_what_info_nce_in_a_batch_cannot_take_is_refused() -> None:
    with pytest.raises(ConfigError, match="one shape"):
        info_nce_in_batch(rows(3, 2, 0), rows(4, 2, 0), 0.2, over_ranks=False)
    with pytest.raises(ConfigError, match="temperature is 0"):
        info_nce_in_batch(rows(3, 2, 0), rows(3, 2, 0), 0, over_ranks=False)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_sup_con_is_pytorch_metric_learnings(temperature: float) -> None:
    generator = torch.Generator().manual_seed(4)
    first, second = torch.randn(2, 9, 6, generator=generator, dtype=torch.float64)
    groups = torch.tensor([0, 1, 2, 0, 1, 5, 0, 2, 2])
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    theirs = losses.SupConLoss(temperature=temperature)(torch.cat([first, second]), groups.repeat(2))
    ours = sup_con(first, second, groups, temperature, over_ranks=False)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-9)
    wrong = nt_xent(first, second, temperature, over_ranks=False)
    assert abs(wrong.item() / theirs.item() - 1) > 0.01


def test_sup_con_of_photos_without_groups_is_nt_xent() -> None:
    generator = torch.Generator().manual_seed(5)
    first, second = torch.randn(2, 7, 4, generator=generator, dtype=torch.float64)
    found = sup_con(first, second, torch.full((7,), -2), 0.2, over_ranks=False)
    assert found.item() == pytest.approx(nt_xent(first, second, 0.2, over_ranks=False).item(), rel=1e-12)
    with pytest.raises(ConfigError, match=r"groups are \[3\] for 7 photos"):
        sup_con(first, second, torch.zeros(3, dtype=torch.int64), 0.2, over_ranks=False)

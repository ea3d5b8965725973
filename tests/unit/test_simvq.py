"""SimVQ against vector_quantize_pytorch and its formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from vector_quantize_pytorch import SimVQ

from pipeline.models.quantizers import SimVQConfig, SimVQQuantizer, build_quantizer

NUM_CODES, CODE_DIM, PHOTOS, CELLS = 32, 6, 5, 40


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pair() -> tuple[SimVQ, SimVQQuantizer]:
    """Return the oracle and our own with its basis and its map."""
    oracle, own = (
        SimVQ(dim=CODE_DIM, codebook_size=NUM_CODES, rotation_trick=False),
        SimVQQuantizer(NUM_CODES, CODE_DIM),
    )
    own.load_state_dict({"basis": oracle.frozen_codebook, "linear.weight": oracle.code_transform.weight.detach()})
    return oracle, own


def test_codes_values_loss_and_gradients_are_the_oracles() -> None:
    oracle, own = pair()
    vectors = torch.randn(PHOTOS, CELLS, CODE_DIM, requires_grad=True)
    twin = vectors.detach().clone().requires_grad_()
    values, codes, loss = oracle(vectors)
    quantised = own(twin)
    assert torch.equal(quantised.codes, codes)
    torch.testing.assert_close(own.codebook_rows(), oracle.codebook, rtol=0, atol=1e-7)
    torch.testing.assert_close(quantised.passed, values, rtol=0, atol=3e-7)
    number = CELLS * CODE_DIM  # the oracle's loss is a mean over numbers, ours a sum over a photo's
    torch.testing.assert_close(quantised.loss, loss * number, rtol=1e-6, atol=0)
    mean_squared = F.mse_loss(twin.detach(), quantised.values)
    assert (quantised.loss / number / mean_squared).item() == pytest.approx(1.25, abs=1e-5)

    weight = torch.randn_like(values)
    wanted = torch.autograd.grad((values * weight).sum() + loss * number, (vectors, oracle.code_transform.weight))
    found = torch.autograd.grad((quantised.passed * weight).sum() + quantised.loss, (twin, own.linear.weight))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_beta_weighs_the_commitment_and_not_the_codebook_term() -> None:
    own = SimVQQuantizer(NUM_CODES, CODE_DIM, commitment_weight=0.1)
    vectors = torch.randn(PHOTOS, CELLS, CODE_DIM, requires_grad=True)
    quantised = own(vectors)
    of_vectors, of_map = torch.autograd.grad(quantised.loss, (vectors, own.linear.weight))

    def explicit(to_codes: float, to_vectors: float) -> tuple[Tensor, ...]:
        codes = (own.basis @ own.linear.weight.T)[quantised.codes]
        first = (vectors.detach() - codes).square().sum() / PHOTOS
        second = (vectors - codes.detach()).square().sum() / PHOTOS
        return torch.autograd.grad(to_codes * first + to_vectors * second, (vectors, own.linear.weight))

    right, wrong = explicit(1.0, 0.1), explicit(0.1, 1.0)
    torch.testing.assert_close(of_vectors, right[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(of_map, right[1], rtol=1e-5, atol=1e-4)
    assert (of_vectors - wrong[0]).norm() > of_vectors.norm()
    assert (of_map - wrong[1]).norm() > 0.5 * of_map.norm()


def test_the_decoders_gradient_reaches_neither_map_nor_basis() -> None:
    own = SimVQQuantizer(NUM_CODES, CODE_DIM)
    vectors = torch.randn(PHOTOS, CELLS, CODE_DIM, requires_grad=True)
    quantised = own(vectors)
    quantised.passed.square().sum().backward()
    assert vectors.grad is not None
    assert own.linear.weight.grad is None
    assert [name for name, _ in own.named_parameters()] == ["linear.weight"]
    assert not own.basis.requires_grad


def test_autocast_changes_no_bit() -> None:
    own = SimVQQuantizer(256, CODE_DIM)
    vectors = torch.randn(PHOTOS, 200, CODE_DIM)
    plain = own(vectors)
    with torch.autocast("cpu", torch.bfloat16):
        under = own(vectors)
        rows, values = own.nearest(vectors.flatten(0, 1)), own.lookup(plain.codes)
        coarse = own.linear(own.basis)  # the control: a codebook made in bfloat16
    assert torch.equal(plain.codes, under.codes)
    assert torch.equal(plain.loss, under.loss)
    assert torch.equal(rows, plain.codes.flatten())
    assert torch.equal(values, plain.values)
    wrong = torch.cdist(vectors.flatten(0, 1).bfloat16().float(), coarse.float()).argmin(1)
    assert not torch.equal(wrong, rows)


def test_codes_of_length_one() -> None:
    own = build_quantizer(SimVQConfig(num_codes=NUM_CODES, code_dim=CODE_DIM, normalise=True))
    vectors = torch.randn(PHOTOS, CELLS, CODE_DIM)
    quantised = own(vectors)
    codebook = own.codebook_rows().detach()
    torch.testing.assert_close(codebook.norm(dim=1), torch.ones(NUM_CODES))
    cosines = F.cosine_similarity(vectors.unsqueeze(2).double(), codebook.double(), dim=3)
    assert torch.equal(quantised.codes, cosines.argmax(2))


def learn(own: SimVQQuantizer, steps: range) -> list[float]:
    """Train on vectors far from the basis: of another centre spread, in a few directions only."""
    optimiser = torch.optim.Adam(own.parameters(), 0.03)
    mixing = 3 * torch.randn(CODE_DIM, CODE_DIM, generator=torch.Generator().manual_seed(7))
    curve = []
    for step in steps:
        vectors = torch.randn(64, 4, CODE_DIM, generator=torch.Generator().manual_seed(step)) @ mixing
        loss = own(vectors).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        own.update()
        curve.append(loss.item())
    return curve


def test_the_map_carries_all_codes_to_the_vectors() -> None:
    own = SimVQQuantizer(128, CODE_DIM)
    curve = learn(own, range(200))
    assert curve[-1] < 0.5 * curve[0]
    own.scalars()
    learn(own, range(200, 220))
    measures = own.scalars()
    assert measures["codebook/used_codes"] >= 120
    assert measures["codebook/perplexity"] > 64
    assert measures["codebook/near_duplicate_share"] < 0.1
    assert measures["codebook/restarted"] == 0
    assert measures["codebook/quantisation_error"] > 0


def test_state_goes_round_to_the_same_bits() -> None:
    first = SimVQQuantizer(NUM_CODES, CODE_DIM)
    twin = SimVQQuantizer(NUM_CODES, CODE_DIM)
    assert not torch.equal(first.basis, twin.basis)
    learn(first, range(5))
    twin.load_state_dict(first.state_dict())  # the basis is part of the state
    assert torch.equal(first.codebook_rows(), twin.codebook_rows())
    assert learn(first, range(5, 10)) == learn(twin, range(5, 10))

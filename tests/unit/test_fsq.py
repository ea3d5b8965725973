"""Finite scalar quantisation against vector_quantize_pytorch."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from vector_quantize_pytorch import FSQ

from pipeline.errors import ConfigError
from pipeline.models.quantizers import FSQConfig, FSQQuantizer, build_quantizer

LEVELS = [(8, 6, 5), (8, 8, 8), (8, 5, 5, 5), (7, 5, 5, 5, 5), (3, 4)]
NUM_CODES = [240, 512, 1000, 4375, 12]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("levels", LEVELS)
def test_values_codes_and_gradient_are_the_oracles_bits(levels: tuple[int, ...]) -> None:
    oracle, own = FSQ(levels=list(levels)), FSQQuantizer(levels)
    vectors = (3 * torch.randn(6, 50, len(levels))).requires_grad_()
    twin = vectors.detach().clone().requires_grad_()
    values, codes = oracle(vectors)
    quantised = own(twin)
    assert torch.equal(quantised.passed, values)
    torch.testing.assert_close(quantised.values, values.detach(), rtol=0, atol=2e-7)  # x + (q - x) rounds, q does not
    assert torch.equal(quantised.codes, codes.long())
    weight = torch.randn_like(values)
    (wanted,) = torch.autograd.grad((values * weight).sum(), vectors)
    (found,) = torch.autograd.grad((quantised.passed * weight).sum(), twin)
    assert torch.equal(found, wanted)
    assert quantised.loss.item() == 0
    assert torch.equal(own.nearest(vectors.flatten(0, 1)), quantised.codes.flatten())
    assert torch.equal(own.lookup(quantised.codes), quantised.values)


@pytest.mark.parametrize(("levels", "number"), list(zip(LEVELS, NUM_CODES, strict=True)))
def test_every_code_goes_round(levels: tuple[int, ...], number: int) -> None:
    oracle, own = FSQ(levels=list(levels)), FSQQuantizer(levels)
    assert own.num_codes == number
    codes = torch.arange(number)
    values = own.codebook_rows()
    assert torch.equal(values, oracle.implicit_codebook)
    assert len(values.unique(dim=0)) == number
    assert torch.equal(oracle.codes_to_indices(values).long(), codes)
    # Back to what is rounded: a vector that is bounded to the value itself.
    inner = torch.atanh((values * own.width + own.offset) / own.reach) - own.shift
    assert torch.equal(own.nearest(inner), codes)
    torch.testing.assert_close(own.bounded(inner) / own.width, values, rtol=0, atol=1e-5)


def test_levels_without_the_half_shift_are_not_all_reached() -> None:
    """The control: with an even number of levels and no shift one level takes two roundings' place, another none."""
    own = FSQQuantizer((8,))
    vectors = torch.linspace(-9, 9, 20001).unsqueeze(1)
    assert len(own.nearest(vectors).unique()) == 8
    wrong = (torch.tanh(vectors) * own.reach).round().unique()
    assert sorted(wrong.tolist()) == [-4, -3, -2, -1, 0, 1, 2, 3, 4]  # nine, one of which no code stands for


def test_half_precision_is_lifted_and_autocast_changes_no_bit() -> None:
    own = FSQQuantizer((8, 6, 5))
    vectors = 2 * torch.randn(4, 400, 3)
    plain = own(vectors)
    with torch.autocast("cpu", torch.bfloat16):
        under = own(vectors)
    assert torch.equal(plain.codes, under.codes)
    assert torch.equal(plain.passed, under.passed)
    assert under.values.dtype == torch.float32
    half = own.nearest(vectors.bfloat16().flatten(0, 1))
    assert torch.equal(half, own.nearest(vectors.bfloat16().float().flatten(0, 1)))
    # The control: the same numbers bounded in bfloat16.
    coarse = torch.tanh(vectors.bfloat16() + own.shift.bfloat16()) * own.reach.bfloat16() - own.offset.bfloat16()
    assert (coarse.float().round() != own.bounded(vectors).round()).any()


def test_measures_of_all_steps_and_none_in_evaluation_mode() -> None:
    own = FSQQuantizer((8, 6, 5))
    assert own.scalars() == {}
    rows = [2 * torch.randn(4, 30, 3) for _ in range(3)]
    codes, error = [], 0.0
    for batch in rows:
        quantised = own(batch)
        codes.append(quantised.codes.flatten())
        error += (own.bounded(batch) / own.width - quantised.values).square().sum().item()
    own.update()
    measures = own.scalars()
    counts = torch.bincount(torch.cat(codes), minlength=240).double()
    entropy = torch.distributions.Categorical(counts / counts.sum()).entropy()
    assert measures["codebook/perplexity"] == pytest.approx(entropy.exp().item(), rel=1e-6)
    assert measures["codebook/used_codes"] == (counts > 0).sum().item()
    assert measures["codebook/quantisation_error"] == pytest.approx(error / 360, rel=1e-5)
    assert measures["codebook/near_duplicate_share"] == 0
    own.eval()(rows[0])
    assert own.scalars() == {}


def test_nothing_is_learned_and_nothing_is_kept() -> None:
    own = build_quantizer(FSQConfig(levels=(8, 6, 5)))
    assert isinstance(own, FSQQuantizer)
    assert list(own.parameters()) == []
    assert own.state_dict() == {}
    assert (own.num_codes, own.code_dim) == (240, 3)


def test_levels_that_cannot_work_are_refused() -> None:
    for levels in ([], [2, 5], [5, 300]):
        with pytest.raises(ConfigError, match="3 to 256"):
            FSQQuantizer(levels)
    with pytest.raises(ConfigError, match="16777216 codes; at most 1048576"):
        FSQQuantizer([8] * 8)
    for wrong in ([], [2, 5], [5, 300]):
        with pytest.raises(ValidationError):
            FSQConfig.model_validate({"levels": wrong})

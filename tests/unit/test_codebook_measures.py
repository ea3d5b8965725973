"""The codebook's measures by hand-made cases and NumPy, and the wrong measures they must not be."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity

from pipeline.models.quantizers import CodebookMeasures, EMAQuantizer, GradientQuantizer, near_duplicate_share

ERROR = torch.tensor(0.0)


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def perplexity(codes: torch.Tensor) -> float:
    shares = np.bincount(codes.numpy()) / len(codes)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def test_counts_and_errors_of_many_steps_add_up() -> None:
    measures, codebook = CodebookMeasures(50), torch.randn(50, 6)
    steps = [torch.randint(3 * step, 3 * step + 5, (40 + step,)) for step in range(10)]
    squared = [torch.rand(()) for _ in steps]
    for codes, error in zip(steps, squared, strict=True):
        measures.note(codes, error)
    measures.note_restarts(3)
    found = measures.collect(codebook)
    whole = torch.cat(steps)
    assert found["codebook/perplexity"] == pytest.approx(perplexity(whole), rel=1e-9)
    assert found["codebook/used_codes"] == len(whole.unique())
    assert found["codebook/quantisation_error"] == pytest.approx(sum(squared).item() / len(whole), rel=1e-6)  # type: ignore[union-attr]
    assert found["codebook/restarted"] == 3
    # The control: a mean of the batches' perplexities misses that every batch has other codes (and knows at most B).
    assert np.mean([perplexity(codes) for codes in steps]) < 0.3 * found["codebook/perplexity"]
    assert measures.collect(codebook) == {}
    measures.note(steps[0], squared[0])
    assert measures.collect(codebook)["codebook/restarted"] == 0


def test_the_extremes_of_perplexity() -> None:
    measures, codebook = CodebookMeasures(8), torch.randn(8, 3)
    measures.note(torch.full((100,), 5), ERROR)
    assert measures.collect(codebook)["codebook/perplexity"] == pytest.approx(1.0)
    measures.note(torch.arange(8).repeat(3), ERROR)
    assert measures.collect(codebook)["codebook/perplexity"] == pytest.approx(8.0)


def test_counts_stay_exact_beyond_the_integers_of_float32() -> None:
    measures = CodebookMeasures(2)
    measures.note(torch.zeros(1, dtype=torch.int64), ERROR)
    totals = measures._totals
    assert totals is not None
    totals[0] = 2.0**24
    measures.note(torch.tensor([0, 1]), ERROR)
    assert totals.tolist() == [2.0**24 + 1, 1.0, 0.0]  # float32 would still say 2**24


def by_numpy(codebook: torch.Tensor, *, centred: bool = True) -> float:
    codes = codebook.double().numpy()
    cosines = cosine_similarity(codes - codes.mean(0) if centred else codes)
    np.fill_diagonal(cosines, -1)
    return float((cosines.max(1) > 0.99).mean())


def test_near_duplicates_equal_brute_force_and_are_seen_from_the_mean_code() -> None:
    spread = torch.randn(1500, 6)  # more than one block of rows
    for codebook in (spread, torch.cat([spread[:700], spread[:300] + 0.01 * torch.randn(300, 6)])):
        assert near_duplicate_share(codebook) == pytest.approx(by_numpy(codebook))
        # Moved far away the codes are as different as before; not centred they would all seem one.
        assert near_duplicate_share(codebook + 500) == pytest.approx(by_numpy(codebook), abs=0.005)
        assert by_numpy(codebook + 500, centred=False) == 1.0
    apart = torch.cat([torch.eye(8), -torch.eye(8)])
    assert near_duplicate_share(apart) == 0.0
    assert near_duplicate_share(torch.cat([apart, apart[:4] * 1.01])) == pytest.approx(8 / 20)


def test_codes_that_are_all_one_are_duplicates() -> None:
    assert near_duplicate_share(torch.full((5, 3), 0.1)) == 1.0
    assert near_duplicate_share(torch.zeros(5, 3)) == 1.0
    assert near_duplicate_share(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])) == 0.0  # one at the mean itself


@pytest.mark.parametrize("quantizer_class", [EMAQuantizer, GradientQuantizer])
def test_a_quantizer_measures_its_training_only_and_keeps_nothing_in_its_state(
    quantizer_class: type[EMAQuantizer | GradientQuantizer],
) -> None:
    quantizer = quantizer_class(16, 4)
    names = set(quantizer.state_dict())
    vectors = torch.randn(2, 30, 4)
    quantised = quantizer(vectors)
    codes = [quantised.codes.flatten()]
    error = (vectors - quantised.values).square().sum().item()
    quantizer.update()
    quantizer.eval()
    quantizer(100 + torch.randn(2, 30, 4))  # validation has its own measures
    quantizer.train()
    vectors = torch.randn(3, 7, 4)
    quantised = quantizer(vectors)
    codes.append(quantised.codes.flatten())
    error += (vectors - quantised.values).square().sum().item()
    quantizer.update()
    assert set(quantizer.state_dict()) == names
    assert not any("measure" in name or "total" in name for name in names)
    found = quantizer.scalars()
    assert found["codebook/perplexity"] == pytest.approx(perplexity(torch.cat(codes)), rel=1e-9)
    assert found["codebook/used_codes"] == len(torch.cat(codes).unique())
    assert found["codebook/quantisation_error"] == pytest.approx(error / 81, rel=1e-5)
    assert found["codebook/near_duplicate_share"] == pytest.approx(by_numpy(quantizer.codebook_rows().detach()))
    assert quantizer.scalars() == {}

"""The EMA quantizer against vector_quantize_pytorch, and against the wrong versions known from the field."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.losses import commitment
from pipeline.models import Batch, Step, build_model
from pipeline.models.quantizers import EMAConfig, EMAQuantizer
from pipeline.models.quantizers.following import FollowingQuantizer
from pipeline.models.quantizers.gradient import GradientQuantizer
from pipeline.models.readout import pooling_matrix
from pipeline.models.vqvae import VQVAEConfig

NUM_CODES, CODE_DIM = 32, 8


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def quantizer_at(codebook: torch.Tensor, **options: Any) -> EMAQuantizer:
    """Return a quantizer that starts with this codebook instead of drawing one from the first batch."""
    quantizer = EMAQuantizer(*codebook.shape, **options)
    state = quantizer.state_dict()
    state |= {"codebook": codebook, "code_sum": codebook.clone(), "initialised": torch.tensor(True)}
    quantizer.load_state_dict(state)
    return quantizer


def oracle_at(codebook: torch.Tensor) -> Any:
    """Return the oracle with the same state: counts of one, sums equal to the codes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the oracle's own dependencies
        library = pytest.importorskip("vector_quantize_pytorch")
        oracle = library.VectorQuantize(
            dim=codebook.shape[1],
            codebook_size=codebook.shape[0],
            decay=0.99,
            eps=1e-5,
            commitment_weight=0.25,
            rotation_trick=False,
            threshold_ema_dead_code=0,
            kmeans_init=False,
            sync_codebook=False,
        ).train()
    with torch.no_grad():
        oracle.codebook = codebook.clone()
        oracle._codebook.cluster_size.fill_(1.0)
        oracle._codebook.embed_avg.copy_(oracle._codebook.embed)
    return oracle


def test_three_steps_equal_the_oracle() -> None:
    codebook = torch.randn(NUM_CODES, CODE_DIM)
    ours, oracle = quantizer_at(codebook, restart_threshold=0.0), oracle_at(codebook)
    for _ in range(3):
        vectors = torch.randn(4, 50, CODE_DIM)
        before = ours.codebook.clone()
        quantised = ours(vectors)
        their_values, their_codes, their_loss = oracle(vectors)
        assert torch.equal(quantised.codes, their_codes)
        torch.testing.assert_close(quantised.passed, their_values, rtol=0, atol=2e-7 * 4)
        assert torch.equal(quantised.values, before[quantised.codes])  # of the codebook before this step
        # Theirs is a mean over numbers, ours a sum over each photo.
        ours_loss = quantised.loss / (50 * CODE_DIM)
        torch.testing.assert_close(ours_loss, their_loss.squeeze(), rtol=1e-6, atol=1e-7)
        ours.update()
        torch.testing.assert_close(ours.codebook, oracle.codebook, rtol=0, atol=5e-7)
        torch.testing.assert_close(ours.code_count, oracle._codebook.cluster_size.squeeze(0), rtol=1e-6, atol=1e-6)


def test_nearest_equals_brute_force_also_far_from_the_origin() -> None:
    for offset in (0.0, 1000.0):
        codebook = torch.randn(NUM_CODES, CODE_DIM) + offset
        rows = torch.randn(2000, CODE_DIM) + offset
        exact = torch.cdist(rows.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        assert torch.equal(quantizer_at(codebook).nearest(rows), exact)
        plain = (codebook.square().sum(1) - 2 * rows @ codebook.T).argmin(1)  # the control: not centred
        assert torch.equal(plain, exact) == (offset == 0.0)


def test_nearest_stays_in_full_precision_under_autocast() -> None:
    codebook, rows = torch.randn(NUM_CODES, CODE_DIM), torch.randn(5000, CODE_DIM)
    quantizer = quantizer_at(codebook)
    plain = quantizer.nearest(rows)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.nearest(rows), plain)
        rough = (codebook.square().sum(1) - 2 * rows @ codebook.T).argmin(1)
    assert not torch.equal(rough, plain)  # the control


def test_the_gradient_passes_straight_through() -> None:
    quantizer = quantizer_at(torch.randn(NUM_CODES, CODE_DIM))
    vectors = torch.randn(3, 4, 4, CODE_DIM, requires_grad=True)
    weight = torch.randn(3, 4, 4, CODE_DIM)
    quantised = quantizer(vectors)
    (quantised.passed * weight).sum().backward()
    assert vectors.grad is not None
    assert torch.equal(vectors.grad, weight)
    assert not quantised.values.requires_grad


def test_indices_go_round() -> None:
    quantizer = quantizer_at(torch.randn(NUM_CODES, CODE_DIM))
    codes = torch.arange(NUM_CODES)
    assert torch.equal(quantizer.nearest(quantizer.lookup(codes)), codes)


@pytest.mark.parametrize("beta", [0.0, 0.25, 1.0])
def test_beta_weighs_the_commitment_and_so_the_encoder(beta: float) -> None:
    """With beta on the codebook term instead (a known bug) the loss has the same value, but not this gradient."""
    quantizer_config = EMAConfig(num_codes=16, code_dim=4, commitment_weight=beta)
    config = VQVAEConfig(channels=(4, 4), quantizer=quantizer_config)
    model = build_model(config, image_size=16)
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    held: dict[str, torch.Tensor] = {}
    model.get_submodule("quantizer").register_forward_hook(
        lambda _, inputs, result: held.update(vectors=inputs[0], values=result.values, passed=result.passed)
    )
    losses = model(Batch(images), Step(0, 1))
    torch.testing.assert_close(losses.parts["quantizer"], beta * commitment(held["vectors"], held["values"]).detach())
    vectors, passed = torch.autograd.grad(losses.total, [held["vectors"], held["passed"]])
    expected = beta * 2 * (held["vectors"] - held["values"]).detach() / 3
    torch.testing.assert_close(vectors - passed, expected, rtol=1e-4, atol=1e-4 * passed.abs().max().item())


def test_the_codebook_only_moves_in_update_and_only_in_training() -> None:
    quantizer = quantizer_at(torch.randn(NUM_CODES, CODE_DIM))
    before = quantizer.codebook.clone()
    quantizer(torch.randn(64, CODE_DIM))
    assert torch.equal(quantizer.codebook, before)
    quantizer.update()
    after = quantizer.codebook.clone()
    assert not torch.equal(after, before)
    quantizer.update()  # nothing seen since
    quantizer.eval()
    quantizer(torch.randn(64, CODE_DIM))
    quantizer.update()
    assert torch.equal(quantizer.codebook, after)
    assert int(quantizer.updates) == 1


def test_micro_batches_of_one_step_count_together() -> None:
    codebook, vectors = torch.randn(NUM_CODES, CODE_DIM), torch.randn(200, CODE_DIM)
    whole, parts = (quantizer_at(codebook, restart_threshold=0.0) for _ in range(2))
    whole(vectors)
    whole.update()
    for part in vectors.chunk(4):
        parts(part)
    parts.update()
    torch.testing.assert_close(parts.codebook, whole.codebook, rtol=0, atol=1e-6)
    assert torch.equal(parts.code_count, whole.code_count)


def test_the_first_batch_gives_the_first_codes() -> None:
    quantizer = EMAQuantizer(NUM_CODES, CODE_DIM, init="data")
    vectors = 100 + torch.randn(500, CODE_DIM)
    quantised = quantizer(vectors)
    assert len(quantizer.codebook.unique(dim=0)) == NUM_CODES
    assert all((vectors == code).all(1).any() for code in quantizer.codebook)
    assert len(quantised.codes.unique()) == NUM_CODES
    for init in ("data", "kmeans"):
        few = EMAQuantizer(NUM_CODES, CODE_DIM, init=init)
        few(vectors[:3])  # fewer vectors than codes: repeated
        assert len(few.codebook.unique(dim=0)) <= 3


def test_a_loaded_state_is_looked_at_again() -> None:
    quantizer = EMAQuantizer(NUM_CODES, CODE_DIM)
    fresh = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    quantizer(torch.randn(100, CODE_DIM))
    quantizer.load_state_dict(fresh)
    quantizer(100 + torch.randn(100, CODE_DIM))
    assert quantizer.codebook.mean() > 90


@pytest.mark.parametrize("on_device", [False, True])
def test_a_restart_resets_code_count_and_sum_together(on_device: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EMAQuantizer, "_waits_for_nothing", on_device)
    codebook = torch.cat([torch.zeros(1, CODE_DIM), torch.full((3, CODE_DIM), 50.0)])
    quantizer = quantizer_at(codebook, decay=0.5, restart_threshold=0.3)
    vectors = torch.randn(64, CODE_DIM)
    for _ in range(5):
        quantizer(vectors)
        before = quantizer.code_count.clone()
        quantizer.update()
        if quantizer.scalars()["codebook/restarted"]:
            break
    else:
        pytest.fail("no code was restarted")
    reset = (quantizer.code_count > before) & (quantizer.codebook[:, 0].abs() < 40)
    reset[0] = False
    assert reset.sum() == 3
    # The averages say the same as the codes, so the next update cannot fling them back (the control: sums left alone).
    implied = quantizer.code_sum / quantizer.code_count.unsqueeze(1)
    torch.testing.assert_close(implied[1:], quantizer.codebook[1:], rtol=1e-6, atol=1e-6)
    assert all((vectors == code).all(1).any() for code in quantizer.codebook[1:])
    quantizer(vectors)
    quantizer.update()
    assert quantizer.codebook.abs().max() < 10


@pytest.mark.parametrize("kind", [EMAQuantizer, GradientQuantizer])
def test_on_a_gpu_a_step_asks_the_device_for_nothing(
    kind: type[FollowingQuantizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, "_waits_for_nothing", True)
    quantizer = kind(NUM_CODES, CODE_DIM, decay=0.5, restart_threshold=0.3)
    quantizer(torch.randn(64, CODE_DIM))
    quantizer.update()  # the first has to look what was loaded

    def waits(_: Tensor, *given: Any) -> Any:
        raise AssertionError("the device was waited for")

    with torch.no_grad():
        quantizer.codebook[3:] += 50.0  # nothing chooses these any more
    kept = quantizer.codebook[:3].detach().clone()
    quantizer.scalars()
    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "nonzero", "__bool__", "__float__", "__int__"):
            patch.setattr(Tensor, name, waits)
        for _ in range(4):
            vectors = torch.randn(64, CODE_DIM)
            quantizer(vectors)
            quantizer.update()
    assert quantizer.codebook[3:].abs().max() < 10
    assert int(quantizer.updates.item()) == 5
    if kind is GradientQuantizer:
        assert torch.equal(quantizer.codebook[:3], kept), "living codes are the optimiser's"
    assert quantizer.scalars()["codebook/restarted"] >= NUM_CODES - 3
    # The control: the way of a CPU asks.
    monkeypatch.setattr(kind, "_waits_for_nothing", False)
    monkeypatch.setattr(Tensor, "item", waits)
    quantizer(vectors)
    with pytest.raises(AssertionError, match="waited for"):
        quantizer.update()


def test_scalars_measure_what_was_chosen_since_the_last_call() -> None:
    codebook = torch.eye(4) * 10
    quantizer = quantizer_at(codebook, restart_threshold=0.0, decay=0.999)
    assert quantizer.scalars() == {}
    quantizer(torch.cat([codebook[:2] + 0.1] * 8))
    quantizer.update()
    measures = quantizer.scalars()
    assert measures["codebook/used_codes"] == 2
    assert measures["codebook/perplexity"] == pytest.approx(2.0)
    assert measures["codebook/quantisation_error"] == pytest.approx(4 * 0.1**2, rel=1e-4)
    assert quantizer.scalars() == {}


@pytest.mark.parametrize(("grid", "cells"), [(8, 4), (7, 4), (3, 3), (9, 4), (5, 1)])
def test_the_pooling_matrix_is_adaptive_average_pooling(grid: int, cells: int) -> None:
    values = torch.randn(2, 3, grid, grid)
    matrix = pooling_matrix(grid, cells)
    expected = torch.nn.functional.adaptive_avg_pool2d(values, cells)
    torch.testing.assert_close(matrix @ values @ matrix.T, expected, rtol=1e-5, atol=1e-6)

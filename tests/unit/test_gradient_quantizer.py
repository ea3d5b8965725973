"""The gradient codebook against vector_quantize_pytorch and autograd; what all codebook quantizers share."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError

from pipeline.errors import ConfigError
from pipeline.losses import codebook_loss, commitment
from pipeline.models.quantizers import (
    QUANTIZERS,
    CodebookQuantizer,
    EMAConfig,
    EMAQuantizer,
    FSQConfig,
    GradientConfig,
    GradientQuantizer,
    QuantizerConfig,
    SimVQConfig,
    build_quantizer,
)

NUM_CODES, CODE_DIM, BETA = 32, 8, 0.25
PHOTOS, POSITIONS = 4, 50


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def quantizer_at(codebook: torch.Tensor, **options: Any) -> GradientQuantizer:
    """Return a quantizer that starts with this codebook instead of drawing one from the first batch."""
    quantizer = GradientQuantizer(*codebook.shape, init="normal", **options)
    with torch.no_grad():
        quantizer.codebook.copy_(codebook)
    return quantizer


def oracle_at(codebook: torch.Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the oracle's own dependencies
        library = pytest.importorskip("vector_quantize_pytorch")
        oracle = library.VectorQuantize(
            dim=codebook.shape[1],
            codebook_size=codebook.shape[0],
            learnable_codebook=True,
            ema_update=False,
            commitment_weight=1.0,
            rotation_trick=False,
            threshold_ema_dead_code=0,
            kmeans_init=False,
            sync_codebook=False,
        ).train()
    with torch.no_grad():
        oracle.codebook = codebook.clone()
    return oracle


def gradients(loss: torch.Tensor, *of: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss, of, retain_graph=True)


def test_gradients_equal_the_oracle_with_beta_on_the_commitment_only() -> None:
    """The oracle's weight 1 stands on both terms; so its codebook gradient is ours, its vectors' gradient ours / beta.

    The wrong version (beta on the codebook term: MishaLaskin/vqvae, taming-transformers' legacy mode) has the same
    value.
    """
    codebook = torch.randn(NUM_CODES, CODE_DIM)
    vectors = torch.randn(PHOTOS, POSITIONS, CODE_DIM, requires_grad=True)
    ours, oracle = quantizer_at(codebook, commitment_weight=BETA), oracle_at(codebook)
    quantised = ours(vectors)
    values, codes, loss = oracle(vectors)
    assert torch.equal(quantised.codes, codes)
    torch.testing.assert_close(quantised.passed, values, rtol=0, atol=1e-6)
    scale = POSITIONS * CODE_DIM  # theirs is a mean over numbers, ours a sum over each photo
    torch.testing.assert_close(quantised.loss, (1 + BETA) * scale * loss.squeeze(), rtol=1e-5, atol=0)
    to_codes, to_vectors = gradients(quantised.loss, ours.codebook, vectors)
    (their_vectors,) = gradients(loss, vectors)
    (their_codes,) = gradients(loss, oracle._codebook.embed)
    expected_codes, expected_vectors = scale * their_codes.squeeze(0), BETA * scale * their_vectors
    torch.testing.assert_close(to_codes, expected_codes, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(to_vectors, expected_vectors, rtol=1e-5, atol=1e-6)

    chosen = F.embedding(codes, ours.codebook)
    wrong = BETA * codebook_loss(vectors, chosen) + commitment(vectors, chosen)
    torch.testing.assert_close(wrong, quantised.loss)  # by its value nobody can tell
    wrong_codes, wrong_vectors = gradients(wrong, ours.codebook, vectors)
    assert (wrong_codes - expected_codes).norm() > 0.5 * expected_codes.norm()
    assert (wrong_vectors - expected_vectors).norm() > 0.5 * expected_vectors.norm()


def test_each_term_moves_one_side_only() -> None:
    vectors = torch.randn(PHOTOS, POSITIONS, CODE_DIM, requires_grad=True)
    chosen = torch.randn(PHOTOS, POSITIONS, CODE_DIM, requires_grad=True)
    for term, moved in ((codebook_loss, chosen), (commitment, vectors)):
        found = torch.autograd.grad(term(vectors, chosen), [vectors, chosen], allow_unused=True)
        for tensor, gradient in zip((vectors, chosen), found, strict=True):
            assert (gradient is not None) == (tensor is moved)
            if gradient is not None:
                expected = 2 * (tensor - (chosen if tensor is vectors else vectors)) / PHOTOS
                torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("kind", ["ema", "gradient"])
def test_the_gradient_passes_straight_through_and_not_to_the_codes(kind: str) -> None:
    quantizer = QUANTIZERS[kind](NUM_CODES, CODE_DIM)  # type: ignore[call-arg]
    vectors = torch.randn(3, 4, 4, CODE_DIM, requires_grad=True)
    weight = torch.randn(3, 4, 4, CODE_DIM)
    quantised = quantizer(vectors)
    (quantised.passed * weight).sum().backward()
    assert vectors.grad is not None
    assert torch.equal(vectors.grad, weight)
    assert not quantised.values.requires_grad
    assert all(parameter.grad is None for parameter in quantizer.parameters())
    torch.testing.assert_close(quantised.passed, quantised.values, rtol=0, atol=1e-6)
    assert torch.equal(quantizer.lookup(quantised.codes), quantised.values)


@pytest.mark.parametrize("kind", ["ema", "gradient"])
def test_codes_of_length_one_are_chosen_by_cosine(kind: str) -> None:
    quantizer = build_quantizer(
        TypeAdapter(QuantizerConfig).validate_python(
            {"kind": kind, "num_codes": NUM_CODES, "code_dim": CODE_DIM, "normalise": True, "commitment_weight": BETA}
        )
    )
    vectors = torch.randn(PHOTOS, POSITIONS, CODE_DIM, requires_grad=True)
    quantised = quantizer(vectors)
    codebook = quantizer.codebook_rows().detach()
    torch.testing.assert_close(codebook.norm(dim=1), torch.ones(NUM_CODES))
    cosines = F.cosine_similarity(vectors.detach().unsqueeze(2).double(), codebook.double(), dim=3)
    assert torch.equal(quantised.codes, cosines.argmax(2))
    plain = torch.cdist(vectors.detach().flatten(0, 1), codebook).argmin(1)
    assert torch.equal(plain, quantised.codes.flatten())  # of codes of one length the nearest is the same ...
    scaled = torch.cdist(vectors.detach().flatten(0, 1), codebook * torch.linspace(0.5, 2, NUM_CODES)[:, None])
    assert not torch.equal(scaled.argmin(1), quantised.codes.flatten())  # ... the control: of others it is not
    assert torch.equal(quantizer.nearest(1000 * vectors.flatten(0, 1)), quantised.codes.flatten())
    # The loss is between directions; its gradient knows of the scaling.
    (found,) = gradients(quantised.loss, vectors)
    explicit = BETA * (F.normalize(vectors, dim=2) - quantised.values).square().sum() / PHOTOS
    torch.testing.assert_close(found, gradients(explicit, vectors)[0], rtol=1e-5, atol=1e-6)
    quantizer.update()
    torch.testing.assert_close(quantizer.codebook_rows().norm(dim=1), torch.ones(NUM_CODES))


@pytest.mark.parametrize("kind", ["ema", "gradient"])
def test_autocast_changes_no_bit(kind: str) -> None:
    torch.manual_seed(1)
    quantizer = QUANTIZERS[kind](NUM_CODES, CODE_DIM)  # type: ignore[call-arg]
    vectors = torch.randn(PHOTOS, 500, CODE_DIM)
    plain = quantizer(vectors)
    with torch.autocast("cpu", torch.bfloat16):
        under = quantizer(vectors)
    assert torch.equal(plain.codes, under.codes)
    assert torch.equal(plain.loss, under.loss)
    assert under.passed.dtype == torch.float32


@pytest.mark.parametrize("kind", ["ema", "gradient"])
def test_the_loss_is_a_mean_over_photos_and_a_sum_over_each(kind: str) -> None:
    quantizer = QUANTIZERS[kind](NUM_CODES, CODE_DIM)  # type: ignore[call-arg]
    vectors = torch.randn(PHOTOS, 3, 5, CODE_DIM)
    quantised = quantizer(vectors)
    error = (vectors - quantised.values).square().sum() / PHOTOS
    torch.testing.assert_close(quantised.loss.detach(), error * (BETA if kind == "ema" else 1 + BETA))
    twice = quantizer(torch.cat([vectors, vectors]))
    torch.testing.assert_close(twice.loss, quantised.loss)


@pytest.mark.parametrize("kind", ["ema", "gradient"])
def test_nothing_changes_in_evaluation_mode(kind: str) -> None:
    quantizer = QUANTIZERS[kind](NUM_CODES, CODE_DIM)  # type: ignore[call-arg]
    vectors = torch.randn(PHOTOS, POSITIONS, CODE_DIM)
    quantizer.eval()
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    loss = quantizer(vectors).loss
    quantizer.update()
    assert torch.isfinite(loss)
    assert all(torch.equal(tensor, before[name]) for name, tensor in quantizer.state_dict().items())
    assert quantizer.scalars() == {}


def train(quantizer: CodebookQuantizer, steps: range, generator: torch.Generator) -> float:
    """Train the codebook on eight far clusters; return the last loss."""
    centres = 5 * torch.randn(8, CODE_DIM, generator=torch.Generator().manual_seed(5))
    optimiser = torch.optim.SGD(quantizer.parameters(), 0.2) if list(quantizer.parameters()) else None
    loss = torch.zeros(())
    for _ in steps:
        which = torch.randint(8, (64,), generator=generator)
        vectors = centres[which] + 0.1 * torch.randn(64, CODE_DIM, generator=generator)
        loss = quantizer(vectors).loss
        if optimiser is not None:
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        quantizer.update()
    return float(loss.item())


def test_dead_codes_of_a_gradient_codebook_begin_anew() -> None:
    far = torch.randn(16, CODE_DIM) * 0.01 + 50
    least = 1.25 * CODE_DIM * 0.1**2
    with_restarts = quantizer_at(far, decay=0.9, restart_threshold=0.2)
    assert train(with_restarts, range(80), torch.Generator().manual_seed(2)) < 2 * least
    measures = with_restarts.scalars()
    assert measures["codebook/restarted"] >= 15
    without = quantizer_at(far, decay=0.9, restart_threshold=0.0)  # the control
    assert train(without, range(80), torch.Generator().manual_seed(2)) > 100 * least
    assert without.scalars()["codebook/used_codes"] <= 3


@pytest.mark.parametrize("kind", ["ema", "gradient"])
def test_training_continues_from_its_state_to_the_same_bits(kind: str) -> None:
    first = QUANTIZERS[kind](16, CODE_DIM, decay=0.8, restart_threshold=0.3)  # type: ignore[call-arg]
    train(first, range(10), torch.Generator().manual_seed(3))
    twin = QUANTIZERS[kind](16, CODE_DIM, decay=0.8, restart_threshold=0.3)  # type: ignore[call-arg]
    twin.load_state_dict(first.state_dict())
    first.scalars()
    losses = [train(one, range(20), torch.Generator().manual_seed(4)) for one in (first, twin)]
    assert losses[0] == losses[1]
    assert all(torch.equal(tensor, twin.state_dict()[name]) for name, tensor in first.state_dict().items())
    measures = first.scalars()
    assert measures == twin.scalars()
    assert measures["codebook/restarted"] > 0


def test_the_union_builds_every_kind_of_the_table() -> None:
    adapter: TypeAdapter[EMAConfig | GradientConfig | FSQConfig | SimVQConfig] = TypeAdapter(QuantizerConfig)
    for kind, quantizer_class in QUANTIZERS.items():
        quantizer = build_quantizer(adapter.validate_python({"kind": kind}))
        assert type(quantizer) is quantizer_class
        assert quantizer.codebook_rows().shape == (quantizer.num_codes, quantizer.code_dim)
    ema = build_quantizer(EMAConfig(num_codes=7, code_dim=3, decay=0.5, init="data", restart_threshold=0))
    assert isinstance(ema, EMAQuantizer)
    assert (ema.num_codes, ema.code_dim, ema.decay, ema.init, ema.restart_threshold) == (7, 3, 0.5, "data", 0)
    for wrong in ({"kind": "vq"}, {"kind": "fsq", "num_codes": 5}, {"kind": "ema", "init": "zeros"}):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)
    with pytest.raises(ConfigError, match="'lfq'; known kinds: ema, "):
        build_quantizer(EMAConfig.model_construct(kind="lfq"))  # type: ignore[arg-type]

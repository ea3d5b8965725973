"""Straight-through and the rotation trick against their formulas and vector_quantize_pytorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from pipeline.models.quantizers import EMAQuantizer, GradientPath
from pipeline.models.quantizers.paths import rotate, straight_through


def gradients(passed: Tensor, weight: Tensor, *inputs: Tensor) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad((passed * weight).sum(), inputs, allow_unused=True)


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype).requires_grad_()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("path", [straight_through, rotate])
def test_the_values_go_forward_and_only_the_vectors_get_a_gradient(path: type) -> None:
    vectors, values, weight = normal(3, 5, 8), normal(3, 5, 8), torch.randn(3, 5, 8, dtype=torch.float64)
    passed = path(vectors, values)
    torch.testing.assert_close(passed, values, rtol=0, atol=1e-15)
    of_vectors, of_values = gradients(passed, weight, vectors, values)
    assert of_vectors is not None
    assert of_values is None


def test_straight_through_hands_on_the_same_bits() -> None:
    vectors, values, weight = normal(4, 8, dtype=torch.float32), torch.randn(4, 8), torch.randn(4, 8)
    (found,) = gradients(straight_through(vectors, values), weight, vectors)
    assert found is not None
    assert torch.equal(found, weight)


def test_control_a_gradient_that_reaches_the_codebook() -> None:
    """x + (q - x) without the stop also has the right values; everything then goes to the code, nothing to the vector.

    x + q - sg(x) sends it to both.
    """
    vectors, values, weight = normal(4, 8), normal(4, 8), torch.randn(4, 8, dtype=torch.float64)
    of_vectors, of_values = gradients(vectors + (values - vectors), weight, vectors, values)
    assert of_vectors is not None
    assert of_values is not None
    assert of_vectors.abs().max() == 0
    assert torch.equal(of_values, weight)
    both = gradients(vectors + values - vectors.detach(), weight, vectors, values)
    assert all(one is not None and torch.equal(one, weight) for one in both)


def test_rotation_is_the_explicit_matrix() -> None:
    vectors, values, weight = normal(20, 6), torch.randn(20, 6, dtype=torch.float64), torch.randn(20, 6).double()
    passed = rotate(vectors, values)
    (found,) = gradients(passed, weight, vectors)
    assert found is not None
    for row in range(20):
        x, q = vectors[row].detach(), values[row]
        unit_x, unit_q = x / x.norm(), q / q.norm()
        w = (unit_x + unit_q) / (unit_x + unit_q).norm()
        turn = torch.eye(6, dtype=torch.float64) - 2 * torch.outer(w, w) + 2 * torch.outer(unit_q, unit_x)
        torch.testing.assert_close(turn @ turn.T, torch.eye(6, dtype=torch.float64))
        assert torch.linalg.det(turn).item() == pytest.approx(1.0)  # a rotation, no reflection
        scaled = q.norm() / x.norm() * turn
        torch.testing.assert_close(scaled @ x, q)
        torch.testing.assert_close(found[row], scaled.T @ weight[row])
        # What the trick is for: the gradient lies to the vector as it lay to the code.
        assert torch.dot(found[row], x).item() == pytest.approx(torch.dot(weight[row], q).item())
    assert not torch.allclose(found, weight, atol=0.1)  # the control: straight-through is another gradient


def test_rotation_is_that_of_vector_quantize_pytorch() -> None:
    oracle = VectorQuantize(8, codebook_size=32, rotation_trick=True, freeze_codebook=True, commitment_weight=0.0)
    oracle.train()
    vectors, twin, weight = normal(4, 10, 8, dtype=torch.float32), torch.empty(0), torch.randn(4, 10, 8)
    twin = vectors.detach().clone().requires_grad_()
    wanted, codes, _ = oracle(vectors)
    found = rotate(twin, oracle.codebook[codes])
    torch.testing.assert_close(found, wanted, rtol=0, atol=3e-7)
    (wanted_gradient,), (gradient,) = gradients(wanted, weight, vectors), gradients(found, weight, twin)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=0, atol=3e-7)


def test_vectors_without_a_direction_or_opposite_to_their_values_stay_finite() -> None:
    values = torch.nn.functional.normalize(torch.randn(3, 4), dim=1)
    vectors = torch.stack([torch.zeros(4), -values[1], values[2]]).requires_grad_()
    weight = torch.randn(3, 4)
    passed = rotate(vectors, values)
    torch.testing.assert_close(passed, values, rtol=0, atol=1e-6)
    (found,) = gradients(passed, weight, vectors)
    assert found is not None
    assert torch.isfinite(found).all()
    assert torch.equal(found[0], weight[0])
    torch.testing.assert_close(found[2], weight[2])  # already there: nothing to turn
    zeros = torch.zeros(3, 4)
    (found,) = gradients(rotate(vectors, zeros), weight, vectors)
    assert found is not None
    assert torch.equal(found, weight)


@pytest.mark.parametrize("kind", ["straight_through", "rotation"])
def test_a_quantizer_takes_the_path_it_was_told(kind: GradientPath) -> None:
    quantizer = EMAQuantizer(16, 4, gradient=kind, commitment_weight=0.0).eval()
    vectors, weight = normal(3, 5, 4, dtype=torch.float32), torch.randn(3, 5, 4)
    quantised = quantizer(vectors)
    path = {"straight_through": straight_through, "rotation": rotate}[kind]
    (found,) = gradients(quantised.passed, weight, vectors)
    (wanted,) = gradients(path(vectors, quantised.values), weight, vectors)
    assert found is not None
    assert wanted is not None
    assert torch.equal(found, wanted)

"""The relation loss against numpy, and the wrong versions that must not pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.errors import ConfigError
from pipeline.losses import relation


def by_numpy(student: np.ndarray, teacher: np.ndarray) -> float:
    """Return the loss pair by pair."""
    own = student / np.linalg.norm(student, axis=1, keepdims=True)
    wanted = teacher / np.linalg.norm(teacher, axis=1, keepdims=True)
    pairs = [
        float(own[i] @ own[j] - wanted[i] @ wanted[j]) ** 2 for i in range(len(own)) for j in range(len(own)) if i != j
    ]
    return sum(pairs) / len(pairs)


def rows(number: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(number, width, generator=torch.Generator().manual_seed(seed))


def test_it_is_the_mean_squared_difference_of_the_cosines_of_pairs() -> None:
    student, teacher = rows(7, 3, 0), rows(7, 11, 1)
    expected = by_numpy(student.double().numpy(), teacher.double().numpy())
    assert relation(student, teacher, over_ranks=False).item() == pytest.approx(expected, rel=1e-5)
    # With photos compared with themselves the mean would be over more pairs, and smaller.
    own, wanted = F.normalize(student), F.normalize(teacher)
    assert (own @ own.T - wanted @ wanted.T).square().mean().item() != pytest.approx(expected, rel=1e-2)


def test_lengths_and_turns_of_the_student_do_not_matter_and_the_teacher_itself_is_best() -> None:
    teacher = rows(6, 5, 2)
    turn, _ = torch.linalg.qr(rows(5, 5, 3))
    assert relation(3.0 * teacher @ turn, teacher, over_ranks=False).item() == pytest.approx(0.0, abs=1e-10)
    assert relation(teacher.roll(1, 0), teacher, over_ranks=False) > 0.01, "another photo's features are not its own"


def test_every_row_of_the_student_learns_and_the_teacher_does_not() -> None:
    student, teacher = rows(5, 4, 4).requires_grad_(), rows(5, 4, 5).requires_grad_()
    relation(student, teacher, over_ranks=False).backward()
    assert teacher.grad is None
    assert student.grad is not None
    own, wanted = F.normalize(student.detach()), F.normalize(teacher.detach())
    halved = student.detach().clone().requires_grad_()  # the others' rows without a gradient: half of the right one
    apart = (F.normalize(halved, dim=1) @ own.T - wanted @ wanted.T).square()
    (apart.sum() / 20).backward()
    assert halved.grad is not None
    torch.testing.assert_close(student.grad, 2 * halved.grad)


def test_a_photo_alone_and_half_precision() -> None:
    assert relation(rows(1, 4, 6), rows(1, 3, 7), over_ranks=False).item() == 0.0
    student, teacher = rows(8, 16, 8), rows(8, 16, 9)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(relation(student, teacher, over_ranks=False), relation(student, teacher, over_ranks=False))
        found = relation(student, teacher, over_ranks=False)
    torch.testing.assert_close(found, relation(student, teacher, over_ranks=False))


def test_unlike_numbers_of_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match="one row a photo"):
        relation(rows(3, 4, 0), rows(4, 4, 0), over_ranks=False)

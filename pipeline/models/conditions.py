"""Conditions: which row of a conditional model's table of categories a photo has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

NO_CATEGORY, UNKNOWN_CATEGORY, FIRST_CATEGORY = 0, 1, 2


def condition_of(labels: Sequence[str], categories: Iterable[str | None]) -> Tensor:
    """Return the condition rows, int64 [B], of categories: 0 for none, 1 for one without a label, else 2 + index."""
    rows = {label: FIRST_CATEGORY + index for index, label in enumerate(labels)}
    given = [NO_CATEGORY if name is None else rows.get(name, UNKNOWN_CATEGORY) for name in categories]
    return torch.tensor(given, dtype=torch.int64)

"""What a question to a release is made of, checked: keys, how many, baskets, vectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ConfigError
from .fusion import FUSIONS
from .latents import Float32, Float64


def listed_keys(item_ids: Iterable[Any]) -> list[Any]:
    """Return several keys as a list. Raises ConfigError for one text, which is not its letters."""
    if isinstance(item_ids, str | bytes | Mapping) or not isinstance(item_ids, Iterable):
        raise ConfigError(f"item_ids is {item_ids!r:.80}; give a list of item_ids")
    return list(item_ids)


def checked_k(k: Any) -> int:
    """Return how many neighbours are asked for. Raises ConfigError for what is no whole number of at least 1."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ConfigError(f"k is {k!r}; it must be a whole number of at least 1")
    return int(k)


def basket_shares(item_ids: list[Any], fusion: str, weights: Sequence[float] | None) -> Float64:
    """Return one weight an item, 1 where none are given. Raises ConfigError for what does not fit."""
    if not item_ids:
        raise ConfigError("item_ids is empty; give a list of at least one item_id")
    if fusion not in FUSIONS:
        raise ConfigError(f"unknown fusion {fusion!r}; one of {', '.join(FUSIONS)}")
    if weights is None:
        return np.ones(len(item_ids))
    if fusion == "min":
        raise ConfigError("fusion 'min' takes the nearest of the items and has no use for weights; leave them out")
    shares = np.asarray(weights, np.float64)
    if shares.shape != (len(item_ids),) or not (np.isfinite(shares) & (shares > 0)).all():
        raise ConfigError(f"weights are {list(weights)!r}; give one positive number for each of {len(item_ids)} items")
    return shares


def as_rows(vectors: ArrayLike) -> Float32:
    """Return query vectors as rows, float32 [q, d]; one vector [d] is one row. Raises ConfigError for other shapes."""
    matrix = np.asarray(vectors, np.float32)
    if matrix.ndim not in (1, 2):
        raise ConfigError(f"vectors of shape {list(matrix.shape)}; pass rows [q, d], or one vector [d]")
    return np.atleast_2d(matrix)

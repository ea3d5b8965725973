"""Pictures that a prior draws through the decoder, beside what cells drawn alone make: the negative control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import ConfigError, InputError
from ..models.base import Model
from ..models.conditions import condition_of
from ..models.priors import Prior, decode_codes, sample
from .likelihood import code_shares, item_nats


@dataclass(frozen=True, slots=True)
class Drawn:
    """Codes int32 [n, h, w] of pictures, and how likely the prior finds them: nats per code, a mean over pictures."""

    codes: NDArray[np.int32]
    nats_per_code: float


def draw_samples(
    prior: Prior,
    number: int,
    *,
    categories: Sequence[str | None] | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> Drawn:
    """Draw codes from a prior, cell after cell; see `models.priors.sample`.

    categories: of each picture, for a prior `by_category`. The same seed draws the same codes on a CPU. Raises
    ConfigError for a category that the prior was not trained on, or any category with a prior that is told none.
    """
    condition = conditions(prior, categories)
    generator = torch.Generator(prior.embedding.weight.device).manual_seed(seed)
    told = None if condition is None else torch.from_numpy(condition)
    codes = sample(prior, number, temperature=temperature, top_k=top_k, condition=told, generator=generator)
    return _drawn(prior, codes.cpu().numpy().astype(np.int32), condition)


def draw_alone(
    prior: Prior,
    number: int,
    train: NDArray[np.integer],
    *,
    categories: Sequence[str | None] | None = None,
    seed: int = 0,
) -> Drawn:
    """Draw every cell by itself, by how often the codes are used in train [m, h, w], as if no code knew another.

    categories: what the prior is told when it judges the pictures. Raises as `draw_samples`.
    """
    return _drawn(prior, codes_alone(prior, number, train, seed=seed), conditions(prior, categories))


def codes_alone(prior: Prior, number: int, train: NDArray[np.integer], *, seed: int = 0) -> NDArray[np.int32]:
    """Return codes int32 [number, h, w] of the prior's grid, every cell drawn as `draw_alone` does."""
    shares = code_shares(train, prior.num_codes)
    codes = np.random.default_rng(seed).choice(prior.num_codes, size=(number, *prior.grid), p=shares)
    return codes.astype(np.int32)


def pictures_of(model: Model, codes: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Return the pictures uint8 [n, H, W, 3] that a VQ model's decoder makes of codes [n, h, w].

    Raises NotReconstructing for a model without a decoder to pixels, InputError for codes of another grid.
    """
    pictures: NDArray[np.uint8] = decode_codes(model, torch.from_numpy(codes.astype(np.int64))).numpy()
    return pictures


def conditions(prior: Prior, categories: Sequence[str | None] | None) -> NDArray[np.int64] | None:
    """Return the condition rows int64 [n] of categories, None of no categories; errors as `draw_samples`."""
    if categories is None:
        return None
    unknown = sorted({name for name in categories if name is not None} - set(prior.labels))
    if unknown:
        known = ", ".join(prior.labels) or "none: it was trained without prior.by_category"
        raise ConfigError(f"the prior knows no category {unknown[0]!r}; it knows {known}")
    rows: NDArray[np.int64] = condition_of(prior.labels, categories).numpy()
    return rows


def _drawn(prior: Prior, codes: NDArray[np.int32], condition: NDArray[np.int64] | None) -> Drawn:
    if not len(codes):
        raise InputError("0 pictures were asked for; draw at least one")
    nats = item_nats(prior, codes, condition=condition)
    return Drawn(codes, float(nats.mean()) / (prior.grid[0] * prior.grid[1]))

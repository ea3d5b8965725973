"""Codes drawn from a prior, cell after cell, and the pictures that a VQ model's decoder makes of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import ConfigError, InputError
from ..base import Latents, Model
from .base import Prior

_DECODED = 256  # photos decoded at a time


def draw(
    logits: Tensor, *, temperature: float = 1.0, top_k: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Return one code of each row, int64 [N], drawn by softmax(logits / temperature) of logits [N, K].

    top_k: only the k likeliest codes can be drawn, of equal ones the lower numbers; 1 is argmax. Raises ConfigError for
    a temperature that is not above 0 or a top_k outside 1..K.
    """
    check_draw(temperature=temperature, top_k=top_k, num_codes=logits.shape[1])
    scaled = logits.double() / temperature
    if top_k is not None:
        # A stable sort, as torch.topk leaves open which of equal ones it takes.
        beyond = scaled.sort(dim=1, descending=True, stable=True).indices[:, top_k:]
        scaled = scaled.scatter(1, beyond, -math.inf)
    return torch.multinomial(scaled.softmax(dim=1), 1, generator=generator).squeeze(1)


def check_draw(*, temperature: float, top_k: int | None, num_codes: int) -> None:
    """Raise ConfigError unless `draw` can draw one of num_codes codes so."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ConfigError(f"temperature is {temperature}; it must be above 0 (top_k 1 takes the likeliest code)")
    if top_k is not None and not 1 <= top_k <= num_codes:
        raise ConfigError(f"top_k is {top_k}; a codebook of {num_codes} codes has 1..{num_codes}")


@torch.no_grad()
def sample(
    prior: Prior,
    number: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    condition: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return codes int64 [number, h, w] drawn from a prior on its device, in evaluation mode; see `draw`.

    condition: rows int64 [number] of categories, for a prior `by_category`. generator: of the prior's device; torch's
    global one if None. The prior runs h * w times over all of them at once. Raises InputError for conditions of another
    number.
    """
    if condition is not None and len(condition) != number:
        raise InputError(f"{len(condition)} conditions for {number} samples; give one each")
    height, width = prior.grid
    device = prior.embedding.weight.device
    codes = torch.zeros(number, height, width, dtype=torch.int64, device=device)
    condition = None if condition is None else condition.to(device)
    training = prior.training
    prior.eval()
    try:
        for row in range(height):
            for column in range(width):
                # Cells that are not drawn yet hold code 0; no logits of this cell look at them.
                logits = prior.logits(codes, condition)[:, :, row, column]
                codes[:, row, column] = draw(logits, temperature=temperature, top_k=top_k, generator=generator)
    finally:
        prior.train(training)
    return codes


@torch.no_grad()
def decode_codes(model: Model, codes: Tensor) -> Tensor:
    """Return the pictures of codes int64 [n, h, w] as a VQ model decodes them, uint8 [n, H, W, 3] on the CPU.

    The model is one in evaluation mode. Raises InputError when it has another number of codes a photo,
    NotReconstructing when it decodes to something other than pixels.
    """
    flat = codes.flatten(1)
    if flat.shape[1] != model.num_latent_codes:
        raise InputError(
            f"a prior of {flat.shape[1]} codes a photo cannot be decoded by a {type(model).__name__} of "
            f"{model.num_latent_codes}; take the model whose latents it was trained on"
        )
    made = []
    for rows in torch.split(flat, _DECODED):
        pictures = model.decode(Latents(torch.zeros(len(rows), 0, device=rows.device), codes=rows))
        made.append((pictures.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu())
    return torch.cat(made)

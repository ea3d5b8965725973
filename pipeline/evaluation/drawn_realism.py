"""Are pictures that a prior draws like photos? Against held-out photos, beside what cells drawn alone make."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..models.base import Model
from ..models.priors import Prior, sample
from .drawing import codes_alone, pictures_of
from .realism import Float64, PictureSpace, Realism, picture_space, realism

PICTURES = 1000  # of each set, where as many photos are held out twice
LEAST = 50  # held-out photos, both halves together
_CELLS = PICTURES * 64**2  # that a prior is run over: h * w times the h * w cells of every picture it draws
_BATCH = 64  # pictures drawn at a time
_DECODED = 256

Codes = NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class DrawnRealism:
    """Three sets of pictures against one reference: one half of the held-out photos.

    held_out: the other half, what no prior can be expected to fall below. samples: drawn from the prior. independent:
    every cell drawn alone.
    """

    held_out: Realism
    samples: Realism
    independent: Realism

    def measures(self) -> dict[str, float]:
        """Return the six numbers by name."""
        return {
            **self.samples.measures("samples"),
            **self.independent.measures("independent"),
            **self.held_out.measures("held_out"),
        }


def compared_pictures(held_out: int, cells: int) -> int:
    """Return how many pictures of each set are compared: PICTURES, or as many as halves of held-out photos allow.

    cells: codes a picture. Above 64 they are fewer, since the time to draw a picture grows with the square of its
    cells. Raises InputError for too few photos or too many cells.
    """
    if held_out < LEAST:
        raise InputError(f"{held_out:,} photos are held out (one an item); at least {LEAST} are needed")
    number = min(PICTURES, held_out // 2, _CELLS // cells**2)
    if number < LEAST // 2:
        raise InputError(f"a picture of {cells:,} codes takes too long to draw {LEAST // 2} times")
    return number


def drawn_realism(
    prior: Prior,
    model: Model,
    train: Codes,
    held_out: Codes,
    *,
    condition: NDArray[np.integer] | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> DrawnRealism:
    """Measure pictures drawn from a prior of a VQ model's codes against held-out photos' codes [n, h, w].

    All pictures come from the model's decoder, the reference's too, so that its blur does not count. The held-out
    photos are split into halves by chance; the pictures drawn are `compared_pictures`, and as many of each half are
    taken. train: codes [m, h, w] whose frequencies cells alone are drawn by. condition: rows [n] of the held-out
    photos' categories, of which the drawn pictures have those of the second half. temperature, top_k: as
    `draw_samples`. Raises InputError as `compared_pictures` and `picture_space`, NotReconstructing for a model that
    draws no pictures.
    """
    number = compared_pictures(len(held_out), held_out[0].size if len(held_out) else 1)
    order = np.random.default_rng(seed).permutation(len(held_out))
    reference, others = order[:number], order[number : 2 * number]
    # Before anything is drawn, which takes long: it may refuse.
    space = picture_space(pictures_of(model, held_out[reference]))
    told = None if condition is None else condition[others]
    sets = (
        held_out[reference],
        held_out[others],
        _drawn(prior, number, told, temperature=temperature, top_k=top_k, seed=seed),
        codes_alone(prior, number, train, seed=seed),
    )
    known, *compared = np.split(_features(space, model, np.concatenate(sets)), len(sets))
    return DrawnRealism(*(realism(known, other) for other in compared))


def _drawn(
    prior: Prior,
    number: int,
    condition: NDArray[np.integer] | None,
    *,
    temperature: float,
    top_k: int | None,
    seed: int,
) -> NDArray[np.int32]:
    """Return codes int32 [number, h, w] drawn from a prior, a few pictures at a time: the logits of all are large."""
    generator = torch.Generator(prior.embedding.weight.device).manual_seed(seed)
    told = None if condition is None else torch.from_numpy(condition.astype(np.int64))
    made = []
    for start in range(0, number, _BATCH):
        stop = min(start + _BATCH, number)
        given = None if told is None else told[start:stop]
        made.append(
            sample(prior, stop - start, temperature=temperature, top_k=top_k, condition=given, generator=generator)
        )
    return torch.cat(made).cpu().numpy().astype(np.int32)


def _features(space: PictureSpace, model: Model, codes: Codes) -> Float64:
    """Return the features float64 [n, d] of codes [n, h, w]; equal codes have equal features to the last bit."""
    distinct, rows = np.unique(codes.reshape(len(codes), -1), axis=0, return_inverse=True)
    grids = distinct.reshape(-1, *codes.shape[1:])
    blocks = [grids[start : start + _DECODED] for start in range(0, len(grids), _DECODED)]
    found = np.concatenate([space.features(pictures_of(model, block)) for block in blocks])
    return np.asarray(found[rows.reshape(-1)])

"""How much each member of a fusion counts, chosen by how well photos find what they should."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import InputError
from ..images.augment import ViewsConfig, two_views
from .base import Batch
from .conditions import FIRST_CATEGORY

ASKED, KNOWN, LEAST = 1_000, 4_000, 20  # photos that ask, that are asked at most; photos at least
_STEPS = (1.0, 2.0, 4.0)  # what a member may count, as a multiple of the least
_MOST = 4  # members: each further one takes three times as long
_NEAREST = 10
_VIEWS = ViewsConfig(min_area=0.5, brightness=0.2, contrast=0.2)


@dataclass(slots=True)
class Sample:
    """The photos that ask: the first of those that a fusion is fitted on, which come in a seeded order.

    condition: rows of categories of all photos so far, as `conditions.condition_of`; none where a batch has none.
    """

    photos: list[Batch] = field(default_factory=list)
    condition: list[Tensor | None] = field(default_factory=list)

    def note(self, batch: Batch) -> Batch:
        """Keep what of a batch will be asked, and return the batch."""
        if sum(len(kept.images) for kept in self.photos) < ASKED:
            self.photos.append(batch.each(torch.clone))
        self.condition.append(batch.condition)
        return batch

    def categories(self) -> Tensor | None:
        """Return the condition row of every photo, int64 [n]; None where no photo has a category."""
        known = [rows for rows in self.condition if rows is not None]
        if len(known) < len(self.condition):
            return None
        rows = torch.cat(known)
        return rows if bool((rows >= FIRST_CATEGORY).any()) else None

    def views(self) -> list[Batch]:
        """Return a seeded view of each kept photo: a crop, mirrored or not, in other light, the same in every size."""
        found = []
        for number, batch in enumerate(self.photos):
            seen = []
            for images in (batch.images, *batch.others):
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(number)
                    seen.append(two_views(images.cpu(), _VIEWS)[: len(images)].to(images.device))
            found.append(Batch(seen[0], others=tuple(seen[1:])))
        return found


def check_members(members: int) -> str | None:
    """Return what is wrong with choosing the weights of so many members, None for nothing."""
    return None if members <= _MOST else f"weights are auto for {members} members; choose among at most {_MOST}"


def asked_of(photos: int) -> int:
    """Return how many of so many photos ask; the others are known. Raises InputError for too few photos."""
    if photos < LEAST:
        raise InputError(f"{photos} photos cannot tell which weights are best; take {LEAST}, or name model.weights")
    return min(ASKED, photos // 4)


def choose_weights(asking: Sequence[Tensor], known: Sequence[Tensor], right: Tensor) -> tuple[float, ...]:
    """Return the weights by which those that ask find most of what is right, the most equal ones of equally good.

    asking, known: each member's scaled vectors, float [q, d] and [n, d]; right: bool [q, n]. By the fused cosine; where
    several are right of one that asks, the share of right ones among its ten nearest (P@10), else one over the rank of
    the only one (reciprocal rank); means over those that ask and have one.
    """
    asks = right.any(dim=1)
    right, asking = right[asks], [rows[asks] for rows in asking]
    if not len(right):
        return (1.0,) * len(asking)
    products = [one @ other.T for one, other in zip(asking, known, strict=True)]
    lengths = [(one.square().sum(1), other.square().sum(1)) for one, other in zip(asking, known, strict=True)]
    best, chosen = -1.0, (1.0,) * len(products)
    for weights in _candidates(len(products)):
        fused = _weighted(weights, products)
        own, other = (_weighted(weights, [pair[side] for pair in lengths]).sqrt() for side in (0, 1))
        score = _score(fused / (own[:, None] * other[None, :]).clamp_min(1e-12), right)
        if score > best + 1e-9:
            best, chosen = score, weights
    return chosen


def _candidates(members: int) -> list[tuple[float, ...]]:
    """Return all weights that are no multiples of one another, the most equal first."""
    found = [each for each in itertools.product(_STEPS, repeat=members) if min(each) == _STEPS[0]]
    return sorted(found, key=lambda each: (sum(each), each))


def _weighted(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    return torch.stack([weight * each for weight, each in zip(weights, values, strict=True)]).sum(dim=0)


def _score(cosines: Tensor, right: Tensor) -> float:
    if bool((right.sum(dim=1) > 1).any()):
        nearest = cosines.topk(min(_NEAREST, cosines.shape[1]), dim=1).indices
        return float(right.gather(1, nearest).double().mean())
    own = cosines[right][:, None]
    return float((1.0 / (1.0 + (cosines > own).sum(dim=1).double())).mean())

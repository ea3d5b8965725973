"""Weights of a fusion's members chosen by what photos find: against a search of the fused vectors by NumPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipeline.errors import InputError
from pipeline.models import Batch, build_model
from pipeline.models.conditions import FIRST_CATEGORY
from pipeline.models.fusion import Fusion, FusionConfig
from pipeline.models.fusion_weights import choose_weights

GREY = {"kind": "descriptor", "cell": 4, "grey": True, "read_out": {"dims": None}}
COLOUR = {"kind": "descriptor", "features": "pixels", "grey": False, "read_out": {"dims": None}}


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def found_right(asking: list[np.ndarray], known: list[np.ndarray], right: np.ndarray, weights: list[float]) -> float:
    """Return P@10, or the reciprocal rank, of vectors put side by side: the definition, without any shortcut."""
    one, other = (unit(np.hstack([np.sqrt(w) * rows for w, rows in zip(weights, side, strict=True)]))
                  for side in (asking, known))  # fmt: skip
    order = np.argsort(-(one @ other.T), axis=1, kind="stable")
    hits = np.take_along_axis(right, order, axis=1)
    if right.sum(axis=1).max() > 1:
        return float(hits[:, :10].mean())
    return float((1 / (1 + hits.argmax(axis=1))).mean())


@pytest.mark.parametrize("categories", [True, False])
def test_the_choice_is_that_of_a_search_with_every_weight(categories: bool) -> None:
    rng = np.random.default_rng(5)
    told, others = rng.integers(0, 6, 80), rng.integers(0, 6, 200)
    right = told[:, None] == others[None, :]
    if not categories:
        right = np.eye(80, 200, dtype=bool)
    centres = [rng.normal(size=(6, 5)), rng.normal(size=(6, 5)) * 0.3, rng.normal(size=(6, 5)) * 0]
    own = [rng.normal(size=(200, 5)) + each[others] for each in centres]
    asking = [rng.normal(size=(80, 5)) + each[told] for each in centres]
    if not categories:
        asking = [
            each[:80] + noise * rng.normal(size=(80, 5)) for each, noise in zip(own, (0.8, 0.3, 5.0), strict=True)
        ]
    asking, known = [unit(rows) for rows in asking], [unit(rows) for rows in own]
    chosen = choose_weights(
        [torch.from_numpy(rows) for rows in asking], [torch.from_numpy(rows) for rows in known], torch.from_numpy(right)
    )
    scores = {
        weights: found_right(asking, known, right, list(weights))
        for weights in itertools.product((1.0, 2.0, 4.0), repeat=3)
        if min(weights) == 1.0
    }
    assert scores[chosen] == pytest.approx(max(scores.values()), abs=1e-12)
    assert scores[chosen] > scores[(1.0, 1.0, 1.0)]
    assert chosen.index(1.0) == 2 or chosen[2] == 1.0, "what knows nothing counts least"


def fusion(**options: object) -> Fusion:
    parts = [{"model": GREY}, {"model": COLOUR}]
    config = FusionConfig.model_validate(
        {"kind": "fusion", "members": ["a" * 64, "b" * 64], "parts": parts, "weights": "auto", **options}
    )
    torch.manual_seed(0)
    model = build_model(config, image_size=16).eval()
    assert isinstance(model, Fusion)
    assert model.fits
    return model


def coloured(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return photos of noise on one of four colours, and which: gradients know nothing of it."""
    generator = torch.Generator().manual_seed(1)
    which = torch.randint(0, 4, (count,), generator=generator)
    colours = torch.tensor([[112.0, 100, 100], [100, 112, 100], [100, 100, 112], [108, 108, 92]])
    noise = 120 * torch.rand(count, 3, 16, 16, generator=generator)
    return (colours[which][:, :, None, None] + noise).to(torch.uint8), which + FIRST_CATEGORY


def test_categories_decide_where_they_are_and_views_where_not() -> None:
    images, condition = coloured(200)
    told, untold = fusion(), fusion(scale="mean_norm")
    told.fit([Batch(images[:120], condition[:120]), Batch(images[120:], condition[120:])])
    assert told.shares[1] ** 2 == pytest.approx(0.8), "colour is what these categories are about"
    assert told.told() == {
        "weights": {"member aaaaaaaaaaaa": pytest.approx(0.2), "member bbbbbbbbbbbb": pytest.approx(0.8)}
    }
    untold.fit([Batch(images)])
    again = fusion(scale="mean_norm")
    again.fit([Batch(images)])
    assert untold.shares == again.shares
    # What is stored needs no choosing: the bundle's tensors hold it.
    other = fusion()
    other.load_state_dict(told.state_dict())
    assert torch.equal(other.encode(images[:5]).mean, told.encode(images[:5]).mean)
    with pytest.raises(InputError, match="19 photos cannot tell"):
        fusion().fit([Batch(images[:19])])


def test_too_many_members_are_refused() -> None:
    members = [letter * 64 for letter in "abcde"]
    with pytest.raises(ValidationError, match="auto for 5 members"):
        FusionConfig(members=tuple(members), weights="auto")

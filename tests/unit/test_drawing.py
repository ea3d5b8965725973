"""Pictures drawn from a prior and their negative control: what is drawn, how likely it is, in which category."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.errors import ConfigError, InputError, NotReconstructing
from pipeline.evaluation.drawing import conditions, draw_alone, draw_samples, pictures_of
from pipeline.evaluation.likelihood import item_nats
from pipeline.models import build_model
from pipeline.models.priors import Prior, PriorConfig
from pipeline.models.quantizers import EMAConfig
from pipeline.models.targets import HogTarget
from pipeline.models.vqvae import VQVAEConfig


class Stripes(Prior):
    """The first code is drawn by `shares` (of category "b": always 2), every later one is that before it."""

    shares = (0.5, 0.3, 0.2)

    def __init__(self) -> None:
        super().__init__(PriorConfig(kind="stripes", width=3, by_category=True), 3, (2, 3), ("a", "b"))
        with torch.no_grad():
            self.embedding.weight.copy_(torch.eye(3))
            self.categories.weight.zero_()
            self.categories.weight[3, 2] = 60.0

    def from_vectors(self, vectors: Tensor, category: Tensor | None) -> Tensor:
        flat = vectors.flatten(1, 2)
        first = torch.tensor(self.shares).log() + category
        before = torch.where(flat[:, :-1] > 0.5, 0.0, -60.0)
        return torch.cat([first[:, None], before], dim=1).transpose(1, 2).reshape(-1, 3, 2, 3)


def test_cells_drawn_alone_have_the_shares_and_none_of_the_order():
    prior = Stripes()
    drawn = draw_samples(prior, 3000, seed=1)
    assert (drawn.codes == drawn.codes[:, :1, :1]).all()
    entropy = -sum(share * math.log(share) for share in prior.shares)
    assert drawn.nats_per_code == pytest.approx(entropy / 6, abs=0.01)  # a choice of the first code, then none
    alone = draw_alone(prior, 3000, drawn.codes, seed=1)
    counted = np.bincount(alone.codes.reshape(-1), minlength=3) / alone.codes.size
    assert counted == pytest.approx(prior.shares, abs=0.03)
    assert alone.nats_per_code > drawn.nats_per_code + 5
    # The number is that of these codes.
    assert alone.nats_per_code == pytest.approx(item_nats(prior, alone.codes).mean() / 6)


def test_the_same_seed_draws_the_same():
    prior = Stripes()
    assert np.array_equal(draw_samples(prior, 40, seed=7).codes, draw_samples(prior, 40, seed=7).codes)
    assert not np.array_equal(draw_samples(prior, 40, seed=7).codes, draw_samples(prior, 40, seed=8).codes)
    assert (draw_samples(prior, 40, top_k=1).codes == 0).all()
    with pytest.raises(InputError, match="0 pictures"):
        draw_alone(prior, 0, np.zeros((1, 2, 3), int))


def test_every_picture_is_of_its_own_category():
    prior = Stripes()
    drawn = draw_samples(prior, 300, categories=["a", "b", None] * 100)
    assert (drawn.codes[1::3] == 2).all()
    assert len(set(drawn.codes[::3, 0, 0].tolist())) == 3
    # The negative control is judged in the same categories.
    alone = draw_alone(prior, 2, np.full((1, 2, 3), 2), categories=["b", "b"])
    told = item_nats(prior, alone.codes, condition=np.array([3, 3])).mean() / 6
    assert alone.nats_per_code == pytest.approx(told)
    assert conditions(prior, ["b", None, "a"]).tolist() == [3, 0, 2]
    with pytest.raises(ConfigError, match="no category 'c'; it knows a, b"):
        draw_samples(prior, 1, categories=["c"])


def test_pictures_come_from_the_decoder_where_there_is_one_to_pixels():
    torch.manual_seed(0)
    config = VQVAEConfig(channels=(8, 8), quantizer=EMAConfig(num_codes=16, code_dim=4))
    codes = np.random.default_rng(0).integers(0, 16, (3, 4, 4)).astype(np.int32)
    pictures = pictures_of(build_model(config, image_size=16).eval(), codes)
    assert (pictures.shape, pictures.dtype) == ((3, 16, 16, 3), np.uint8)
    assert not np.array_equal(pictures[0], pictures[1])
    features = build_model(config.model_copy(update={"target": HogTarget()}), image_size=16).eval()
    with pytest.raises(NotReconstructing):
        pictures_of(features, codes)

"""Drawing codes: frequencies against softmax, temperature and top-k, coherence, pictures of samples."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor

from pipeline.errors import ConfigError, InputError
from pipeline.images.grid import picture_grid
from pipeline.models import build_model
from pipeline.models.priors import Prior, PriorConfig, build_prior, decode_codes, draw, sample
from pipeline.models.priors.pixelcnn import PixelCNNConfig
from pipeline.models.priors.transformer import TransformerConfig
from pipeline.models.quantizers import EMAConfig, FSQConfig
from pipeline.models.vae import VAEConfig
from pipeline.models.vqvae import VQVAEConfig

DRAWS = 20_000


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """The models are small: more threads only wait for each other."""
    torch.set_num_threads(1)


def p_value(counts: np.ndarray, shares: np.ndarray) -> float:
    """Return how likely counts at least so far from the shares are, by the chi-square test."""
    return float(stats.chisquare(counts, shares / shares.sum() * counts.sum()).pvalue)


def logits_of(codes: int) -> Tensor:
    return torch.linspace(-1.5, 1.0, codes)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_those_of_the_softmax(temperature: float):
    logits = logits_of(8)
    drawn = draw(
        logits.expand(DRAWS, -1), temperature=temperature, generator=torch.Generator().manual_seed(1)
    ).bincount(minlength=8)
    assert p_value(drawn.numpy(), (logits.double() / temperature).softmax(0).numpy()) > 1e-3
    # The known wrong versions: temperature forgotten or turned round, argmax.
    wrong = {t: p_value(drawn.numpy(), (logits.double() * t).softmax(0).numpy()) for t in (0.5, 1.0, 2.0)}
    assert all(value < 1e-9 for t, value in wrong.items() if t != 1 / temperature)
    assert drawn.argmax() == 7
    assert (drawn > 0).all()


def test_top_k_draws_the_likeliest_by_their_shares():
    logits = torch.tensor([0.2, 1.0, -3.0, 0.9, 0.5])
    drawn = draw(logits.expand(DRAWS, -1), top_k=3, generator=torch.Generator().manual_seed(2)).bincount(minlength=5)
    assert drawn[[0, 2]].tolist() == [0, 0]
    assert p_value(drawn[[1, 3, 4]].numpy(), logits[[1, 3, 4]].double().softmax(0).numpy()) > 1e-3
    assert draw(logits[None], top_k=1).tolist() == [1]
    assert set(draw(torch.zeros(500, 5), top_k=2).tolist()) == {0, 1}  # of equal ones the lower numbers


def test_temperature_and_top_k_together_are_the_softmax_of_the_likeliest():
    logits = logits_of(8)
    drawn = draw(
        logits.expand(DRAWS, -1), temperature=2.0, top_k=4, generator=torch.Generator().manual_seed(3)
    ).bincount(minlength=8)
    assert drawn[:4].tolist() == [0] * 4
    assert p_value(drawn[4:].numpy(), (logits[4:].double() / 2).softmax(0).numpy()) > 1e-3
    assert p_value(drawn[4:].numpy(), logits[4:].double().softmax(0).numpy()) < 1e-9  # temperature forgotten


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_that_is_none(temperature: float):
    with pytest.raises(ConfigError, match="above 0"):
        draw(torch.zeros(1, 3), temperature=temperature)


@pytest.mark.parametrize("top_k", [0, 4])
def test_a_top_k_that_is_none(top_k: int):
    with pytest.raises(ConfigError, match=r"1\.\.3"):
        draw(torch.zeros(1, 3), top_k=top_k)


class Copying(Prior):
    """The first code is 0 or 1 with 0.3 and 0.7 (of category 2: always 1); every later one copies that before it."""

    def __init__(self) -> None:
        super().__init__(PriorConfig(kind="copying", width=2, by_category=True), 2, (2, 3), ("only",))
        with torch.no_grad():
            self.embedding.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
            self.categories.weight.zero_()
            self.categories.weight[2, 1] = 60.0

    def from_vectors(self, vectors: Tensor, category: Tensor | None) -> Tensor:
        flat = vectors.flatten(1, 2)
        first = torch.tensor([0.3, 0.7]).log() + category
        before = torch.where(flat[:, :-1] > 0.5, 0.0, -60.0)
        return torch.cat([first[:, None], before], dim=1).transpose(1, 2).reshape(-1, 2, 2, 3)


def test_each_code_is_drawn_after_those_before_it():
    prior = Copying()
    codes = sample(prior, 4000, generator=torch.Generator().manual_seed(0))
    assert codes.shape == (4000, 2, 3)
    assert prior.training  # as it was
    assert (codes == codes[:, :1, :1]).all()  # drawn cell by cell in raster order, or copies would differ
    assert p_value(codes[:, 0, 0].bincount().numpy(), np.array([0.3, 0.7])) > 1e-3
    told = sample(prior, 50, condition=torch.full((50,), 2), generator=torch.Generator().manual_seed(0))
    assert (told == 1).all()
    with pytest.raises(InputError, match="2 conditions for 3"):
        sample(prior, 3, condition=torch.zeros(2, dtype=torch.int64))


def test_samples_of_a_prior_have_its_nats_and_independent_ones_have_more():
    """Coherence: codes of the same frequencies, drawn cell by cell on their own, are far less likely together."""
    prior = Copying()
    codes = sample(prior, 2000, generator=torch.Generator().manual_seed(0))
    own = float(prior.nats(codes).detach().mean())
    entropy = -(0.3 * math.log(0.3) + 0.7 * math.log(0.7))
    assert own == pytest.approx(entropy, abs=0.03)
    alone = torch.multinomial(codes.flatten().bincount().float(), codes.numel(), replacement=True).view_as(codes)
    assert float(prior.nats(alone).detach().mean()) > own + 10


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [PixelCNNConfig(width=8, layers=2), TransformerConfig(width=8, layers=1)], ids=["pixelcnn", "transformer"]
)
def test_sampled_grids_come_as_often_as_the_prior_says(config: PriorConfig):
    torch.manual_seed(0)
    prior = build_prior(config, num_codes=2, grid=(2, 2))
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    every = torch.cartesian_prod(*[torch.arange(2)] * 4).view(-1, 2, 2)
    shares = (-prior.eval().nats(every).detach().double()).exp().numpy()
    codes = sample(prior, DRAWS, generator=torch.Generator().manual_seed(5))
    counts = (codes.flatten(1) * torch.tensor([8, 4, 2, 1])).sum(dim=1).bincount(minlength=16).numpy()
    assert p_value(counts, shares) > 1e-3
    # The known wrong version: all cells drawn at once from logits that saw other codes before them.
    logits = prior.logits(torch.zeros(DRAWS, 2, 2, dtype=torch.int64)).detach()
    at_once = draw(logits.permute(0, 2, 3, 1).flatten(0, 2), generator=torch.Generator().manual_seed(5))
    wrong = (at_once.view(-1, 4) * torch.tensor([8, 4, 2, 1])).sum(dim=1).bincount(minlength=16).numpy()
    assert p_value(wrong, shares) < 1e-9
    again = sample(prior, 50, generator=torch.Generator().manual_seed(5))
    assert torch.equal(again, sample(prior, 50, generator=torch.Generator().manual_seed(5)))


@pytest.mark.parametrize(
    ("codes", "quantizer"),
    [
        ("grid", EMAConfig(num_codes=16, code_dim=4)),
        ("single", EMAConfig(num_codes=16, code_dim=4)),
        ("grid", FSQConfig()),
    ],
    ids=["grid", "single", "fsq"],
)
def test_samples_become_a_picture(codes: str, quantizer: EMAConfig | FSQConfig):
    torch.manual_seed(0)
    model = build_model(VQVAEConfig(channels=(8, 8), codes=codes, quantizer=quantizer), image_size=16).eval()
    side = math.isqrt(model.num_latent_codes)
    prior = build_prior(PixelCNNConfig(width=8, layers=1), num_codes=model.quantizer.num_codes, grid=(side, side))
    drawn = sample(prior, 6, generator=torch.Generator().manual_seed(0))
    pictures = decode_codes(model, drawn)
    assert pictures.shape == (6, 16, 16, 3)
    # The same picture as of a photo with these codes.
    photos = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        latents = model.encode(photos)
        expected = (model.decode(latents) * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    assert torch.equal(decode_codes(model, latents.codes.view(3, side, side)), expected)

    with Image.open(io.BytesIO(picture_grid(pictures.numpy(), columns=3, scale=2))) as png:
        assert png.format == "PNG"
        assert png.size == (2 + 3 * 34, 2 + 2 * 34)
        shown = np.asarray(png)
    second = shown[36:68:2, 36:68:2]  # row 1, column 1, every other pixel
    assert np.array_equal(second, pictures[4].numpy())
    assert (shown[:, :2] == 255).all()


def test_codes_of_another_model_are_refused():
    model = build_model(VQVAEConfig(channels=(8, 8)), image_size=16).eval()
    with pytest.raises(InputError, match="4 codes a photo cannot be decoded by a VQVAE of 16"):
        decode_codes(model, torch.zeros(1, 2, 2, dtype=torch.int64))
    plain = build_model(VAEConfig(latent_dim=4, channels=(8, 8)), image_size=16).eval()
    with pytest.raises(InputError, match="of 0"):
        decode_codes(plain, torch.zeros(1, 2, 2, dtype=torch.int64))


def test_a_grid_of_pictures_is_as_square_as_it_goes_and_wants_pictures():
    pictures = np.zeros((5, 4, 4, 3), np.uint8)
    with Image.open(io.BytesIO(picture_grid(pictures))) as png:
        assert png.size == (2 + 3 * 6, 2 + 2 * 6)
    for wrong in (pictures[:0], pictures[0], pictures.astype(np.float32), pictures[..., :1]):
        with pytest.raises(InputError, match="uint8"):
            picture_grid(wrong)
    with pytest.raises(InputError, match="at least 1"):
        picture_grid(pictures, columns=0)

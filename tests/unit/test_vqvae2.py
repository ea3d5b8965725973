"""The VQ-VAE-2: two levels of codes, the bottom's given the top's, and a decoder that sees both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from pipeline.errors import ConfigError, InputError, NotReconstructing
from pipeline.models import Batch, Latents, Step, build_model, vqvae2
from pipeline.models.base import to_float
from pipeline.models.export import export_encoder, run_encoder
from pipeline.models.quantizers import Quantised
from pipeline.models.vqvae2 import VQVAE2, VQVAE2Config

SIZE, TOP, BOTTOM = 28, 3, 7  # the bottom's side is odd: a row of it lies beyond twice the top's
EMA = {"kind": "ema", "num_codes": 20, "code_dim": 4}
# The levels differ in every number, so that a mix-up of the two cannot fit.
QUANTIZERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ema": (EMA, EMA | {"num_codes": 24, "code_dim": 6}),
    "gradient": (EMA | {"kind": "gradient"}, EMA | {"kind": "gradient", "normalise": True, "num_codes": 24}),
    "fsq": ({"kind": "fsq", "levels": [5, 4, 3]}, {"kind": "fsq", "levels": [5, 4, 3, 3]}),
    "simvq": ({"kind": "simvq", "num_codes": 20, "code_dim": 4}, EMA),
}
every_quantizer = pytest.mark.parametrize("quantizers", sorted(QUANTIZERS))


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(quantizers: str = "ema", seed: int = 0, size: int = SIZE, **fields: Any) -> VQVAE2:
    top, bottom = QUANTIZERS[quantizers]
    values = {"channels": [6, 8, 10], "top_quantizer": top, "bottom_quantizer": bottom, **fields}
    torch.manual_seed(seed)
    model = build_model(VQVAE2Config.model_validate(values), image_size=size)
    assert isinstance(model, VQVAE2)
    return model


def photos(number: int = 12, seed: int = 0, size: int = SIZE) -> Tensor:
    """Return photos, uint8 [number, 3, size, size]: a coloured rectangle each on white."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.full((number, 3, size, size), 255, dtype=torch.uint8)
    for row in range(number):
        top, left = torch.randint(0, size // 2, (2,), generator=generator).tolist()
        high, wide = torch.randint(size // 4, size // 2, (2,), generator=generator).tolist()
        colour = torch.randint(0, 256, (3, 1, 1), dtype=torch.uint8, generator=generator)
        images[row, :, top : top + high, left : left + wide] = colour
    return images


def train(model: VQVAE2, images: Tensor, steps: int) -> list[float]:
    model.train()
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    curve = []
    for number in range(steps):
        optimiser.zero_grad()
        losses = model(Batch(images), Step(number, steps))
        losses.total.backward()
        optimiser.step()
        model.after_step()
        curve.append(losses.total.item())
    return curve


class Watched:
    """What both quantizers are given and return in the next forward pass, with gradients kept."""

    def __init__(self, model: VQVAE2) -> None:
        self.given: dict[str, Tensor] = {}
        self.found: dict[str, Quantised] = {}
        for level in ("top", "bottom"):
            getattr(model, f"{level}_quantizer").register_forward_hook(self._keeper(level))

    def _keeper(self, level: str) -> Any:
        def keep(_: object, inputs: tuple[Tensor], output: Quantised) -> None:
            self.given[level], self.found[level] = inputs[0], output
            for kept in (inputs[0], output.passed):
                if kept.requires_grad:
                    kept.retain_grad()

        return keep


@every_quantizer
def test_codes_are_the_nearest_rows_of_their_own_codebook(quantizers: str) -> None:
    model = make(quantizers)
    train(model, photos(), 3)
    model.eval()
    watched = Watched(model)
    with torch.no_grad():
        model(Batch(photos()), Step(0, 1))
        latents = model.encode(photos())
    assert latents.codes is not None
    assert latents.codes.dtype == torch.int64
    assert latents.codes.shape == (12, TOP**2 + BOTTOM**2) == (12, model.num_latent_codes)
    assert model.num_top_codes == TOP**2
    levels = dict(zip(("top", "bottom"), model.split(latents.codes), strict=True))
    assert torch.equal(torch.cat([each.flatten(1) for each in levels.values()], dim=1), latents.codes)
    for level, side in (("top", TOP), ("bottom", BOTTOM)):
        quantizer = getattr(model, f"{level}_quantizer")
        codebook = quantizer.codebook_rows()
        assert levels[level].shape == (12, side, side)
        assert torch.equal(levels[level], watched.found[level].codes)
        values = codebook[levels[level]]
        torch.testing.assert_close(watched.found[level].values, values)
        if quantizers == "fsq":
            continue  # rounds number by number, which no distance of whole rows is about; see test_fsq
        rows = watched.given[level].flatten(0, 2)
        if quantizer.normalise:
            rows = rows / rows.norm(dim=1, keepdim=True)
        assert torch.equal(torch.cdist(rows.double(), codebook.double()).argmin(1), levels[level].flatten())


@every_quantizer
def test_latents_are_both_maps_pooled_and_pictures_come_from_codes_alone(quantizers: str) -> None:
    model = make(quantizers, latent_cells=2)
    train(model, photos(), 3)
    model.eval()
    with torch.no_grad():
        latents = model.encode(photos())
        assert latents.codes is not None
        expected = []
        for level, codes in zip(("top", "bottom"), model.split(latents.codes), strict=True):
            values = getattr(model, f"{level}_quantizer").codebook_rows()[codes].permute(0, 3, 1, 2)
            expected.append(F.adaptive_avg_pool2d(values, 2).flatten(1))
        torch.testing.assert_close(latents.mean, torch.cat(expected, dim=1), rtol=1e-6, atol=1e-6)
        assert latents.mean.shape == (12, model.latent_dim)
        drawn = model.decode(Latents(torch.empty(12, 0), codes=latents.codes))
        assert torch.equal(drawn, model.reconstruct(photos()))
        # What training minimises is the error of these very pictures.
        losses = model(Batch(photos()), Step(0, 1))
    error = (drawn - to_float(photos())).square().sum() / 12
    torch.testing.assert_close(losses.parts["reconstruction"], error, rtol=1e-4, atol=0)
    torch.testing.assert_close(losses.total, sum(losses.parts.values()))
    assert set(losses.parts) == {"reconstruction", "top_quantizer", "bottom_quantizer"}


def test_the_decoders_gradient_reaches_both_vectors_straight_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each level: the gradient of its vectors is that of the values the decoder saw, plus the commitment's own."""
    model = make()
    train(model, photos(), 2)
    model.eval().double()
    monkeypatch.setattr(vqvae2, "to_float", lambda images: images.double() / 255)
    watched = Watched(model)
    images = photos(5, seed=3)
    pictures = images.double() / 255
    model(Batch(images), Step(0, 1)).total.backward()
    given, found = watched.given, watched.found
    for level in ("top", "bottom"):
        pulled, value = given[level].grad, found[level].passed.grad
        assert pulled is not None
        assert value is not None
        assert value.abs().max() > 0
        commitment = 0.25 * 2 * (given[level] - found[level].values) / 5
        torch.testing.assert_close(pulled, value + commitment, rtol=1e-12, atol=1e-12)
    # The same gradients without the quantizers: the decoder as a function of values that nothing chose.
    top, bottom = (found[level].values.detach().requires_grad_() for level in ("top", "bottom"))
    error, _ = model.target.loss(model._outputs(top, bottom), pictures)
    of_top, of_bottom = torch.autograd.grad(error, (top, bottom))
    torch.testing.assert_close(found["bottom"].passed.grad, of_bottom, rtol=1e-9, atol=1e-9)
    # The top is heard twice: by the decoder, and by the bottom's vectors, to which the bottom's own gradient came.
    features, _ = model._encoded(pictures)
    told = torch.autograd.grad(model._bottom_vectors(features.detach(), top), top, given["bottom"].grad)[0]
    torch.testing.assert_close(found["top"].passed.grad, of_top + told, rtol=1e-9, atol=1e-9)
    assert told.abs().max() > 0


def test_a_code_paints_its_own_place_and_each_level_says_what_the_other_does_not() -> None:
    model = make(size=64)  # 8 x 8 and 16 x 16 codes
    train(model, photos(24, size=64), 4)
    model.eval()
    with torch.no_grad():
        codes = model.encode(photos(1, size=64)).codes
        assert codes is not None
        drawn = model.decode(Latents(torch.empty(1, 0), codes=codes))
        for cell, stride in ((0, 8), (model.num_top_codes, 4)):  # the first cell of the top, and of the bottom
            changed = codes.clone()
            changed[0, cell] = (codes[0, cell] + 1) % 20
            apart = (model.decode(Latents(torch.empty(1, 0), codes=changed)) - drawn).abs()
            assert apart[..., :stride, :stride].min() > 0
            assert apart[..., 48:, 48:].max() == 0
        # One level says nothing of what the other draws everywhere: all of the top anew changes every pixel.
        anew = codes.clone()
        anew[:, : model.num_top_codes] = (codes[:, : model.num_top_codes] + 1) % 20
        assert (model.decode(Latents(torch.empty(1, 0), codes=anew)) - drawn).abs().amax(1).min() > 0


def test_the_bottom_is_chosen_in_view_of_the_top() -> None:
    model = make()
    train(model, photos(), 5)
    model.eval()
    with torch.no_grad():
        before = model.encode(photos()).codes
        assert before is not None
        lookup = model.top_quantizer.lookup
        model.top_quantizer.lookup = lambda codes: lookup((codes + 7) % 20)  # type: ignore[method-assign]
        after = model.encode(photos()).codes
    assert after is not None
    assert torch.equal(after[:, : TOP**2], before[:, : TOP**2])
    assert not torch.equal(after[:, TOP**2 :], before[:, TOP**2 :])


@every_quantizer
@pytest.mark.slow
def test_the_loss_falls_and_both_codebooks_are_measured(quantizers: str) -> None:
    model = make(quantizers)
    curve = train(model, photos(), 60)
    assert curve[-1] < 0.8 * curve[0]
    measures = model.scalars()
    names = ("perplexity", "used_codes", "near_duplicate_share", "quantisation_error", "restarted")
    assert set(measures) == {f"{level}/codebook/{name}" for level in ("top", "bottom") for name in names}
    for level in ("top", "bottom"):
        perplexity, used = (measures[f"{level}/codebook/{name}"] for name in names[:2])
        assert 1 <= perplexity <= used <= getattr(model, f"{level}_quantizer").num_codes
    assert model.scalars() == {}


def test_both_codebooks_begin_at_centres_of_the_first_batch_and_restart_dead_codes() -> None:
    model = make()
    watched = Watched(model)
    before = {level: getattr(model, f"{level}_quantizer").codebook.clone() for level in ("top", "bottom")}
    images = photos(32)
    model(Batch(images), Step(0, 1))
    for level in ("top", "bottom"):
        quantizer, rows = getattr(model, f"{level}_quantizer"), watched.given[level].detach().flatten(0, 2)
        assert bool(quantizer.initialised)

        def error(codebook: Tensor, rows: Tensor = rows) -> float:
            return torch.cdist(rows, codebook).amin(1).square().mean().item()

        assert error(quantizer.codebook) < 0.1 * error(before[level])
        state = quantizer.state_dict()
        far = quantizer.codebook + 50.0
        quantizer.load_state_dict(state | {"codebook": far, "code_sum": far * quantizer.code_count[:, None]})
        quantizer.decay = 0.5
    train(model, images, 6)
    measures = model.scalars()
    assert min(measures["top/codebook/restarted"], measures["bottom/codebook/restarted"]) > 0


@every_quantizer
def test_training_goes_on_from_its_state_to_the_same_bits(quantizers: str) -> None:
    first = make(quantizers)
    train(first, photos(), 4)
    twin = make(quantizers, seed=9)
    twin.load_state_dict(first.state_dict())
    assert train(first, photos(seed=1), 4) == train(twin, photos(seed=1), 4)
    again = twin.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.state_dict().items())


@every_quantizer
def test_codes_are_chosen_in_full_precision_under_autocast(quantizers: str) -> None:
    model = make(quantizers)
    train(model, photos(), 1)
    model.eval()
    watched = Watched(model)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        model(Batch(photos()), Step(0, 1))
        mean = model.encode(photos()).mean
    assert mean.dtype == torch.float32
    for level in ("top", "bottom"):
        assert watched.given[level].dtype == torch.float32
        assert watched.found[level].passed.dtype == torch.float32
        nearest = getattr(model, f"{level}_quantizer").nearest(watched.given[level].flatten(0, 2))
        assert torch.equal(nearest, watched.found[level].codes.flatten())


@pytest.mark.slow
@every_quantizer
def test_the_exported_encoder_gives_the_same_codes(quantizers: str) -> None:
    model = make(quantizers)
    train(model, photos(), 5)
    model.eval()
    images = photos(7, seed=4)
    exported = run_encoder(export_encoder(model), images.numpy())
    with torch.no_grad():
        latents = model.encode(images)
    assert latents.codes is not None
    np.testing.assert_array_equal(exported["codes"], latents.codes.numpy())
    np.testing.assert_allclose(exported["mean"], latents.mean.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_gradients_of_the_photo_as_the_target() -> None:
    model = make(size=32, target={"kind": "hog"})
    curve = train(model, photos(size=32), 40)
    assert curve[-1] < curve[0]
    with pytest.raises(NotReconstructing, match="hog"):
        model.decode(model.eval().encode(photos(size=32)))


def test_what_it_cannot_do_is_said() -> None:
    model = make()
    mean = torch.zeros(2, model.latent_dim)
    with pytest.raises(InputError, match="these latents have none"):
        model.decode(Latents(mean))
    with pytest.raises(InputError, match=r"\[2, 49\].*\[B, 58\].*first 9 of the top and then 49 of the bottom"):
        model.decode(Latents(mean, codes=torch.zeros(2, BOTTOM**2, dtype=torch.int64)))
    with pytest.raises(ConfigError, match="at most 3"):
        make(size=16, channels=[4] * 4)
    assert VQVAE2Config.model_validate(VQVAE2Config().model_dump(mode="json")) == VQVAE2Config()
    for wrong in ({"channels": [8]}, {"channels": [8, 0]}, {"quantizer": EMA}, {"top_quantizer": {"kind": "vq"}}):
        with pytest.raises(ValidationError):
            VQVAE2Config.model_validate(wrong)


@pytest.mark.slow
def test_maps_are_the_encoders() -> None:
    model = make()
    found = model.maps(to_float(photos()))
    assert [tuple(one.shape) for one in found] == [(12, 6, 14, 14), (12, 8, 7, 7), (12, 10, 3, 3)]

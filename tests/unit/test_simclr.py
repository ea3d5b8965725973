"""SimCLR: its loss, what is read out, the collapse measures, the loop's two views."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from pipeline.errors import ConfigError, InputError
from pipeline.images.augment import ViewsConfig
from pipeline.keys import digest_of
from pipeline.losses import nt_xent
from pipeline.models import AnyModelConfig, Batch, Step, build_model
from pipeline.models.base import Losses
from pipeline.models.export import export_encoder, run_encoder
from pipeline.models.simclr import SimCLR, SimCLRConfig
from pipeline.models.two_views import Spread, TwoViewsReadOutConfig
from pipeline.training import Loop, TrainConfig
from pipeline.training.ranks import Ranks
from pipeline.training.validation import validate

STEP = Step(0, 10)
SMALL = SimCLRConfig(channels=(8, 16), projector=(16, 8))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(config: SimCLRConfig = SMALL, seed: int = 0) -> SimCLR:
    torch.manual_seed(seed)
    model = build_model(config, image_size=16)
    assert isinstance(model, SimCLR)
    return model


def photos(count: int = 12, seed: int = 0) -> Tensor:
    """Return photos uint8 [N, 3, 16, 16] of a coloured rectangle each, which views can be told by."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.full((count, 3, 16, 16), 255, dtype=torch.uint8)
    for row in range(count):
        top, left, height, width = torch.randint(2, 8, (4,), generator=generator).tolist()
        colour = torch.randint(0, 200, (3, 1, 1), dtype=torch.uint8, generator=generator)
        images[row, :, top : top + height, left : left + width] = colour
    return images


def test_the_loss_is_nt_xent_of_the_projections_of_both_views():
    model = made()
    views = model.augmented(photos())
    seen = []
    model.projector.register_forward_hook(lambda _module, _inputs, rows: seen.append(rows))
    losses = model(Batch(views), STEP)
    assert len(seen) == 1
    torch.testing.assert_close(losses.total, nt_xent(*seen[0].chunk(2), 0.2, over_ranks=False), rtol=1e-6, atol=0)
    mixed = nt_xent(seen[0][::2], seen[0][1::2], 0.2, over_ranks=False)  # the control: pairs of different photos
    assert (mixed - losses.total).abs() > 0.01


def test_latents_are_the_backbones_and_the_projector_does_not_matter():
    model = made().eval()
    before = model.encode(photos()).mean
    assert before.shape == (12, 16)
    features = model.network(photos().float() / 255)
    torch.testing.assert_close(before, features.mean(dim=(2, 3)), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        for parameter in model.projector.parameters():
            parameter.zero_()
    assert torch.equal(model.encode(photos()).mean, before)


def test_the_read_out_keeps_the_layout_or_fewer_dimensions():
    config = SMALL.model_copy(update={"read_out": TwoViewsReadOutConfig(pool="map", cells=2)})
    model = made(config).eval()
    assert model.encode(photos()).mean.shape == (12, 16 * 4)
    assert not model.fits
    model = made(SMALL.model_copy(update={"read_out": TwoViewsReadOutConfig(dims=3)})).eval()
    assert model.fits
    with torch.no_grad():
        model.fit([Batch(photos(20)), Batch(photos(20, seed=1))])
    decomposition = pytest.importorskip("sklearn.decomposition")
    rows = made().eval().encode(torch.cat([photos(20), photos(20, seed=1)])).mean.detach().double().numpy()
    expected = decomposition.PCA(3).fit(rows)
    found = model.encode(photos(20)).mean.detach().numpy()
    np.testing.assert_allclose(np.abs(found), np.abs(expected.transform(rows[:20])), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("whiten", [False, True])
def test_latents_may_be_the_projectors(whiten):
    config = SMALL.model_copy(update={"read_out": TwoViewsReadOutConfig(source="projector")})
    model = made(config).eval()
    assert model.latent_dim == 8
    with torch.no_grad():
        rows = model.projector(model.network(photos(40).float() / 255).mean(dim=(2, 3)))
    torch.testing.assert_close(model.encode(photos(40)).mean, rows, rtol=1e-5, atol=1e-6)
    assert not torch.equal(made().eval().encode(photos(40)).mean[:, :8], rows)  # the default is the backbone's
    exported = run_encoder(export_encoder(model), photos(40).numpy())["mean"]
    np.testing.assert_allclose(exported, rows.numpy(), rtol=1e-4, atol=1e-5)
    reduced = TwoViewsReadOutConfig(source="projector", dims=3, whiten=whiten)
    model = made(SMALL.model_copy(update={"read_out": reduced})).eval()
    with torch.no_grad():
        model.fit([Batch(photos(40)[:25]), Batch(photos(40)[25:])])
    decomposition = pytest.importorskip("sklearn.decomposition")
    expected = decomposition.PCA(3, whiten=whiten, svd_solver="full").fit_transform(rows.double().numpy())
    found = model.encode(photos(40)).mean.detach().numpy()
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-3, atol=1e-3)


def test_a_projection_is_read_out_whole_and_only_where_there_is_one():
    with pytest.raises(ValidationError, match=r"pool is map.*set pool to global, or source to backbone"):
        TwoViewsReadOutConfig(source="projector", pool="map")
    adapter = TypeAdapter(AnyModelConfig)
    for kind in ("mae", "pretrained"):
        with pytest.raises(ValidationError, match=r"read_out\.source"):
            adapter.validate_python({"kind": kind, "read_out": {"source": "projector"}})
    told = adapter.validate_python({"kind": "moco", "read_out": {"source": "projector", "dims": 16}})
    assert build_model(told, image_size=16).latent_dim == 16
    too_many = adapter.validate_python({"kind": "moco", "read_out": {"source": "projector", "dims": 65}})
    with pytest.raises(ConfigError, match="dims is 65, but a photo has 64"):
        build_model(too_many, image_size=16)


def test_grey_sees_brightness_alone():
    model = made(SMALL.model_copy(update={"grey": True})).eval()
    grey = photos()[:, :1].expand(-1, 3, -1, -1)
    assert model.network.stem[0].in_channels == 1
    assert model.encode(grey).mean.shape == (12, 16)
    assert [one.shape[1] for one in model.maps(grey.float() / 255)] == [8, 16]


@pytest.mark.slow
def test_it_learns_to_tell_photos_apart_by_their_views():
    """Training on new views of other photos lowers the loss of held-out ones, well below chance (a log of 23)."""
    model = made()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)

    def held_out() -> float:
        torch.manual_seed(7)
        model.eval()
        with torch.no_grad():
            return float(model(Batch(model.augmented(photos(12, seed=99))), STEP).total)

    before = held_out()
    for number in range(60):
        model.train()
        optimiser.zero_grad()
        model(Batch(model.augmented(photos(32, seed=number))), STEP).total.backward()
        optimiser.step()
    assert held_out() < 0.8 * before < math.log(23)
    assert model.scalars()["projection/effective_rank"] > 2


def test_views_that_are_no_pairs_are_refused():
    with pytest.raises(InputError, match="5 views are no pairs"):
        made()(Batch(photos(5)), STEP)


def test_spread_is_numpys_and_tells_collapse():
    rows = nn.functional.normalize(torch.randn(300, 8, generator=torch.Generator().manual_seed(0)) + 0.5, dim=1)
    spread = Spread(8)
    for part in rows.split(70):
        spread.note(part)
    found = spread.collect(torch.device("cpu"))
    values = np.linalg.svd(rows.double().numpy(), compute_uv=False)
    shares = values / values.sum()
    assert found["projection/effective_rank"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)
    deviations = rows.double().numpy().std(axis=0)
    assert found["projection/std"] == pytest.approx(np.sqrt((deviations**2).mean() * 8), rel=1e-6)
    assert spread.collect(torch.device("cpu")) == {}
    spread.note(rows[:1].expand(50, -1))
    collapsed = spread.collect(torch.device("cpu"))
    assert collapsed["projection/std"] == pytest.approx(0, abs=1e-6)
    assert collapsed["projection/effective_rank"] == pytest.approx(1, abs=1e-5)
    even = nn.functional.normalize(torch.randn(20_000, 8, generator=torch.Generator().manual_seed(1)), dim=1)
    spread.note(even)
    found = spread.collect(torch.device("cpu"))
    assert found["projection/std"] == pytest.approx(1, abs=0.01)
    assert found["projection/effective_rank"] == pytest.approx(8, abs=0.01)


class Memory:
    """A loader of photos that are in memory."""

    steps_per_epoch, num_photos, num_held_out = 3, 24, 7

    def batches(self, start, stop):
        for step in range(start, stop):
            yield Batch(photos(8, seed=step % 3))

    def validation(self):
        yield Batch(photos(4, seed=50))
        yield Batch(photos(3, seed=51))


def weights_digest(model: nn.Module) -> str:
    return digest_of(b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values()))


def test_the_loop_gives_two_views_and_repeats_to_the_bit(monkeypatch):
    config = TrainConfig(epochs=2, batch_size=8, learning_rate=1e-3, validation=0.2)
    sizes = []
    original = SimCLR.forward

    def forward(self: SimCLR, batch: Batch, step: Step) -> Losses:
        sizes.append((self.training, len(batch.images)))
        return original(self, batch, step)

    monkeypatch.setattr(SimCLR, "forward", forward)
    loop = Loop(made(), Memory(), config)
    first = loop.run()
    assert sizes == ([(True, 16)] * 3 + [(False, 8), (False, 6)]) * 2
    assert loop.validation.measures.keys() == {"validation/total"}
    other = Loop(made(), Memory(), config)
    assert weights_digest(other.run()) == weights_digest(first)
    assert other.validation == loop.validation
    seeded = Loop(made(), Memory(), config.model_copy(update={"seed": 1}))
    assert weights_digest(seeded.run()) != weights_digest(first)


def test_validation_sees_the_same_views_every_time():
    model = made()
    first = validate(model, Memory().validation(), Ranks(), step=STEP, seed=0)
    torch.manual_seed(5)
    again = validate(model, Memory().validation(), Ranks(), step=STEP, seed=0)
    assert first == again
    assert model.scalars() == {}  # only training is measured
    still = made(SMALL.model_copy(update={"views": ViewsConfig(min_area=1, flip=False, brightness=0, contrast=0)}))
    other = validate(still, Memory().validation(), Ranks(), step=STEP, seed=0)
    assert other.measures["validation/total"] < first.measures["validation/total"]

"""The way over a GPU: the same latents as one batch after the other, whatever the batches; here without its streams."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.encoding import Encoder
from pipeline.encoding.encoder import _PROBED, _Ahead
from pipeline.models import MODELS, build_model
from pipeline.models.base import Latents, Model

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
ROWS = 37


def made(kind: str, size: int = 32, **settings: Any) -> Model:
    torch.manual_seed(0)
    return build_model(MODELS[kind][0].model_validate({"kind": kind, **settings}), image_size=size).eval()


def photos(size: int = 32, count: int = 50) -> Any:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def both_ways(encoder: Encoder, pixels: Any, rows: Any) -> tuple[Any, Any]:
    seen = [pixels]
    with torch.inference_mode():
        return encoder._in_turn(seen, rows, None), encoder._in_stream(seen, rows, None)


@pytest.mark.parametrize("kind", ["vae", "vqvae", "autoencoder"])
@pytest.mark.parametrize("batch", [8, 37, 64])
def test_batches_sent_ahead_give_what_batches_in_turn_give(kind: str, batch: int) -> None:
    rows = np.random.default_rng(1).permutation(50)[:ROWS]
    turn, stream = both_ways(Encoder(made(kind), batch_size=batch), photos(), rows)
    np.testing.assert_allclose(stream.mean, turn.mean, atol=2e-5)
    for name in ("log_var", "codes"):
        left, right = getattr(stream, name), getattr(turn, name)
        assert (left is None) == (right is None)
    if turn.codes is not None:
        assert (stream.codes == turn.codes).mean() > 0.99
        assert stream.codes.dtype == np.int32
    # The control: the neighbours' rows are not these.
    assert np.abs(np.roll(stream.mean, 1, axis=0) - turn.mean).max() > 1e-3


def test_what_is_sent_ahead_is_each_photo_once_with_the_channels_last() -> None:
    pixels, rows = [photos(8), photos(12)], np.arange(50)[::-1].copy()
    sent = [[batch.clone() for batch in batches] for batches in _Ahead(pixels, rows, 16, torch.device("cpu"))]
    assert len(sent) == 4
    for number, each in enumerate(pixels):
        together = torch.cat([batches[number] for batches in sent])[:50]
        assert (together.permute(0, 2, 3, 1).numpy() == each[rows]).all()
    strides = {batch.permute(0, 2, 3, 1).is_contiguous() for batches in sent for batch in batches}
    assert strides == {True}
    assert list(_Ahead(pixels, np.arange(0), 16, torch.device("cpu"))) == []


class Costly(Model):
    """A network of which the test says how long a batch takes, and from which one on there is no memory."""

    def __init__(self, seconds: dict[int, float]) -> None:
        super().__init__()
        self.image_size, self.latent_dim, self.seconds = 8, 3, seconds
        self.clock, self.sizes = 0.0, list[int]()

    def forward(self, batch: Any, step: Any) -> Any:
        raise NotImplementedError

    def encode(self, images: Tensor, condition: Tensor | None = None) -> Latents:
        self.sizes.append(len(images))
        if len(images) not in self.seconds:
            raise torch.OutOfMemoryError
        self.clock += self.seconds[len(images)]
        return Latents(images.float().mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("seconds", "most", "found"),
    [
        ({256: 1.0, 512: 1.2, 1024: 2.3, 2048: 5.0}, 10_000, 512),  # 1024 is not worth its memory: 4 % faster
        ({256: 1.0, 512: 1.2}, 10_000, 512),
        ({256: 1.0, 512: 1.2, 1024: 1.3}, 600, 512),
        ({256: 1.0, 512: 2.0}, 10_000, 256),
        ({}, 10_000, 256),
        (dict.fromkeys(_PROBED, 1.0), 10_000, 8192),
    ],
)
def test_the_probe_doubles_batches_while_that_pays(
    seconds: dict[int, float], most: int, found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Costly(seconds)
    monkeypatch.setattr("pipeline.encoding.encoder.time.perf_counter", lambda: model.clock)
    assert Encoder(model)._fastest_batch([photos(8)], most, conditional=False) == found
    assert max(model.sizes) <= max(2 * found, 256)


def test_auto_is_256_on_cpus() -> None:
    assert Encoder(made("vae")).batch_size == 256


@GPU
@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_gives_the_latents_of_the_cpu(precision: Any) -> None:
    rows = np.arange(50)[::-1].copy()
    model = made("vae")
    expected = Encoder(made("vae"), batch_size=16)(photos(), rows)
    found = Encoder(model, batch_size=16, precision=precision, device="cuda")(photos(), rows)
    np.testing.assert_allclose(found.mean, expected.mean, atol=1e-3 if precision == "fp32" else 0.05)
    assert found.mean.dtype == np.float32


@GPU
@pytest.mark.gpu
def test_a_gpu_waits_once_a_shard() -> None:
    encoder = Encoder(made("vae"), batch_size=16, device="cuda")
    encoder(photos(), np.arange(50))
    waits = []
    real = torch.cuda.synchronize
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "synchronize", lambda *given: (waits.append(1), real(*given)))
        torch.cuda.set_sync_debug_mode("error")  # whatever else would wait raises
        try:
            encoder(photos(), np.arange(50))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(waits) == 1


@GPU
@pytest.mark.gpu
def test_a_gpu_is_probed_once() -> None:
    encoder = Encoder(made("vae"), device="cuda")
    pixels = photos(count=2000)
    encoder(pixels, np.arange(2000))
    assert encoder.batch_size in _PROBED
    assert encoder.batch_size <= 2000 or encoder.batch_size == 256
    assert not encoder._probes

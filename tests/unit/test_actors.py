"""What an actor does with a shard, without Ray: values, refusals, reuse, races."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.encoding import (
    EncodeConfig,
    Encoder,
    PhotoDecoder,
    Shard,
    ShardResult,
    ShardWorker,
    Unanswered,
    actors,
    assign_shards,
    build_shards,
    decoding,
    make_worker,
)
from pipeline.encoding.opened import Opened
from pipeline.errors import ConfigError, IntegrityError, PhotoRefused, Unavailable
from pipeline.images import ImagesConfig
from pipeline.models import MODELS, build_model
from pipeline.models.base import Batch, Latents, Losses, Model, Step, to_float
from pipeline.parts import hashed_part, read_part, write_part
from pipeline.refusals import ASKED_REASONS
from pipeline.schema import latents_schema, pixels_schema, plan_schema
from pipeline.storage import Store, open_store

SIZE = 8
IMAGES = ImagesConfig(size=SIZE)
TRANSFORM = "0123456789abcdef"


class SmallModel(Model):
    """Two convolutions and a linear layer; `log_var` is minus the mean, `codes` the red bytes of the first row."""

    def __init__(self, size: int = SIZE) -> None:
        super().__init__()
        self.image_size, self.latent_dim, self.num_latent_codes, self.has_log_var = size, 5, size, True
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.Flatten(), nn.Linear(size * size, 5)
        )

    def forward(self, batch: Batch, step: Step) -> Losses:
        raise NotImplementedError

    def encode(self, images: Tensor, condition: Tensor | None = None) -> Latents:
        mean = self.body(to_float(images))
        return Latents(mean, -mean, images[:, 0, 0, :].to(torch.int64))


class MemoryReader:
    """Photos in a dict by URI; notes what was asked. A URI that it does not have is a missing photo."""

    def __init__(self, photos: dict[str, bytes]) -> None:
        self.photos = photos
        self.asked: list[list[str]] = []

    def read(self, photos: pa.Table) -> list[bytes | PhotoRefused]:
        uris = photos["uri"].to_pylist()
        self.asked.append(uris)
        missing = PhotoRefused("fetch", "missing", "no such object")
        return [self.photos.get(uri, missing) for uri in uris]


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def make_shard(uris: list[str], model_id: str | None = "m", **columns: list[Any]) -> Shard:
    """One shard of photos; `columns` overrides columns of the plan."""
    count = len(uris)
    given = {
        "item_id": [f"i{n:04d}" for n in range(count)], "uri": uris, "view": [0] * count, "status": ["added"] * count,
        "token": [f"etag:{uri}" for uri in uris], "retried": [False] * count, **columns,
    }  # fmt: skip
    schema = plan_schema([])
    plan = pa.Table.from_arrays(
        [pa.array(given.get(field.name, [None] * count), field.type) for field in schema], schema=schema
    )
    plan = assign_shards(plan, image_size=SIZE, encode_all="pixels_part" in columns)
    (shard,) = build_shards(plan, transform_id=TRANSFORM, model_id=model_id, precision="fp32")
    return shard


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Store:
    return open_store(f"memory://{request.node.name}")


@pytest.fixture(scope="module")
def model() -> SmallModel:
    torch.manual_seed(0)
    return SmallModel()


@pytest.fixture(params=["one", "two"])
def stages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one stage, and in two, between which the pixels are packed for another process: nothing tells them apart."""
    if request.param == "one":
        return

    def apart(worker: ShardWorker, shard: Shard) -> ShardResult:
        opened = worker.open(shard)
        return worker.encode(Opened.unpack(opened.pack()[0])) if isinstance(opened, Opened) else opened

    monkeypatch.setattr(ShardWorker, "__call__", apart)


@pytest.fixture
def worker(store: Store, model: SmallModel, stages: None) -> Callable[..., ShardWorker]:
    def make(photos: dict[str, bytes], *, threads: int = 1, at: Store = store, encoder: bool = True) -> ShardWorker:
        decoder = PhotoDecoder(MemoryReader(photos), IMAGES, threads=threads)
        return ShardWorker(at, decoder, Encoder(model, batch_size=4) if encoder else None)

    return make


def seven_photos() -> dict[str, bytes]:
    """Photos 0 to 6; 2 is no picture, 4 is missing, 5 is cut off."""
    photos = {f"u{n}": png(picture(n)) for n in range(7)}
    photos["u2"] = b"<html>"
    photos["u5"] = photos["u5"][:-40]
    del photos["u4"]
    return photos


SEVEN = [f"u{n}" for n in range(7)]
ANSWERED = [0, 1, 2, 3, 5, 6]  # what a part may hold: 4 is missing, which may pass
USABLE = [0, 1, 3, 6]


def test_a_pixels_part_holds_the_photos_and_the_reasons(store: Store, worker: Callable[..., ShardWorker]) -> None:
    photos, shard = seven_photos(), make_shard(SEVEN)
    result = worker(photos)(shard)
    assert (result.photos, result.refused, result.fetched, result.reused) == (7, 3, 7, False)
    assert result.unanswered == (Unanswered(4, "missing", "no such object"),)
    table = pq.read_table(io.BytesIO(store.get(shard.pixels_name)))
    assert table.schema.equals(pixels_schema(SIZE))
    assert table.schema.metadata[b"part_key"].decode() == shard.pixels_key
    for name in ("item_id", "uri", "token"):
        assert table[name].to_pylist() == [shard.photos[name][row].as_py() for row in ANSWERED]
    for row, held in zip(ANSWERED, table.to_pylist(), strict=True):
        if row in USABLE:
            # PNG is lossless and of the model's size, so the pixels are the picture itself.
            assert held["pixels"] == picture(row).tobytes()
            assert held["digest"] == hashlib.sha256(photos[f"u{row}"]).hexdigest()
            assert (held["stage"], held["reason"], held["detail"]) == (None, None, None)
        else:
            assert (held["pixels"], held["digest"]) == (None, None)
            assert held["detail"]
    reasons = [(row["stage"], row["reason"]) for row in table.to_pylist() if row["stage"]]
    assert reasons == [("decode", "not_an_image"), ("decode", "truncated")]
    assert result.pixels is not None
    assert result.pixels.sha256 == hashlib.sha256(store.get(shard.pixels_name)).hexdigest()


def test_a_latents_part_holds_the_usable_photos(
    store: Store, worker: Callable[..., ShardWorker], model: SmallModel
) -> None:
    """The oracle is the model in float64, one photo at a time."""
    shard = make_shard(SEVEN)
    result = worker(seven_photos())(shard)
    table = pq.read_table(io.BytesIO(store.get(str(shard.latents_name))))
    assert table.schema.equals(latents_schema(5, log_var=True, num_codes=SIZE))
    assert table["pixels_row"].to_pylist() == [ANSWERED.index(row) for row in USABLE]
    assert table["uri"].to_pylist() == [f"u{n}" for n in USABLE]
    exact = SmallModel().double()
    exact.load_state_dict(model.state_dict())
    for held in table.to_pylist():
        pixels = picture(ANSWERED[held["pixels_row"]])
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].double() / 255
        with torch.inference_mode():
            mean = exact.body(image)[0].numpy()
        np.testing.assert_allclose(held["mean"], mean, atol=1e-6)
        np.testing.assert_allclose(held["log_var"], -mean, atol=1e-6)
        assert held["codes"] == pixels[0, :, 0].tolist()
    assert result.latents is not None
    assert result.latents.rows == len(USABLE)
    assert result.latents.sha256 == hashlib.sha256(store.get(str(shard.latents_name))).hexdigest()


def test_a_shard_of_refused_photos_only_still_has_both_parts(store: Store, worker: Callable[..., ShardWorker]) -> None:
    shard = make_shard(["a", "b"])
    result = worker({"a": b"<html>", "b": b""})(shard)
    assert result.refused == 2
    assert read_part(store, str(shard.latents_name)).num_rows == 0
    assert read_part(store, shard.pixels_name)["pixels"].null_count == 2


@pytest.mark.parametrize("reason", sorted(ASKED_REASONS))
def test_what_may_pass_is_in_no_part(store: Store, worker: Callable[..., ShardWorker], reason: str) -> None:
    class Refusing:
        def read(self, photos: pa.Table) -> list[bytes | PhotoRefused]:
            return [PhotoRefused("fetch", reason, "the last answer")] * photos.num_rows

    made, shard = worker({}), make_shard(["a", "b"])
    made.decoder.reader = Refusing()
    result = made(shard)
    assert list(store.list()) == []
    assert (result.pixels, result.latents, result.refused, result.fetched) == (None, None, 2, 2)
    assert result.unanswered == tuple(Unanswered(row, reason, "the last answer") for row in range(2))


def test_a_photo_has_the_same_bits_wherever_it_lies(model: SmallModel) -> None:
    """Alone, in a full batch, in a padded one, at every position: batches are always of `batch_size` photos."""
    encoder = Encoder(model, batch_size=16)
    pixels = np.stack([picture(n) for n in range(50)])
    together = encoder(pixels, np.arange(50))
    backwards = encoder(pixels, np.arange(50)[::-1].copy())
    assert backwards.mean[::-1].tobytes() == together.mean.tobytes()
    for row in range(0, 50, 7):
        alone = encoder(pixels, np.array([row]))
        assert alone.mean[0].tobytes() == together.mean[row].tobytes()
        assert alone.codes is not None
        assert alone.codes[0].tolist() == pixels[row, 0, :, 0].tolist()


SETTINGS: dict[str, dict[str, Any]] = {
    "descriptor": {"cell": 16, "read_out": {"dims": 8}},
    "distilled": {"teacher": "a" * 64, "numbers": 12, "cells": 2},
    "ridge": {"teacher": "a" * 64, "numbers": 12, "sees": {"kind": "descriptor", "cell": 16, "read_out": {"dims": 8}}},
    # A fusion names bundles; this one has what the training fills in.
    "fusion": {
        "members": ["a" * 64, "b" * 64],
        "parts": [
            {"model": {"kind": "vae", "latent_dim": 4, "channels": [8, 16]}},
            {"model": {"kind": "descriptor", "cell": 16, "read_out": {"dims": None}}},
        ],
    },
}


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_the_same_holds_for_the_models_of_the_table(kind: str) -> None:
    """Measured without padding: with batches of one photo 96 % of a VAE's values differ, by up to 7e-7."""
    torch.manual_seed(0)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), np.uint8)
    made = build_model(MODELS[kind][0].model_validate({"kind": kind, **SETTINGS.get(kind, {})}), image_size=64)
    if made.fits:
        images = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
        made.eval().fit([Batch(images, features=images.float().flatten(1)[:, : made.num_features or None])])
    encoder = Encoder(made, batch_size=32)
    together = encoder(pixels, np.arange(40))
    assert np.ptp(together.mean, axis=0).max() > 0
    backwards = encoder(pixels, np.arange(40)[::-1].copy())
    for name in ("mean", "log_var", "codes"):
        values, turned = getattr(together, name), getattr(backwards, name)
        assert (values is None) == (turned is None)
        assert values is None or values.tobytes() == turned[::-1].tobytes()
    assert encoder(pixels, np.array([39])).mean[0].tobytes() == together.mean[39].tobytes()


def test_every_forward_pass_has_the_same_shape(model: SmallModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def encode(images: Tensor, condition: Tensor | None = None) -> Latents:
        seen.append((tuple(images.shape), images.dtype, images.is_contiguous(), torch.get_num_threads()))
        return SmallModel.encode(model, images)

    monkeypatch.setattr(model, "encode", encode)
    before = torch.get_num_threads()
    arrays = Encoder(model, batch_size=4, threads=1)(np.stack([picture(n) for n in range(6)]), np.arange(6))
    assert seen == [((4, 3, SIZE, SIZE), torch.uint8, True, 1)] * 2
    assert arrays.mean.shape == (6, 5)
    assert torch.get_num_threads() == before


def test_bf16_computes_in_bf16_and_writes_float32(model: SmallModel) -> None:
    pixels, rows = np.stack([picture(n) for n in range(4)]), np.arange(4)
    full = Encoder(model, batch_size=4)(pixels, rows).mean
    half = Encoder(model, batch_size=4, precision="bf16")(pixels, rows).mean
    assert half.dtype == np.float32
    assert (half == torch.from_numpy(half).bfloat16().float().numpy()).all()
    np.testing.assert_allclose(half, full, atol=0.02)
    assert (half != full).any()


def test_parts_are_the_same_bytes_for_any_threads_and_stretches(
    store: Store, worker: Callable[..., ShardWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = make_shard(SEVEN)
    one = worker(seven_photos())(shard)
    monkeypatch.setattr(decoding, "READ_ROWS", 3)
    again = worker(seven_photos(), threads=3, at=open_store(f"{store.url}-another"))(shard)
    assert (one.pixels, one.latents) == (again.pixels, again.latents)


def test_embedded_photos_are_read_in_the_order_of_their_files(
    store: Store, worker: Callable[..., ShardWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "READ_ROWS", 2)
    order = [3, 0, 4, 1, 2]  # plan row -> offset in the file
    photos = {f"u{n}": png(picture(n)) for n in range(5)}
    shard = make_shard([f"u{n}" for n in order], source=["s"] * 5, offset=order)
    made = worker(photos, encoder=False)
    made(Shard(shard.number, shard.photos, shard.pixels_name, shard.pixels_key, None, None, None))
    assert made.decoder.reader.asked == [["u0", "u1"], ["u2", "u3"], ["u4"]]
    assert read_part(store, shard.pixels_name)["pixels"].to_pylist() == [picture(n).tobytes() for n in order]


def test_pixels_that_are_there_are_not_fetched_again(store: Store, worker: Callable[..., ShardWorker]) -> None:
    first = worker(seven_photos(), encoder=False)(make_shard(SEVEN, model_id=None))
    assert first.latents is None
    second = worker({})  # every photo would be missing
    result = second(make_shard(SEVEN))
    assert second.decoder.reader.asked == []
    assert (result.pixels, result.refused, result.fetched, result.reused) == (first.pixels, 3, 0, False)
    assert [photo.row for photo in result.unanswered] == [4], "which the part lacks"
    assert result.latents is not None
    third = worker({})(make_shard(SEVEN))
    assert (third.pixels, third.reused) == (first.pixels, True)
    assert third.latents is not None
    assert hashed_part(store, third.latents) == result.latents


class RacingStore:
    """Another attempt writes its part a moment before ours, once for each name in `rivals`."""

    def __init__(self, store: Store, rivals: dict[str, bytes]) -> None:
        self.store = store
        self.rivals = rivals

    def put_if_absent(self, name: str, data: bytes) -> bool:
        if name in self.rivals:
            assert self.store.put_if_absent(name, self.rivals.pop(name))
        return self.store.put_if_absent(name, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


def test_latents_describe_the_winners_pixels(worker: Callable[..., ShardWorker], store: Store) -> None:
    """The rival found photo 4 and lost photo 0; what we fetched ourselves must leave no trace."""
    shard = make_shard(SEVEN)
    theirs = {f"u{n}": png(picture(n + 100)) for n in range(1, 7)}
    rival = open_store(f"{store.url}-rival")
    expected = worker(theirs, at=rival)(shard)
    race = RacingStore(store, {shard.pixels_name: rival.get(shard.pixels_name)})
    result = worker(seven_photos(), at=race)(shard)
    assert (result.pixels, result.latents, result.refused) == (expected.pixels, expected.latents, 1)
    assert result.fetched == 7
    # Negative control: undisturbed, our photos give other parts.
    alone = worker(seven_photos(), at=open_store(f"{store.url}-alone"))(shard)
    assert alone.latents != expected.latents


def test_latents_that_came_first_are_used(worker: Callable[..., ShardWorker], store: Store) -> None:
    shard = make_shard(SEVEN)
    rival = open_store(f"{store.url}-rival")
    worker(seven_photos(), at=rival)(shard)
    table = read_part(rival, str(shard.latents_name))
    shifted = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(20, np.float32)), 5)
    table = table.set_column(5, table.schema.field("mean"), shifted)
    other = open_store(f"{store.url}-other")
    won = write_part(other, str(shard.latents_name), table, str(shard.latents_key))
    race = RacingStore(store, {won.name: other.get(won.name)})
    assert worker(seven_photos(), at=race)(shard).latents == won


def test_carried_photos_are_encoded_from_their_pixels_part(worker: Callable[..., ShardWorker], store: Store) -> None:
    whole = make_shard(SEVEN)
    worker(seven_photos())(whole)
    rows, places = [6, 1], [ANSWERED.index(6), ANSWERED.index(1)]
    kept = {
        "status": ["same"] * 2, "item_id": [f"i{n:04d}" for n in rows], "pixels_part": [whole.pixels_name] * 2,
        "pixels_row": places,
    }  # fmt: skip
    shard = make_shard([f"u{n}" for n in rows], model_id="new", **kept)
    idle = worker({})
    result = idle(shard)
    assert idle.decoder.reader.asked == []
    assert (result.pixels, result.refused, result.fetched) == (None, 0, 0)
    held = read_part(store, str(shard.latents_name)).to_pylist()
    before = {row["pixels_row"]: row for row in read_part(store, str(whole.latents_name)).to_pylist()}
    assert held == [before[place] for place in places]  # the same model here, so the same values
    for wrong in ({"pixels_row": [5, 2]}, {"pixels_row": [5, 70]}, {"pixels_row": [1, 5]}):
        bad = make_shard([f"u{n}" for n in rows], model_id="newer", **{**kept, **wrong})
        with pytest.raises(IntegrityError):
            worker({})(bad)


def test_a_crash_of_the_decoder_is_a_refused_photo(
    worker: Callable[..., ShardWorker], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(data: bytes, config: ImagesConfig) -> list[np.ndarray]:
        if data == b"bad":
            raise ZeroDivisionError("integer modulo by zero")
        return [picture(1)]

    monkeypatch.setattr(decoding, "decode_each", decode)
    shard = make_shard(["a", "b"])
    assert worker({"a": b"bad", "b": b"good"})(shard).refused == 1
    row = read_part(store, shard.pixels_name).to_pylist()[0]
    detail = "ZeroDivisionError, for which there is no reason word yet"  # its text, which may quote bytes, is logged
    assert (row["stage"], row["reason"], row["detail"]) == ("decode", "broken", detail)


@pytest.mark.parametrize("error", [ConfigError("our mistake"), ImportError("no Pillow"), Unavailable("store down")])
def test_our_own_mistakes_are_no_refused_photos(
    worker: Callable[..., ShardWorker], store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def decode(data: bytes, config: ImagesConfig) -> list[np.ndarray]:
        raise error

    monkeypatch.setattr(decoding, "decode_each", decode)
    with pytest.raises(type(error)):
        worker({"a": b"photo"})(make_shard(["a"]))
    assert list(store.list()) == []


def test_a_store_that_is_down_stops_the_shard(worker: Callable[..., ShardWorker], store: Store) -> None:
    class Down:
        def read(self, photos: pa.Table) -> list[bytes | PhotoRefused]:
            raise Unavailable("503 from the photo store")

    made = worker({})
    made.decoder.reader = Down()
    with pytest.raises(Unavailable, match="503"):
        made(make_shard(["a"]))
    assert list(store.list()) == []


def test_a_model_that_is_broken_as_a_whole_leaves_no_photo(store: Store, worker: Callable[..., ShardWorker]) -> None:
    made = worker(seven_photos())
    sick = SmallModel()
    nn.init.constant_(sick.body[-1].bias, float("nan"))
    made.encoder = Encoder(sick, batch_size=4)
    shard = make_shard(SEVEN)
    result = made(shard)
    assert (result.photos, result.refused) == (7, 7)
    assert read_part(store, shard.latents_name or "").num_rows == 0


def make_job(store: Store, tmp_path: Path, **encode: Any) -> Any:
    reader = MemoryReader(seven_photos())
    return SimpleNamespace(
        store=store, images=IMAGES, transforms=(IMAGES,), encode=EncodeConfig(batch_size=4, **encode), model_id="m",
        reader=lambda: reader,
    )  # fmt: skip


def bundle_of(model: Model, *sizes: int) -> Any:
    images = tuple(ImagesConfig(size=size, max_bytes=7) for size in sizes or (SIZE,))
    stored = [each.model_dump(mode="json") for each in images]
    return lambda store, model_id: SimpleNamespace(model=model, transforms=images, images=stored, config=None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_torch_does_not_see_is_an_error(
    store: Store, tmp_path: Path, model: SmallModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors, "load_bundle", bundle_of(model))
    with pytest.raises(ConfigError, match="sees no CUDA device"):
        make_worker(make_job(store, tmp_path, gpus_per_actor=0.5))

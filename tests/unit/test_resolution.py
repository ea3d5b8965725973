"""Photos that models see in sizes of their own: fetched once, decoded once a size, stored only where it is asked."""

from __future__ import annotations

import io
import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline.encoding import Encoder, PhotoDecoder, Shard, ShardWorker, assign_shards, build_shards
from pipeline.errors import ConfigError, PhotoRefused, Unavailable
from pipeline.images import ImagesConfig, decode, decode_each, transform_id
from pipeline.index.photo import PhotoEncoder
from pipeline.models import build_model, load_bundle, save_bundle
from pipeline.models.base import Batch, Latents, Losses, Model, Step, images_values
from pipeline.models.fusion import FusionConfig
from pipeline.parts import read_part
from pipeline.schema import pixels_schema, plan_schema
from pipeline.storage import Store, open_store
from pipeline.storage.cache import FileCache

decode_module: Any = sys.modules["pipeline.images.decode"]
SMALL, MIDDLE, LARGE = (ImagesConfig(size=size) for size in (8, 12, 24))


class Means(Model):
    """The mean colour of each size that it is given, one after the other: any mix-up of sizes or rows shows."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.image_size, self.latent_dim, self.sizes = sizes[0], 3 * len(sizes), list(sizes)

    def forward(self, batch: Batch, step: Step) -> Losses:
        raise NotImplementedError

    def encode(self, images: Any, condition: Tensor | None = None) -> Latents:
        seen = images if isinstance(images, tuple) else (images,)
        assert [each.shape[-1] for each in seen] == self.sizes
        return Latents(torch.cat([each.float().mean(dim=(2, 3)) for each in seen], dim=1))


class Counting:
    """Photos in memory; how often each was asked for. Those in `gone` do not answer."""

    def __init__(self, photos: dict[str, bytes]) -> None:
        self.photos, self.asked, self.gone = photos, Counter[str](), set[str]()

    def read(self, photos: pa.Table) -> list[bytes | PhotoRefused]:
        uris = photos["uri"].to_pylist()
        self.asked.update(uris)
        silent = PhotoRefused("fetch", "unreachable", "no answer")
        return [silent if uri in self.gone else self.photos[uri] for uri in uris]


def png(seed: int) -> bytes:
    sink = io.BytesIO()
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (20, 31, 3), np.uint8)).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture
def photos() -> Counting:
    return Counting({f"u{n}": b"<html>" if n == 3 else png(n) for n in range(6)})


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Store:
    return open_store(f"memory://{request.node.name}")


def shard_of(photos: Counting, *seen: ImagesConfig, model_id: str | None = "m", kept: set[str] | None = None) -> Shard:
    uris = sorted(photos.photos)
    given: dict[str, list[object]] = {
        "item_id": list(uris), "uri": list(uris), "view": [0] * len(uris), "status": ["added"] * len(uris),
        "token": list(uris), "retried": [False] * len(uris),
    }  # fmt: skip
    schema = plan_schema([])
    columns = [pa.array(given.get(field.name, [None] * len(uris)), field.type) for field in schema]
    plan = assign_shards(pa.Table.from_arrays(columns, schema=schema), image_size=[each.size for each in seen])
    (shard,) = build_shards(plan, transform_id=transform_id(*seen), model_id=model_id, precision="fp32", kept=kept)
    return shard


def worker_of(
    store: Store, photos: Counting, stored: tuple[ImagesConfig, ...], own: tuple[ImagesConfig, ...]
) -> ShardWorker:
    images = list(dict.fromkeys([*stored, *own]))
    encoder = Encoder(Means(*(each.size for each in own)), batch_size=4)
    numbers = [images.index(each) for each in own]
    return ShardWorker(store, PhotoDecoder(photos, *images), encoder, stored=len(stored), own=numbers)


def expected(photos: Counting, own: tuple[ImagesConfig, ...]) -> np.ndarray:
    """Return what `Means` says of the usable photos, by the decoder alone."""
    usable = [photos.photos[uri] for uri in sorted(photos.photos) if uri != "u3"]
    return np.array([np.concatenate([decode(data, each).mean(axis=(0, 1)) for each in own]) for data in usable])


def means(store: Store, shard: Shard) -> np.ndarray:
    return np.array(read_part(store, str(shard.latents_name))["mean"].to_pylist())


def test_a_teachers_size_is_decoded_in_the_same_pass_and_not_stored(store: Store, photos: Counting) -> None:
    shard = shard_of(photos, SMALL, model_id="teacher")
    result = worker_of(store, photos, (SMALL,), (LARGE,))(shard)
    assert photos.asked == dict.fromkeys(photos.photos, 1)
    assert (result.fetched, result.refused, result.photos) == (6, 1, 6)
    part = read_part(store, shard.pixels_name)
    assert part.schema.equals(pixels_schema(SMALL.size)), "of the teacher's size nothing is stored"
    assert part["pixels"][0].as_py() == decode(photos.photos["u0"], SMALL).tobytes()
    np.testing.assert_allclose(means(store, shard), expected(photos, (LARGE,)), rtol=1e-5)
    latents = read_part(store, str(shard.latents_name))
    assert latents["pixels_row"].to_pylist() == [0, 1, 2, 4, 5]
    # The student is made of the same part: no photo is asked for again.
    student = shard_of(photos, SMALL, model_id="student")
    assert student.pixels_name == shard.pixels_name
    assert worker_of(store, photos, (SMALL,), (SMALL,))(student).fetched == 0
    np.testing.assert_allclose(means(store, student), expected(photos, (SMALL,)), rtol=1e-5)
    assert set(photos.asked.values()) == {1}


def test_a_part_that_lacks_a_teachers_pixels_is_no_answer_for_it(store: Store, photos: Counting) -> None:
    worker_of(store, photos, (SMALL,), (SMALL,))(shard_of(photos, SMALL, model_id="student"))
    shard = shard_of(photos, SMALL, model_id="teacher")
    before = store.get(shard.pixels_name)
    photos.gone = {"u2"}
    with pytest.raises(Unavailable, match=r"1 of 5 photos .*u2: unreachable.* run again"):
        worker_of(store, photos, (SMALL,), (LARGE,))(shard)
    assert not store.exists(str(shard.latents_name)), "a photo that may answer later is not left out for ever"
    photos.gone = set()
    changed, photos.photos["u2"] = photos.photos["u2"], png(77)
    with pytest.raises(Unavailable, match="other bytes"):
        worker_of(store, photos, (SMALL,), (LARGE,))(shard)
    photos.photos["u2"] = changed
    result = worker_of(store, photos, (SMALL,), (LARGE,))(shard)
    assert (result.fetched, result.refused) == (5, 1)
    assert photos.asked["u3"] == 1, "what the decoder refused is not asked for again"
    np.testing.assert_allclose(means(store, shard), expected(photos, (LARGE,)), rtol=1e-5)
    assert store.get(shard.pixels_name) == before


def test_a_model_of_several_sizes_has_one_part_of_them_all(store: Store, photos: Counting) -> None:
    seen = (LARGE, SMALL, MIDDLE)
    shard = shard_of(photos, *seen)
    worker_of(store, photos, seen, seen)(shard)
    assert set(photos.asked.values()) == {1}
    part = read_part(store, shard.pixels_name)
    assert part.schema.equals(pixels_schema(24, 8, 12))
    for name, images in zip(("pixels", "pixels_1", "pixels_2"), seen, strict=True):
        assert part[name][5].as_py() == decode(photos.photos["u5"], images).tobytes()
        assert part[name].null_count == 1
    np.testing.assert_allclose(means(store, shard), expected(photos, seen), rtol=1e-5)
    # Another model of two of the sizes reads them from the part, in its own order.
    other = shard_of(photos, *seen, model_id="other")
    assert worker_of(store, photos, seen, (MIDDLE, LARGE))(other).fetched == 0
    np.testing.assert_allclose(means(store, other), expected(photos, (MIDDLE, LARGE)), rtol=1e-5)


def test_what_is_not_stored_is_named_otherwise_and_fetched_again(store: Store, photos: Counting) -> None:
    shard = shard_of(photos, LARGE, kept=set())
    assert shard.pixels_name.startswith(f"photos/{transform_id(LARGE)}/")
    result = worker_of(store, photos, (LARGE,), (LARGE,))(shard)
    part = read_part(store, shard.pixels_name)
    assert part.schema.equals(pixels_schema())
    assert (part["stage"].to_pylist()[3], part["digest"].null_count, part.num_rows) == ("decode", 1, 6)
    assert result.pixels is not None
    assert result.pixels.bytes < 4_000
    np.testing.assert_allclose(means(store, shard), expected(photos, (LARGE,)), rtol=1e-5)
    again = shard_of(photos, LARGE, model_id="newer", kept=set())
    assert worker_of(store, photos, (LARGE,), (LARGE,))(again).fetched == 5
    np.testing.assert_allclose(means(store, again), means(store, shard), rtol=1e-6)
    # With pixels on the store, from a night that kept them, these answer.
    keeping = shard_of(photos, LARGE, model_id=None)
    worker_of(store, photos, (LARGE,), (LARGE,))(keeping)
    last = shard_of(photos, LARGE, model_id="last", kept={keeping.pixels_name})
    assert last.pixels_name == keeping.pixels_name
    assert worker_of(store, photos, (LARGE,), (LARGE,))(last).fetched == 0


def fused(*sizes: int, **options: Any) -> FusionConfig:
    """Return a fusion of three members, as the training would resolve it; the second sees two of the sizes."""
    vae = {"kind": "vae", "latent_dim": 3, "channels": [4, 8]}
    grey = {"kind": "descriptor", "cell": 4, "grey": True, "read_out": {"dims": None}}
    ways = [{"size": size, "fit": "crop"} for size in sizes]
    inner = {
        "kind": "fusion", "members": ["d" * 64, "e" * 64], "centre": False,
        "parts": [{"model": grey, "images": ways[:1]}, {"model": vae, "images": ways[1:2]}],
    }  # fmt: skip
    parts = [
        {"model": vae, "images": ways[2:]}, {"model": inner, "images": ways[:2]}, {"model": grey, "images": ways[1:2]},
    ]  # fmt: skip
    members = [letter * 64 for letter in "abc"]
    return FusionConfig.model_validate({"kind": "fusion", "members": members, "parts": parts, **options})


def batches(photos: Counting, *images: ImagesConfig) -> tuple[Tensor, ...]:
    usable = [data for uri, data in sorted(photos.photos.items()) if uri != "u3"]
    seen = (np.stack([decode(data, each) for data in usable]) for each in images)
    return tuple(torch.from_numpy(each).permute(0, 3, 1, 2).contiguous() for each in seen)


@pytest.mark.slow
def test_a_query_by_photo_of_several_sizes_is_what_torch_says(store: Store, photos: Counting, tmp_path: Path) -> None:
    config = fused(16, 24, 32, centre=True, scale="mean_norm")
    transforms = config.transforms(ImagesConfig(size=99, max_bytes=50_000))
    assert [(each.size, each.fit, each.max_bytes) for each in transforms] == [
        (size, "crop", 50_000) for size in (32, 16, 24)
    ]
    assert config.places() == ((0,), (1, 2), (2,))
    torch.manual_seed(0)
    model = build_model(config, image_size=32).eval()
    assert model.image_sizes == (32, 16, 24)
    given = batches(photos, *transforms)
    model.fit([Batch(given[0], others=given[1:])])
    wanted = model.encode(given).mean.detach().numpy()
    # Negative control: sizes in another order are no photos of these members.
    with pytest.raises((RuntimeError, AssertionError)):
        model.encode(given[::-1])
    model_id = save_bundle(store, model, config, images_values(transforms), train_key="a" * 64, card={})
    assert load_bundle(store, model_id).transforms == transforms
    facts = json.loads(store.get(f"models/{model_id}/config.json"))
    assert [each["size"] for each in facts["images"]] == [32, 16, 24]
    manifest: Any = SimpleNamespace(model_id=model_id, bundle_config=None, encoder=None)
    encoder = PhotoEncoder(store, FileCache(tmp_path), manifest)
    found = np.concatenate([encoder(data).mean for uri, data in sorted(photos.photos.items()) if uri != "u3"])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match=r"invariant_to compares views .* in 3 ways"):
        build_model(fused(16, 24, 32, read_out={"invariant_to": {}}), image_size=32)


@pytest.mark.parametrize(("kind", "loads"), [("JPEG", 2), ("PNG", 1), ("WEBP", 1)])
def test_each_size_is_what_it_is_alone_and_a_file_is_decoded_once_a_scale(
    kind: str, loads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = io.BytesIO()
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 256, (13, 20, 3), np.uint8).repeat(20, 0).repeat(20, 1)
    Image.fromarray(blocks).save(sink, kind)
    data = sink.getvalue()
    configs = [ImagesConfig(size=96), ImagesConfig(size=12, fit="crop"), ImagesConfig(size=14), ImagesConfig(size=90)]
    alone = [decode(data, config) for config in configs]
    calls: list[str] = []
    load = decode_module._load
    monkeypatch.setattr(decode_module, "_load", lambda *given: (calls.append(given[0]), load(*given))[1])
    for one, other in zip(decode_each(data, *configs), alone, strict=True):
        assert np.array_equal(one, other)
    assert len(calls) == loads
    with pytest.raises(PhotoRefused) as refused:
        decode_each(data[:200], *configs)
    with pytest.raises(PhotoRefused) as by_itself:
        decode(data[:200], configs[0])
    assert refused.value.reason == by_itself.value.reason


def test_an_id_says_what_is_stored_and_how_long_it_is_kept_is_no_part_of_it() -> None:
    assert transform_id(ImagesConfig()) == transform_id(ImagesConfig(keep="never")) == "ada71561a50e97d6"
    assert transform_id(ImagesConfig(size=28)) == "58e06e1f1b224e95", "as on every store"
    assert "keep" not in ImagesConfig(keep="always").model_dump()
    assert "keep" not in ImagesConfig(keep="always").key_values()
    ids = {transform_id(*seen) for seen in [(SMALL,), (LARGE,), (SMALL, LARGE), (LARGE, SMALL)]}
    assert len(ids) == 4
    limited = ImagesConfig(size=8, max_bytes=5).under(ImagesConfig(size=99, max_bytes=7, max_pixels=3))
    assert (limited.size, limited.max_bytes, limited.max_pixels) == (8, 7, 3)

"""Nights of models that see photos in sizes of their own: each is fetched once, and stored where it is trained on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import foreign_files as FILES
from jobs.__main__ import main
from jobs.command import Arguments
from jobs.config import load_config
from pipeline.catalogue import PhotoReader
from pipeline.errors import PhotoRefused
from pipeline.images import ImagesConfig, transform_id
from pipeline.models.bundle import load_bundle
from pipeline.planning import pixels_line
from pipeline.planning.plan import _to_fetch
from pipeline.release import read_manifest
from pipeline.release.tables import read_table
from pipeline.storage import Store, open_store

pytestmark = pytest.mark.slow

ITEMS = 40
SMALL = "{dims: 4}"


def counting(found: Counter[str]) -> type[PhotoReader]:
    """Return a reader that notes in `found` how often each photo was asked for."""

    class Counting(PhotoReader):
        def read(self, photos: pa.Table) -> list[bytes | PhotoRefused]:
            found.update(Path(uri).name for uri in photos["uri"].to_pylist())
            return super().read(photos)

    return Counting


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    for number in range(ITEMS):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 52, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number:02d}.png")
    rows = "".join(f"item-{number:02d},{number:02d}.png\n" for number in range(ITEMS))
    (tmp_path / "catalogue.csv").write_text("item_id,image\n" + rows)
    return tmp_path


@pytest.fixture
def store(shop: Path) -> Store:
    return open_store(str(shop / "store"))


@pytest.fixture
def night(
    shop: Path, stages_here: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., dict[str, Any]]:
    """Run a night in this process; `reads` of its answer: how often photos were fetched, `shown`: for the page."""
    stages_here.run_stages_here(monkeypatch)
    monkeypatch.setattr("pipeline.storage.cache.tempfile.gettempdir", lambda: str(shop))
    reads, shown = Counter[str](), Counter[str]()
    monkeypatch.setattr("pipeline.encoding.config.PhotoReader", counting(reads))
    monkeypatch.setattr("pipeline.quality.pictures.PhotoReader", counting(shown))

    def run(name: str, *words: str, expect: int = 0) -> dict[str, Any]:
        settings = [f"store={shop / 'store'}", f"catalogue.source={shop / 'catalogue.csv'}", "train.validation=0"]
        settings.append("measures.fetched=0")  # apart from what is looked at once more to measure it
        reads.clear()
        shown.clear()
        capsys.readouterr()
        code = main(["refresh", "--json", "--run", name, "--retrain", *settings, "encode.shard_rows=10", *words])
        out, err = capsys.readouterr()
        assert code == expect, f"exit {code}\n{out}\n{err}"
        return {**json.loads(out), "reads": dict(reads), "shown": dict(shown)}

    return run


def descriptor(size: int, *words: str) -> list[str]:
    return ["model.kind=descriptor", f"images.size={size}", "model.cell=8", "model.read_out={dims: null}", *words]


def parts(store: Store, kind: str) -> Counter[str]:
    return Counter(entry.name.split("/")[1] for entry in store.list(f"{kind}/"))


def pretrained(shop: Path, read_out: str) -> list[str]:
    """Return the words for a small network that sees central squares of 24 pixels."""
    FILES.graph_file(shop / "network.onnx", size=24)
    preprocessing = "{size: 24, fit: crop, resample: bicubic, mean: [0.4, 0.5, 0.6], std: [0.2, 0.3, 0.25]}"
    return [
        "model.kind=pretrained", f"model.weights={shop / 'network.onnx'}", "model.source=onnx", "model.output=maps",
        "model.licence=MIT", f"model.preprocessing={preprocessing}", f"model.read_out={read_out}",
    ]  # fmt: skip


ONCE = {f"{number:02d}.png": 1 for number in range(ITEMS)}


def test_what_learns_nothing_fetches_once_and_stores_no_pixels(night: Callable[..., Any], store: Store) -> None:
    first = night("1", *descriptor(16))
    assert first["reads"] == ONCE
    assert first["shown"], "the page shows a few, which it asks for once more"
    assert set(first["shown"].values()) == {1}
    assert parts(store, "pixels") == {}
    transform = transform_id(ImagesConfig(size=16))
    assert parts(store, "photos") == {transform: 4}
    items = read_table(store, read_manifest(store, first["release"]), "items")
    assert items["pixels_part"].null_count == items["pixels_row"].null_count == ITEMS
    # Another model: nothing is there to encode from, so each photo is fetched once more.
    second = night("2", *descriptor(16, "model.grey=true"))
    assert second["reads"] == ONCE
    assert second["plan"]["renewal"]["fetched"] == ITEMS, "and the plan had said so"
    assert night("3", *descriptor(16, "model.grey=true"))["reads"] == {}, "a night that carries on fetches nothing"
    # `always`: the third model is made of what the second night stored.
    night("4", *descriptor(16, "model.cell=4", "images.keep=always"))
    assert parts(store, "pixels") == {transform: 4}
    assert night("5", *descriptor(16))["published"]
    kept = night("6", *descriptor(16, "model.cell=4", "model.grey=true", "images.keep=always"))
    assert (kept["reads"], kept["plan"]["renewal"]["fetched"]) == ({}, 0)


@pytest.mark.parametrize(
    ("words", "stored", "again"),
    [
        (["model.kind=vae"], "1,000", None),
        (["model.kind=vae", "images.keep=never"], "1,000", None),
        (["model.kind=descriptor"], "1,000", None),
        (["model.kind=descriptor", "model.read_out={dims: null}"], "0", "1,000"),
        (["model.kind=descriptor", "model.read_out={dims: null}", "images.keep=always"], "1,000", None),
    ],
)
def test_a_plan_says_what_is_stored(shop: Path, store: Store, words: list[str], stored: str, again: str | None) -> None:
    given = (f"store={shop / 'store'}", f"catalogue.source={shop / 'catalogue.csv'}", "images.size=32", *words)
    config = load_config(Arguments(overrides=given))
    line = pixels_line(config, store, fetched=1000, model_id=None)
    assert f"pixels: 32 a side, 3,072 bytes a photo; of 1,000 photos to fetch about {stored} are stored" in line
    assert (f"{again} photos are fetched again" in line) if again else ("is encoded from them" in line)
    if again is None and "always" not in line and "vae" not in str(words):  # only what the fit needs
        assert "about 20,000" in pixels_line(config, store, fetched=50_000, model_id=None)


def test_what_fits_stores_what_it_fits_on_and_fetches_each_photo_once(
    night: Callable[..., Any], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.planning.resolution.FIT_PHOTOS", 15)
    first = night("1", *descriptor(16, f"model.read_out={SMALL}"))
    assert first["reads"] == ONCE
    transform = transform_id(ImagesConfig(size=16))
    assert (parts(store, "pixels"), parts(store, "photos")) == ({transform: 2}, {transform: 2})
    card = store.get(f"models/{first['model_id']}/card.md").decode()
    assert "| photos | 20 |" in card
    items = read_table(store, read_manifest(store, first["release"]), "items")
    assert items["pixels_part"].null_count == 20


def test_a_pretrained_network_sees_its_own_size_whatever_the_run_says(
    night: Callable[..., Any], store: Store, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = transform_id(ImagesConfig(size=24, fit="crop"))
    first = night("1", *pretrained(shop, "{}"), "images.size=64")
    assert first["reads"] == ONCE
    assert (parts(store, "pixels"), parts(store, "photos")) == ({}, {own: 4})
    assert first["plan"]["transform_id"] == read_manifest(store, first["release"]).transform_id == own
    assert load_bundle(store, first["model_id"]).transforms == (ImagesConfig(size=24, fit="crop"),)
    # With components to fit, the photos of two shards are kept; none of them is fetched again to encode them.
    monkeypatch.setattr("pipeline.planning.resolution.FIT_PHOTOS", 15)
    second = night("2", *pretrained(shop, SMALL), "publish.channel=other")
    assert second["reads"] == ONCE
    assert (parts(store, "pixels"), parts(store, "photos")) == ({own: 2}, {own: 4})


def test_a_training_night_stores_its_pixels_and_encodes_from_them(night: Callable[..., Any], store: Store) -> None:
    tiny = ["model.kind=vae", "model.latent_dim=3", "model.channels=[4, 8]", "train.epochs=1", "images.size=16"]
    assert night("1", *tiny, "images.keep=never")["reads"] == ONCE
    assert parts(store, "photos") == {}, "what a training reads is there, whatever is kept"
    assert night("2", *tiny, "model.beta=2.0")["reads"] == {}


def test_a_training_on_a_sample_decodes_and_stores_no_more_than_that(night: Callable[..., Any], store: Store) -> None:
    tiny = ["model.kind=vae", "model.latent_dim=3", "model.channels=[4, 8]", "train.epochs=1", "images.size=16"]
    first = night("1", *tiny, "train.photos=15")
    assert first["reads"] == ONCE
    transform = transform_id(ImagesConfig(size=16))
    assert (parts(store, "pixels"), parts(store, "photos")) == ({transform: 2}, {transform: 2})
    assert "| photos | 20 |" in store.get(f"models/{first['model_id']}/card.md").decode()
    # Of a catalogue that has no more the sample is all of it, under a key of its own.
    whole = [night(name, *tiny, f"train.photos={most}")["model_id"] for name, most in (("2", 40), ("3", "null"))]
    assert whole[0] == whole[1] != first["model_id"]


def test_a_fusion_of_three_sizes_fetches_each_photo_once(night: Callable[..., Any], store: Store, shop: Path) -> None:
    tiny = ["model.kind=vae", "model.latent_dim=3", "model.channels=[4, 8]", "train.epochs=1", "images.size=16"]
    ids = [
        night("a", *descriptor(32), "publish.channel=a")["model_id"],
        night("b", *tiny, "publish.channel=b")["model_id"],
        night("c", *pretrained(shop, SMALL), "publish.channel=c")["model_id"],
    ]
    fusion = ["model.kind=fusion", f"model.members=[{', '.join(ids)}]", "model.read_out={dims: 5}"]
    done = night("fused", *fusion)
    assert (done["reads"], done["shown"]) == (ONCE, {})
    bundle = load_bundle(store, done["model_id"])
    assert [images.size for images in bundle.transforms] == [32, 16, 24]
    assert isinstance(bundle.images, list)
    assert bundle.model.image_sizes == (32, 16, 24)
    several = transform_id(ImagesConfig(size=32), ImagesConfig(size=16), ImagesConfig(size=24, fit="crop"))
    assert read_manifest(store, done["release"]).transform_id == several
    assert parts(store, "pixels")[several] == 4, "it fits on all of these few"
    # A night later nothing is fetched, and a size of the run's own section says nothing.
    assert night("later", *fusion)["reason"] == "nothing to do"


def test_a_plan_says_how_many_bytes_are_fetched_and_would_be_again(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"store={shop / 'store'}", f"catalogue.source={shop / 'catalogue.csv'}", "images.size=32"]
    plain = ["model.kind=descriptor", "model.read_out={dims: null}"]
    assert main(["plan", *words, *plain]) == 0
    told = capsys.readouterr().err
    whole = sum(path.stat().st_size for path in shop.glob("*.png")) / 1e6
    count = len(list(shop.glob("*.png")))
    assert f"to fetch: {count} photos, {whole:,.1f} MB; to encode" in told
    assert f"{count} photos are fetched again, about {whole:,.1f} MB" in told


def test_bytes_that_nothing_tells_are_counted_and_not_guessed() -> None:
    rows = pa.table({"shard": pa.array([0, 0, None, 1]), "pixels_part": pa.array([None, None, None, "kept"])})
    sizes = pa.chunked_array([pa.array([100, None, 7], pa.int64()), pa.array([100], pa.int64())])
    assert _to_fetch(rows, sizes) == {"fetch_bytes": 100, "unsized": 1}
    assert _to_fetch(rows, None) == {"unsized": 2}

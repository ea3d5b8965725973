"""`codebooks prior` on a small VQ release, its training run in this process instead of on Ray."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from jobs.__main__ import main
from jobs.prior import outcome_of
from pipeline.errors import ConfigError
from pipeline.models import build_model, load_bundle, save_bundle
from pipeline.models.priors.stored import load_prior
from pipeline.models.targets import HogTarget
from pipeline.models.vae import VAEConfig
from pipeline.models.vqvae import VQVAEConfig
from pipeline.models.vqvae2 import VQVAE2Config
from pipeline.planning import release_photos
from pipeline.planning.prior_section import codes_of
from pipeline.quality.prior_results import one_an_item
from pipeline.release import read_manifest
from pipeline.schema import outliers_schema
from pipeline.storage import open_store
from pipeline.training import Line, PriorTrainConfig
from pipeline.training.prior_job import PriorJob
from pipeline.training.ranks import Ranks

SETTINGS = [
    "catalogue.category=category", "prior.kind=pixelcnn", "prior.width=16", "prior.layers=2", "prior.dropout=0",
    "prior.train.epochs=12",
    "prior.train.batch_size=32", "prior.train.learning_rate=0.01", "prior.train.validation=0.15",
]  # fmt: skip
KNOWN = [f"nats_per_code/{name}" for name in ("prior", "position", "unigram", "uniform")]

Command = Callable[..., dict[str, Any]]


def nats_of(result: dict[str, Any]) -> dict[str, float]:
    """Return the nats per code among a result's measures."""
    return {name: value for name, value in result["measures"].items() if name.startswith("nats_per_code/")}


def train_here(job: PriorJob, *, progress: Any) -> str:
    """Do what `train_job` does, without Ray."""
    prior_id = job.run_rank(Ranks(), line=Line(report=progress))
    assert prior_id is not None
    return prior_id


@pytest.fixture(scope="module")
def trainings() -> Iterator[list[int]]:
    """Train in this process; holds one entry for every session of Ray that would have been started."""
    started: list[int] = []

    @contextlib.contextmanager
    def no_ray(_cluster: Any, *, busy: int, settings: object) -> Iterator[None]:
        started.append(busy)
        yield

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.prior.train_job", train_here)
        patch.setattr("jobs.prior.ray_session", no_ray)
        patch.setattr("pipeline.models.bundle.export_encoder", lambda model, **options: b"not exported here")
        yield started


@pytest.fixture(scope="module")
def store_url(maker: Any, trainings: list[int], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with a release of a VQ model on `stable` and one of a VAE on `canary`."""
    store = open_store(str(tmp_path_factory.mktemp("store")))
    maker.make_vq_release(store)
    config = VAEConfig(latent_dim=maker.DIM, channels=(8, 8))
    other = save_bundle(store, build_model(config, image_size=16), config, {"size": 16}, train_key="1" * 64, card={})
    maker.make_release(store, maker.some_photos(5), run="plain", channel="canary", model_id=other)
    return store.url


@pytest.fixture
def prior(store_url: str, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command; returns its JSON object, with its text for people as `text`."""

    def run(*words: str, expect: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        code = main(["prior", f"store={store_url}", *SETTINGS, *words, "--json"])
        taken = capsys.readouterr()
        assert code == expect, taken.err
        return {**json.loads(taken.out), "text": taken.err}

    return run


@pytest.fixture
def first(prior: Command, trainings: list[int]) -> dict[str, Any]:
    """The first run, or what it answered."""
    found = prior("--run", "night", "--samples", "6")
    assert trainings[:1] == [1]
    return found


@pytest.mark.slow
def test_the_prior_knows_more_than_frequencies_and_they_more_than_nothing(first: dict[str, Any]):
    nats = {name.removeprefix("nats_per_code/"): value for name, value in nats_of(first).items()}
    assert nats["prior"] == pytest.approx(math.log(8) / 16, abs=0.1)
    assert nats["prior"] + 0.3 < nats["position"] < nats["unigram"] < nats["uniform"] == math.log(16)
    assert nats["samples"] + 0.5 < nats["independent"]
    assert (first["trained"], first["published"]) == (True, False)
    assert (first["kind"], first["by_category"], first["release"]) == ("pixelcnn", False, "vq-0123456789ab")
    counts = first["counts"]
    assert (counts["photos"], counts["items"], counts["samples"]) == (401, 401, 6)
    assert 20 < counts["held_out"] < 120
    assert first["run"] == "night"


@pytest.mark.slow
def test_cells_alone_are_less_like_photos_than_what_the_prior_draws(first: dict[str, Any], prior: Command):
    found = {name: value for name, value in first["measures"].items() if name not in nats_of(first)}
    kinds = ("samples", "independent", "held_out")
    assert set(found) == {f"{name}/{kind}" for name in ("frechet", "one_nn") for kind in kinds}
    assert found["frechet/held_out"] < found["frechet/samples"] < found["frechet/independent"] / 2
    assert found["one_nn/samples"] < 0.7 < 0.9 < found["one_nn/independent"] <= 1
    pictures = first["counts"]["held_out"] // 2
    assert first["realism"] == {"photos": pictures, "components": pictures // 5}
    shown = f"{found['frechet/samples']:.3f}, {found['one_nn/samples']:.3f}; every cell alone"
    assert f"against {pictures} held-out photos (" in first["text"]
    assert shown in first["text"]
    # Not the sheet's pictures: their number and category change nothing. Temperature and top_k do.
    sheet = prior("--run", "sheet", "--samples", "3")
    assert {name: sheet["measures"][name] for name in found} == found
    likeliest = prior("--run", "likeliest", "--top-k", "1")["measures"]
    assert likeliest["frechet/samples"] > 2 * found["frechet/samples"]
    assert likeliest["one_nn/samples"] > found["one_nn/samples"] + 0.1
    # The same pictures: to rounding, which was seen to differ between two runs on one machine.
    assert likeliest["frechet/independent"] == pytest.approx(found["frechet/independent"], rel=1e-12)


def test_a_result_from_before_realism_was_measured_is_still_shown(first: dict[str, Any]):
    old = {name: value for name, value in first.items() if name not in ("realism", "text")}
    shown = outcome_of({**old, "measures": nats_of(first)}, "this run has already finished").text.splitlines()
    assert shown[0] == "this run has already finished"
    assert len(shown) == len(outcome_of(first).text.splitlines())  # one line more, one line less
    assert "Fréchet" not in "".join(shown)


def test_views_of_an_item_count_once(maker: Any, tmp_path: Any):
    store = open_store(str(tmp_path))
    made = [maker.Photo(**{**vars(photo), "codes": np.zeros(4, int)}) for photo in maker.some_photos(60, seed=2)]
    made.sort(key=lambda photo: (photo.item_id, photo.view))
    items = maker.items_table(made, [part.name for part in maker.write_parts(store, made, maker.MODEL, "night")])
    photos = release_photos(items, PriorTrainConfig(validation=0.5), category=None)
    rows = one_an_item(photos, seed=0)
    named = np.array(photos.items["item_id"].to_pylist())
    assert photos.held_out[rows].all()
    assert sorted(named[rows]) == sorted(set(named[photos.held_out])) != sorted(named[photos.held_out])
    assert not np.array_equal(rows, one_an_item(photos, seed=1))  # not always the first view


def test_every_photo_is_judged_and_the_strange_one_is_first(store_url: str, first: dict[str, Any], maker: Any):
    table = pq.read_table(io.BytesIO(open_store(store_url).get(first["files"]["outliers"])))
    assert table.schema.equals(outliers_schema(), check_metadata=True)
    names = ("item_id", "uri", "category")
    judged = sorted(zip(*(table[name].to_pylist() for name in names), strict=True))
    assert judged == sorted((photo.item_id, photo.uri, photo.category) for photo in maker.vq_photos())
    assert table["item_id"][0].as_py() == maker.STRANGE == first["outliers"][0]["item_id"]
    nats, scores = table["nats"].to_numpy(), table["outlier_score"].to_numpy()
    assert (np.diff(nats) <= 0).all()
    assert table["nats_per_code"].to_numpy() == pytest.approx(nats / 16)
    assert scores[0] > 5 * scores[1] > 0
    assert first["outliers"] == table.slice(0, 10).to_pylist()
    assert maker.STRANGE in first["text"]


def test_pictures_are_drawn_beside_their_negative_control(store_url: str, first: dict[str, Any]):
    sheets = []
    for name in ("samples", "independent"):
        with Image.open(io.BytesIO(open_store(store_url).get(first["files"][name]))) as png:
            assert png.format == "PNG"
            assert png.size == (2 + 3 * 50, 2 + 2 * 50)  # 6 pictures of 16 x 16, three times as large
            sheets.append(np.asarray(png))
    assert not np.array_equal(*sheets)


def test_a_second_run_finds_the_prior_and_starts_no_ray(first: dict[str, Any], prior: Command, trainings: list[int]):
    before = len(trainings)
    again = prior("--run", "next", "--top-k", "1", "--samples", "2")
    assert (again["reason"], again["trained"], again["prior_id"]) == ("prior found", False, first["prior_id"])
    assert [again["measures"][name] for name in KNOWN] == [first["measures"][name] for name in KNOWN]
    assert again["measures"]["nats_per_code/samples"] < first["measures"]["nats_per_code/samples"]
    # The same name again: what it answered stands, and other settings are refused.
    assert prior("--run", "night", "--samples", "6")["reason"] == "this run has already finished"
    assert "samples: the run has 6, now 7" in prior("--run", "night", "--samples", "7", expect=2)["error"]
    assert len(trainings) == before


@pytest.mark.slow
def test_a_run_keeps_the_release_it_began_with(prior: Command, store_url: str, maker: Any):
    """Stopped before its end, then the channel moves on."""

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    store = open_store(store_url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.prior.write_results", stopped)
        vq = json.loads(store.get("releases/vq-0123456789ab/manifest.json"))["model_id"]
        maker.make_release(store, maker.vq_photos(40), run="one", channel="weekly", model_id=vq, model_kind="vqvae")
        assert prior("--run", "moved", "--channel", "weekly", expect=6)["run"] == "moved"
    maker.make_release(store, maker.vq_photos(50), run="two", channel="weekly", model_id=vq, model_kind="vqvae")
    found = prior("--run", "moved", "--channel", "weekly")
    assert (found["release"], found["counts"]["photos"]) == ("one-0123456789ab", 41)
    assert prior("--run", "later", "--channel", "weekly")["release"] == "two-0123456789ab"


@pytest.mark.slow
def test_by_category_every_category_has_a_row(first: dict[str, Any], prior: Command, store_url: str, maker: Any):
    told = prior("--run", "told", "--samples", "7", "prior.by_category=true")
    assert told["prior_id"] != first["prior_id"]
    assert load_prior(open_store(store_url), told["prior_id"]).prior.labels == ("Hats", "Shoes")
    assert (told["sample_rows"], told["counts"]["samples"]) == (["Hats", "Shoes"], 6)
    with Image.open(io.BytesIO(open_store(store_url).get(told["files"]["samples"]))) as png:
        assert png.size == (2 + 3 * 50, 2 + 2 * 50)
    assert told["outliers"][0]["item_id"] == maker.STRANGE
    # Who knows the category has four codes to choose from, not eight.
    assert told["measures"]["nats_per_code/prior"] == pytest.approx(math.log(4) / 16, abs=0.1)
    assert told["measures"]["nats_per_code/prior"] < first["measures"]["nats_per_code/prior"] - 0.01
    hats = prior("--run", "hats", "--samples", "3", "--category", "Hats", "prior.by_category=true")
    assert (hats["sample_rows"], hats["counts"]["samples"], hats["trained"]) == ([], 3, False)


@pytest.mark.slow
def test_nothing_held_out_leaves_nothing_to_compare_by(prior: Command):
    found = prior("--run", "all", "prior.train.validation=0", "prior.train.epochs=1", "--samples", "1")
    assert set(found["measures"]) == {"nats_per_code/samples", "nats_per_code/independent"}
    assert "no photo is held out" in found["text"]
    assert "was not measured: 0 photos are held out (one an item); at least 50 are needed" in found["text"]


@pytest.mark.slow
def test_a_model_that_draws_features_has_outliers_and_no_pictures(prior: Command, store_url: str, maker: Any):
    store = open_store(store_url)
    base = json.loads(store.get("releases/vq-0123456789ab/manifest.json"))["model_id"]
    values = json.loads(store.get(f"models/{base}/config.json"))["model"]
    config = VQVAEConfig.model_validate({**values, "target": HogTarget()})
    model = build_model(config, image_size=16)
    model_id = save_bundle(store, model, config, {"size": 16}, train_key="2" * 64, card={})
    maker.make_release(store, maker.vq_photos(), run="hog", channel="hog", model_id=model_id, model_kind="vqvae")
    found = prior("--channel", "hog", "prior.train.epochs=1")
    assert set(found["files"]) == {"outliers"}
    assert "draws no pictures" in found["text"]
    assert found["measures"] == nats_of(found)
    assert set(found["realism"]) == {"left_out"}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--channel", "canary"], 2, "release plain-0123456789ab is of a 'vae' model, whose latents have no codes"),
        (["--channel", "nightly"], 3, "channel 'nightly' on .* has no release yet"),
        (["--release", "gone"], 3, "no release 'gone'"),
        (["--temperature", "0"], 2, "temperature is 0.0; it must be above 0"),
        (["--top-k", "17"], 2, "a codebook of 16 codes has 1..16"),
        (["--samples", "0"], 2, "--samples is 0"),
        (["--category", "Hats"], 2, "add prior.by_category=true"),
        (["--category", "Bags", "prior.by_category=true"], 2, "--category is 'Bags'; the photos have: Hats, Shoes"),
        (["prior.by_category=true", "catalogue.category=null"], 2, "catalogue.category is not set"),
        (["catalogue.category=[a]"], 2, r"catalogue.category is \['a'\]"),
        (["prior.train.split_by=brand"], 2, "prior.train.split_by is 'brand', and the release has no such column"),
        (["train.epochs=3"], 2, "write 'prior.train.epochs=3'"),
        (["prior.train.epoch=3"], 2, "did you mean 'prior.train.epochs'"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(
    prior: Command, store_url: str, words: list[str], code: int, said: str
):
    found = prior("--run", "wrong", *words, expect=code)
    assert found["exit_code"] == code
    assert re.search(said, found["error"]), found["error"]
    assert not list(open_store(store_url).list("runs/wrong/"))


def test_codes_of_two_levels_are_not_read(maker: Any, store_url: str):
    store = open_store(store_url)
    manifest = read_manifest(store, "vq-0123456789ab")
    bundle = load_bundle(store, manifest.model_id)
    assert codes_of(manifest, bundle) == 16
    two = replace(bundle, model=build_model(VQVAE2Config(), image_size=16))
    with pytest.raises(ConfigError, match="codes lie on two levels; priors do not read these yet"):
        codes_of(manifest, two)

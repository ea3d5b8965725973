"""Nights of models that learn from a teacher: its bundle is made first, its features are parts, all in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import jobs.computing
from jobs.__main__ import main
from pipeline.encoding import ShardResult
from pipeline.images import ImagesConfig, decode
from pipeline.models import load_bundle
from pipeline.models.conditions import condition_of
from pipeline.reader import open_release
from pipeline.storage import Store, open_store

pytestmark = pytest.mark.slow

PHOTOS = 40
TEACHER = "{kind: descriptor, cell: 4, read_out: {dims: 6}}"
TRAIN = ["images.size=16", "train.epochs=1", "train.batch_size=16", "train.validation=0.2", "encode.actors=1"]


@pytest.fixture
def night(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stages_here: Any
) -> Callable[..., Any]:
    """Run a command on a shop of photos of which one is broken; return its JSON object."""
    stages_here.run_stages_here(monkeypatch)
    rows = []
    for number in range(PHOTOS):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append(f"item-{number:02},{number}.png,{'bag' if number % 2 else 'hat'}\n")
    (tmp_path / "7.png").write_bytes(b"no picture")
    (tmp_path / "catalogue.csv").write_text("item_id,image,category\n" + "".join(rows))

    def run(name: str, *words: str, expect: int = 0) -> dict[str, Any]:
        given = [f"store={tmp_path / 'store'}", f"catalogue.source={tmp_path / 'catalogue.csv'}", *TRAIN, *words]
        code = main([name, "--json", *given])
        out = capsys.readouterr()
        assert code == expect, out.err
        return dict(json.loads(out.out)) if out.out else {"error": out.err}

    return run


def store_of(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.mark.parametrize(
    "words",
    [
        ["model.kind=vae", "model.latent_dim=3", f"model.sees={{kind: features, teacher: {TEACHER}, hidden: [8]}}"],
        ["model.kind=distilled", "model.latent_dim=3", "model.channels=[4, 8]", f"model.teacher={TEACHER}"],
        ["model.kind=ridge", "model.sees={kind: descriptor, read_out: {dims: 5}}", f"model.teacher={TEACHER}"],
    ],
    ids=["vae_of_features", "distilled", "ridge"],
)
def test_the_teacher_is_made_first_and_every_photo_has_its_own_features(
    night: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    jobs_run, train_job = [], jobs.computing.train_job
    monkeypatch.setattr(jobs.computing, "train_job", lambda job, **rest: jobs_run.append(job) or train_job(job, **rest))
    found = night("refresh", "--run", "first", *words)
    assert found["published"], found
    store = store_of(tmp_path)
    of_teacher, of_model = jobs_run
    assert of_teacher.model.kind == "descriptor"
    teacher = load_bundle(store, str(of_model.teacher))
    bundle = load_bundle(store, found["model_id"])
    assert teacher.model_id in json.dumps(bundle.config.model_dump(mode="json"))
    photos = 0
    for part in of_model.pixels:
        pixels = pq.read_table(tmp_path / "store" / part.part)["pixels"].to_pylist()
        latents = pq.read_table(tmp_path / "store" / part.features.part)["mean"].to_pylist()
        images = np.stack([np.frombuffer(pixels[row], np.uint8).reshape(16, 16, 3) for row in part.rows])
        said = teacher.model.encode(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).mean.numpy()
        read = np.array([latents[row] for row in part.features.rows], np.float32)
        np.testing.assert_allclose(read, said, rtol=1e-4, atol=1e-5)
        shifted = np.roll(read, 1, axis=0)  # what a row too few or too many would read
        assert np.abs(shifted - said).max() > 0.01
        photos += len(read)
    assert photos == PHOTOS - 1, "the broken photo is in quarantine"
    again = night("refresh", "--run", "second", *words)
    assert again["reason"] == "nothing to do"
    assert len(jobs_run) == 2


def test_a_teacher_sees_photos_in_its_own_size_and_a_model_of_its_features_holds_it(
    night: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs_run, train_job = [], jobs.computing.train_job
    monkeypatch.setattr(jobs.computing, "train_job", lambda job, **rest: jobs_run.append(job) or train_job(job, **rest))
    fine = ["model.kind=descriptor", "model.cell=4", "model.read_out={dims: 6}", "images.size=24"]
    named = night("train", "--run", "teacher", *fine)["model_id"]
    store = store_of(tmp_path)
    teacher = load_bundle(store, named).model
    student = ["model.kind=distilled", "model.latent_dim=3", "model.channels=[4, 8]", f"model.teacher={named}"]
    found = night("refresh", "--run", "student", *student)
    assert found["published"], found
    assert load_bundle(store, found["model_id"]).image_size == 16
    for part in jobs_run[-1].pixels:
        table = pq.read_table(tmp_path / "store" / part.part)
        latents = pq.read_table(tmp_path / "store" / part.features.part)["mean"].to_pylist()
        names = [f"{int(table['item_id'][int(row)].as_py()[-2:])}.png" for row in part.rows]
        images = np.stack([decode((tmp_path / name).read_bytes(), ImagesConfig(size=24)) for name in names])
        said = teacher.encode(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).mean.numpy()
        read = np.array([latents[row] for row in part.features.rows], np.float32)
        np.testing.assert_allclose(read, said, rtol=1e-4, atol=1e-5)
    words = ["model.kind=vqvae", "model.codes=parts", "model.parts=2", "model.quantizer={kind: fsq, levels: [3, 3]}"]
    made = night("train", "--run", "codes", *words, f"model.sees={{kind: features, teacher: {named}, hidden: [8]}}")
    bundle = load_bundle(store, made["model_id"])
    assert (bundle.image_size, bundle.images["size"], bundle.model.num_latent_codes) == (24, 24, 2)
    assert jobs_run[-1].images["size"] == 16
    photos = torch.randint(0, 256, (3, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(bundle.model.front.teacher.encode(photos).mean, teacher.encode(photos).mean)


def test_a_night_that_trains_on_features_asks_for_every_photo_once(
    night: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the teacher is fitted, so no pixels are stored: the encoding goes on from what it said for the
    training. A photo that comes later is shown to it."""
    fetched: list[int] = []
    run_shards: Any = vars(jobs.computing)["run_shards"]

    def counted(*given: Any, **rest: Any) -> list[ShardResult]:
        results = run_shards(*given, **rest)
        fetched.append(sum(result.fetched for result in results))
        return results

    monkeypatch.setattr(jobs.computing, "run_shards", counted)
    teacher = "{kind: descriptor, read_out: {dims: null}}"
    words = ["model.kind=cvae", "model.latent_dim=3", "catalogue.category=category", "encode.batch_size=16",
             f"model.sees={{kind: features, teacher: {teacher}, hidden: [8]}}"]  # fmt: skip
    found = night("refresh", "--run", "first", *words)
    assert fetched == [PHOTOS, 0]
    release = open_release(str(tmp_path / "store"))
    bundle = load_bundle(store_of(tmp_path), found["model_id"])

    def latents(number: int) -> np.ndarray:
        return np.asarray(release.latents([f"item-{number:02}"])["mean"][0].as_py(), np.float32)

    def said(number: int, category: str | None) -> np.ndarray:
        photo = decode((tmp_path / f"{number}.png").read_bytes(), ImagesConfig(size=16)).transpose(2, 0, 1)
        told = condition_of(bundle.model.labels, [category])
        return bundle.model.encode(torch.from_numpy(photo.copy())[None], told).mean[0].numpy()

    for number in (0, 1, 6, 8, PHOTOS - 1):  # before and after the broken one
        category = "bag" if number % 2 else "hat"
        np.testing.assert_allclose(latents(number), said(number, category), rtol=1e-4, atol=1e-5)
        assert np.abs(latents(number) - said(number, None)).max() > 1e-3
    with (tmp_path / "catalogue.csv").open("a") as handle:
        handle.write("item-99,3.png,bag\n")
    assert night("refresh", "--run", "second", *words)["published"]
    assert fetched == [PHOTOS, 0, 1]
    release.refresh()
    np.testing.assert_allclose(latents(99), latents(3), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr("pipeline.encoding.actors.features_read", lambda _: None)  # as it was before
    night("refresh", "--run", "other", f"store={tmp_path / 'other'}", *words)
    assert fetched[3:] == [PHOTOS + 1, PHOTOS]

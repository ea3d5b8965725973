"""Encoding through Ray Data: the same parts as without Ray, also when actors die or the store is down."""

from __future__ import annotations

import copy
import io
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from pipeline.catalogue import CatalogueConfig
from pipeline.encoding import (
    Asked,
    EncodeConfig,
    EncodeJob,
    Shard,
    ShardResult,
    ask_again,
    assign_shards,
    build_shards,
    collect_rows,
    driver,
    make_worker,
    run_shards,
    settle,
    split_done,
)
from pipeline.errors import Conflict, Unavailable
from pipeline.images import ImagesConfig, transform_id
from pipeline.models import MODELS, build_model
from pipeline.models.bundle import save_bundle
from pipeline.parts import hashed_part, read_part
from pipeline.schema import plan_schema
from pipeline.storage import Body, Files, Store, open_store

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("no_onnx")]

IMAGES = ImagesConfig(size=32)
PHOTOS, SHARD_ROWS = 66, 11
REFUSED = {5: "truncated", 17: "missing", 40: "not_an_image"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random pictures as JPEG; one is cut off, one is missing, one is text."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for n in range(PHOTOS):
        sink = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (50, 40, 3), np.uint8)).save(sink, "JPEG")
        data = {5: sink.getvalue()[:300], 40: b"no picture"}.get(n, sink.getvalue())
        if n != 17:
            (folder / f"{n:03d}.jpg").write_bytes(data)
    return folder


@pytest.fixture
def make_job(folder: Path, tmp_path: Path) -> Callable[..., EncodeJob]:
    """Return a job on a store of its own, with a bundle of an untrained model."""

    def make(name: str = "store", files: Files | None = None, **encode: Any) -> EncodeJob:
        store = open_store(str(tmp_path / name))
        torch.manual_seed(0)
        config = MODELS["vae"][0]()
        model = build_model(config, image_size=IMAGES.size)
        images = IMAGES.model_dump(mode="json")
        model_id = save_bundle(store, model.eval(), config, images, train_key="k", card={})
        return EncodeJob(
            store=store,
            files=files or Files(),
            catalogue=CatalogueConfig(source=str(folder)),
            images=IMAGES,
            encode=EncodeConfig(**{"batch_size": 8, "actors": 2, "fetch_threads": 4, **encode}),
            model_id=model_id,
            transform_id=transform_id(IMAGES),
        )

    return make


def make_plan(folder: Path, shard_rows: int = SHARD_ROWS) -> pa.Table:
    given = {
        "item_id": [f"i{n:03d}" for n in range(PHOTOS)], "uri": [str(folder / f"{n:03d}.jpg") for n in range(PHOTOS)],
        "view": [0] * PHOTOS, "token": [f"version:{n}" for n in range(PHOTOS)], "status": ["added"] * PHOTOS,
        "retried": [False] * PHOTOS,
    }  # fmt: skip
    schema = plan_schema([])
    columns = [pa.array(given.get(field.name, [None] * PHOTOS), field.type) for field in schema]
    return assign_shards(pa.Table.from_arrays(columns, schema=schema), image_size=IMAGES.size, shard_rows=shard_rows)


def shards_of(job: EncodeJob, plan: pa.Table) -> list[Shard]:
    return build_shards(plan, transform_id=job.transform_id, model_id=job.model_id, precision="fp32")


def parts_of(store: Store) -> dict[str, bytes]:
    return {e.name: store.get(e.name) for prefix in ("pixels/", "latents/") for e in store.list(prefix)}


def plainly(job: EncodeJob, plan: pa.Table) -> dict[str, bytes]:
    """The oracle: one worker in this process, shard after shard."""
    worker = make_worker(job)
    for shard in shards_of(job, plan):
        worker(shard)
    return parts_of(job.store)


def asked_again(job: EncodeJob, plan: pa.Table) -> Asked:
    """What is left of a plan after a run: photos that no part holds are asked for in shards of their own."""

    def build(rows: pa.Table, retry_of: str) -> list[Shard]:
        return build_shards(
            rows, transform_id=job.transform_id, model_id=job.model_id, precision="fp32", retry_of=retry_of
        )

    return ask_again(job.store, plan, build, transform_id=job.transform_id, run="again")


def check_everything_is_there(job: EncodeJob, plan: pa.Table, shards: list[Shard], results: list[ShardResult]) -> None:
    settled = settle(Asked(plan, shards), results, None)
    items, refused = collect_rows(job.store, settled.rows, settled.shards, results)
    assert items.num_rows == PHOTOS - len(REFUSED)
    assert {int(row["item_id"][1:]): row["reason"] for row in refused.to_pylist()} == REFUSED


@pytest.mark.parametrize("stages", [{"stages": "one"}, {"stages": "two", "actors": 1, "decoders": 1}])
@pytest.mark.usefixtures("ray_session")
def test_one_part_a_shard_and_the_same_bytes_as_without_ray(
    folder: Path, make_job: Callable[..., EncodeJob], stages: dict[str, Any]
) -> None:
    job, plan = make_job(**stages), make_plan(folder)
    shards = shards_of(job, plan)
    said: list[tuple[int, int]] = []
    seen: set[int] = set()

    def on_result(result: ShardResult, done: int, total: int) -> None:
        said.append((done, total))
        seen.add(result.number)

    results = run_shards(shards, job, on_result=on_result)
    assert said == [(n + 1, 6) for n in range(6)]
    assert seen == set(range(6))
    assert [r.number for r in results] == list(range(6))
    assert sum(r.fetched for r in results) == sum(r.photos for r in results) == PHOTOS
    parts = parts_of(job.store)
    assert len(parts) == 2 * len(shards) == 12
    assert parts == plainly(make_job("plain"), plan)
    check_everything_is_there(job, plan, shards, results)
    left = asked_again(job, plan)
    again, todo = split_done(left.shards, job.store)
    assert [shard.photos["item_id"].to_pylist() for shard in todo] == [["i017"]]  # missing now, and maybe not later
    found = [[hashed_part(job.store, part) for part in (r.pixels, r.latents) if part] for r in again]
    assert found == [[r.pixels, r.latents] for r in results]


@pytest.mark.usefixtures("ray_session")
def test_a_killed_actor_loses_and_doubles_nothing(
    folder: Path, make_job: Callable[..., EncodeJob], tmp_path: Path
) -> None:
    marker = tmp_path / "killed"

    class KillOnce(Files):
        def fetch(self, uri: str, **wanted: Any) -> Body:
            if uri.endswith("030.jpg") and not marker.exists():
                marker.touch()
                os._exit(1)
            return super().fetch(uri, **wanted)

    job, plan = make_job(files=KillOnce()), make_plan(folder)
    shards = shards_of(job, plan)
    results = run_shards(shards, job)
    assert marker.exists()
    assert [r.number for r in results] == list(range(6))
    assert parts_of(job.store) == plainly(make_job("plain"), plan)
    check_everything_is_there(job, plan, shards, results)


@pytest.mark.usefixtures("ray_session")
def test_a_store_that_is_down_is_told_as_itself_and_the_next_run_goes_on(
    folder: Path, make_job: Callable[..., EncodeJob]
) -> None:
    job, plan = make_job(), make_plan(folder)
    shards = shards_of(job, plan)
    doomed = shards[5].pixels_name

    class Down(type(job.store)):  # type: ignore[misc]
        def put_if_absent(self, name: str, data: bytes | memoryview) -> bool:
            if name == doomed:
                raise Unavailable("503 Slow Down from the store")
            return bool(super().put_if_absent(name, data))

    down = copy.copy(job.store)
    down.__class__ = Down
    with pytest.raises(Unavailable, match="503 Slow Down") as caught:
        run_shards(shards, replace(job, store=down))
    assert caught.value.exit_code == 6
    assert "in an encoding actor" in caught.value.__notes__[0]
    left = asked_again(job, plan)
    done, todo = split_done(left.shards, job.store)
    assert done  # what was finished is kept
    results = sorted([*done, *run_shards(todo, job)], key=lambda result: result.number)  # the same store, up again
    assert sum(r.fetched for r in results) == sum(shard.photos.num_rows for shard in todo)
    assert parts_of(job.store) == plainly(make_job("plain"), plan)
    check_everything_is_there(job, left.rows, left.shards, results)


@pytest.mark.usefixtures("ray_session")
def test_what_the_caller_raises_stops_the_run_and_frees_the_actors(
    folder: Path, make_job: Callable[..., EncodeJob]
) -> None:
    import ray

    def lost(result: ShardResult, done: int, total: int) -> None:
        raise Conflict("another attempt took over")

    job = make_job()
    with pytest.raises(Conflict, match="took over"):
        run_shards(shards_of(job, make_plan(folder)), job, on_result=lost)
    deadline = time.monotonic() + 240
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_photo_that_always_kills_its_actor_is_quarantined_and_the_run_goes_on(
    folder: Path, make_job: Callable[..., EncodeJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own default is to try for ever."""

    class Deadly(Files):
        def fetch(self, uri: str, **wanted: Any) -> Body:
            if uri.endswith("030.jpg"):
                signal.raise_signal(signal.SIGSEGV)  # to this thread: it does not run on
            return super().fetch(uri, **wanted)

    monkeypatch.setattr(driver, "MOST_BEGINS", 1)
    job, plan = make_job(files=Deadly()), make_plan(folder, shard_rows=2)
    shards = shards_of(job, plan)[14:17]  # photos 28 to 33
    results = run_shards(shards, job)
    assert [(result.photos, result.refused) for result in results] == [(2, 0), (2, 1), (2, 0)]
    guilty = read_part(job.store, shards[1].pixels_name).to_pylist()[0]
    assert (guilty["item_id"], guilty["stage"], guilty["reason"]) == ("i030", "decode", "crashed")
    assert "SIGSEGV" in guilty["detail"]
    plainly(make_job("plain"), plan)
    clean = open_store(make_job("plain").store.url)
    mean = [read_part(store, shards[1].latents_name or "")["mean"].to_pylist() for store in (job.store, clean)]
    assert mean[0] == mean[1][1:]
    assert split_done(shards, job.store)[1] == []  # and nobody dies for it again


def seconds_for_an_actor_to_start() -> int:
    """Return more than one that encodes takes to start, on a machine as busy as this one is now."""

    import ray

    class Small:
        def ready(self) -> None: ...

    began = time.monotonic()
    actor = ray.remote(num_cpus=1)(Small).remote()
    ray.get(actor.ready.remote())
    ray.kill(actor)
    return max(12, int(8 * (time.monotonic() - began)))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_photo_that_never_comes_is_a_temporary_failure(folder: Path, make_job: Callable[..., EncodeJob]) -> None:
    class Silent(Files):
        def fetch(self, uri: str, **wanted: Any) -> Body:
            if uri.endswith("030.jpg"):
                time.sleep(600)
            return super().fetch(uri, **wanted)

    patience = seconds_for_an_actor_to_start()
    job = make_job(files=Silent(), no_progress_s=patience)
    with pytest.raises(Unavailable, match=rf"no shard ended in {patience} seconds .*shard 2 of 11 photos"):
        run_shards(shards_of(job, make_plan(folder)), job)


def test_no_shards_need_no_cluster(make_job: Callable[..., EncodeJob]) -> None:
    assert run_shards([], make_job()) == []

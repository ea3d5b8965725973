"""Shards that kill their process: the photos at fault become quarantine rows, in parts of the same names."""

from __future__ import annotations

import io
import os
import signal
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

pytest.importorskip("ray")

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RaySystemError

from pipeline.catalogue import CatalogueConfig
from pipeline.encoding import EncodeConfig, EncodeJob, Shard, assign_shards, build_shards, collect_rows, split_done
from pipeline.encoding.actors import ShardWorker, make_worker
from pipeline.encoding.bisecting import Death
from pipeline.encoding.suspects import Place, most_killers, settle_suspect
from pipeline.encoding.trial import Outcome, Task, death_of, try_shard
from pipeline.errors import CodebooksError, Conflict, Forbidden, Unavailable
from pipeline.images import ImagesConfig, transform_id
from pipeline.models import MODELS, build_model
from pipeline.models.bundle import save_bundle
from pipeline.parts import read_part
from pipeline.schema import plan_schema
from pipeline.storage import Body, Files, open_store

IMAGES = ImagesConfig(size=16)
PHOTOS = 12
CRASH = Death("crashed", "it was ended by SIGSEGV")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for n in range(PHOTOS):
        sink = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (20, 20, 3), np.uint8)).save(sink, "JPEG")
        (folder / f"{n:03d}.jpg").write_bytes(sink.getvalue())
    return folder


@pytest.fixture
def make_job(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., EncodeJob]:
    monkeypatch.setattr("pipeline.models.bundle.export_encoder", lambda model, **options: b"not exported here")

    def make(files: Files | None = None, url: str | None = None, **encode: Any) -> EncodeJob:
        store = open_store(url or f"memory://{uuid.uuid4().hex}")
        torch.manual_seed(0)
        config = MODELS["vae"][0](latent_dim=4, channels=(4, 8))
        model = build_model(config, image_size=IMAGES.size)
        model_id = save_bundle(store, model.eval(), config, IMAGES.model_dump(mode="json"), train_key="k", card={})
        return EncodeJob(
            store=store,
            files=files or Files(),
            catalogue=CatalogueConfig(source=str(folder)),
            images=IMAGES,
            encode=EncodeConfig(batch_size=4, actors=1, fetch_threads=2, **encode),
            model_id=model_id,
            transform_id=transform_id(IMAGES),
        )

    return make


def make_plan(folder: Path, **columns: list[Any]) -> pa.Table:
    given = {
        "item_id": [f"i{n:03d}" for n in range(PHOTOS)], "uri": [str(folder / f"{n:03d}.jpg") for n in range(PHOTOS)],
        "view": [0] * PHOTOS, "token": [f"version:{n}" for n in range(PHOTOS)], "status": ["added"] * PHOTOS,
        "retried": [False] * PHOTOS, **columns,
    }  # fmt: skip
    schema = plan_schema([])
    made = [pa.array(given.get(field.name, [None] * PHOTOS), field.type) for field in schema]
    return assign_shards(pa.Table.from_arrays(made, schema=schema), image_size=IMAGES.size, encode_all=True)


def only_shard(job: EncodeJob, plan: pa.Table) -> Shard:
    [shard] = build_shards(plan, transform_id=job.transform_id, model_id=job.model_id, precision="fp32")
    return shard


class InThisProcess:
    """Does what `try_shard` does without a process: deaths are said, not died."""

    def __init__(self, worker: ShardWorker, deadly: dict[str, Death]) -> None:
        self.worker = worker
        self.deadly = deadly

    def __call__(self, shard: Shard, task: Task) -> Outcome:
        spared = {killer.row for killer in shard.killers}
        items = [item for row, item in enumerate(shard.photos["item_id"].to_pylist()) if row not in spared]
        death = next((self.deadly[item] for item in items if item in self.deadly), None)
        if death is not None:
            return Outcome(death=death)
        if task == "write":
            return Outcome(result=self.worker(shard))
        self.worker.rehearse(shard)
        return Outcome()


def test_killers_become_rows_of_the_same_parts(folder: Path, make_job: Callable[..., EncodeJob]) -> None:
    job, plan = make_job(), make_plan(folder)
    shard = only_shard(job, plan)
    before = {entry.name for entry in job.store.list("pixels/")}
    deadly = {"i003": CRASH, "i004": Death("out_of_memory", "Ray's memory monitor killed it")}
    result, convicted = settle_suspect(shard, InThisProcess(make_worker(job), deadly), most=20)
    assert (convicted, result.refused, result.photos, before) == (2, 2, PHOTOS, set())
    assert result.pixels is not None
    assert (result.pixels.name, result.pixels.rows) == (shard.pixels_name, PHOTOS)
    said = read_part(job.store, shard.pixels_name).to_pylist()
    assert {row["item_id"]: (row["stage"], row["reason"]) for row in said if row["stage"]} == {
        "i003": ("decode", "crashed"),
        "i004": ("decode", "out_of_memory"),
    }
    assert "SIGSEGV" in said[3]["detail"]
    items, refused = collect_rows(job.store, plan, [shard], [result])
    assert items["item_id"].to_pylist() == [f"i{n:03d}" for n in range(PHOTOS) if n not in (3, 4)]
    assert refused["reason"].to_pylist() == ["crashed", "out_of_memory"]
    # The part is an ordinary one: found again, nothing is left to do, nobody dies twice for it.
    done, todo = split_done([shard], job.store)
    assert (todo, [(made.photos, made.refused) for made in done]) == ([], [(PHOTOS, 2)])
    # And the other photos' latents are those of a shard without a killer.
    other = make_job()
    make_worker(other)(only_shard(other, plan))
    mean = "mean"
    whole = read_part(other.store, only_shard(other, plan).latents_name or "", [mean])[mean].to_pylist()
    ours = read_part(job.store, shard.latents_name or "", [mean])[mean].to_pylist()
    assert ours == [row for n, row in enumerate(whole) if n not in (3, 4)]


def test_an_innocent_shard_is_done_at_the_first_try(folder: Path, make_job: Callable[..., EncodeJob]) -> None:
    job = make_job()
    result, convicted = settle_suspect(only_shard(job, make_plan(folder)), InThisProcess(make_worker(job), {}), most=20)
    assert (convicted, result.refused) == (0, 0)


def test_a_shard_that_only_dies_as_a_whole_blames_no_photo(folder: Path, make_job: Callable[..., EncodeJob]) -> None:
    job = make_job()
    tries: list[int] = []

    def too_much(shard: Shard, task: Task) -> Outcome:
        tries.append(shard.photos.num_rows)
        return Outcome(death=Death("out_of_memory", "SIGKILL")) if shard.photos.num_rows > 6 else Outcome()

    with pytest.raises(Unavailable, match=r"no photo alone does.*encode\.shard_rows"):
        settle_suspect(only_shard(job, make_plan(folder)), too_much, most=20)
    assert tries.count(PHOTOS) == 3
    assert list(job.store.list("pixels/")) == []


def test_an_error_is_no_death(folder: Path, make_job: Callable[..., EncodeJob]) -> None:
    job = make_job()
    with pytest.raises(Forbidden, match="403"):
        settle_suspect(
            only_shard(job, make_plan(folder)), lambda _shard, _task: Outcome(error=Forbidden("403")), most=20
        )


def test_a_share_of_a_large_stage_may_be_convicted() -> None:
    assert [most_killers(photos) for photos in (1, 2000, 100_000)] == [20, 20, 1000]


def test_a_kept_photo_that_kills_the_encoder_is_refused_in_the_latents_part(
    folder: Path, make_job: Callable[..., EncodeJob]
) -> None:
    """Its pixels part says that it is usable and is never written again."""
    job = make_job()
    fetched = only_shard(job, make_plan(folder))
    make_worker(replace(job, model_id=None))(replace(fetched, latents_name=None, latents_key=None))
    plan = make_plan(
        folder,
        status=["same"] * PHOTOS,
        digest=["d"] * PHOTOS,
        pixels_part=[fetched.pixels_name] * PHOTOS,
        pixels_row=list(range(PHOTOS)),
    )
    shard = only_shard(job, plan)
    assert shard.from_pixels == fetched.pixels_name
    result, convicted = settle_suspect(shard, InThisProcess(make_worker(job), {"i007": CRASH}), most=20)
    assert (convicted, result.refused) == (1, 1)
    items, refused = collect_rows(job.store, plan, [shard], [result])
    assert items["pixels_row"].to_pylist() == [n for n in range(PHOTOS) if n != 7]
    assert [(row["item_id"], row["stage"], row["reason"]) for row in refused.to_pylist()] == [
        ("i007", "encode", "crashed")
    ]


def test_a_photo_that_kills_the_encoder_after_its_pixels_were_written_is_refused_too(
    folder: Path, make_job: Callable[..., EncodeJob]
) -> None:
    """As on a night that trains: the pixels stage wrote the part, the encode stage dies of a photo in it."""
    job, plan = make_job(), make_plan(folder)
    shard = only_shard(job, plan)
    make_worker(replace(job, model_id=None))(replace(shard, latents_name=None, latents_key=None))
    before = job.store.get(shard.pixels_name)
    result, _ = settle_suspect(shard, InThisProcess(make_worker(job), {"i002": CRASH, "i011": CRASH}), most=20)
    assert (result.refused, result.fetched) == (2, 0)
    items, refused = collect_rows(job.store, plan, [shard], [result])
    assert items["item_id"].to_pylist() == [f"i{n:03d}" for n in range(PHOTOS) if n not in (2, 11)]
    assert refused.select(["item_id", "stage", "reason"]).to_pylist() == [
        {"item_id": item, "stage": "encode", "reason": "crashed"} for item in ("i002", "i011")
    ]
    assert job.store.get(shard.pixels_name) == before


# --- one real process


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (-9, "out_of_memory", "SIGKILL"),
        (-11, "crashed", "SIGSEGV"),
        (-6, "crashed", "SIGABRT"),
        (1, "crashed", "code 1"),
    ],
)
def test_an_exit_code_tells_how_a_process_died(code: int, reason: str, words: str) -> None:
    death = death_of(code)
    assert (death.reason, words in death.detail) == (reason, True)


@pytest.mark.slow
def test_a_process_of_its_own_tells_death_from_work_and_from_errors(
    folder: Path, make_job: Callable[..., EncodeJob], tmp_path: Path
) -> None:
    class Deadly(Files):
        def fetch(self, uri: str, **wanted: Any) -> Body:
            if uri.endswith("005.jpg"):
                signal.raise_signal(signal.SIGSEGV)  # to this thread: it does not run on
            if uri.endswith("007.jpg"):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().fetch(uri, **wanted)

    job = make_job(Deadly(), url=str(tmp_path / "store"))
    shard = only_shard(job, make_plan(folder))

    def alone(*rows: int) -> Shard:
        return replace(shard, photos=shard.photos.take(pa.array(rows)).combine_chunks())

    assert try_shard(job, alone(4, 5), "rehearse").death == death_of(-signal.SIGSEGV)
    assert try_shard(job, alone(7), "rehearse").death == death_of(-signal.SIGKILL)
    assert list(job.store.list("pixels/")) == []
    lived = try_shard(job, alone(0, 1), "write")
    assert lived.result is not None
    assert (lived.result.photos, lived.death, lived.error) == (2, None, None)
    assert isinstance(try_shard(replace(job, model_id="0" * 64), alone(0), "rehearse").error, CodebooksError)


# --- where it runs


class FakeRay:
    """Stands for Ray: gives the answers of a list, or raises them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: list[Any]) -> None:
        self.answers = answers
        self.asked: dict[str, Any] = {}
        monkeypatch.setattr(ray, "remote", lambda _function: self)
        monkeypatch.setattr(ray, "get", self.get)

    def options(self, **asked: Any) -> FakeRay:
        self.asked = asked
        return self

    def remote(self, *_arguments: Any) -> None:
        return None

    def get(self, _reference: None) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_superseded_attempt_tries_nothing_more(
    folder: Path, make_job: Callable[..., EncodeJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> None:
        raise Conflict("attempt 2 has taken over")

    job = make_job()
    fake = FakeRay(monkeypatch, [Outcome()])
    with pytest.raises(Conflict):
        Place(job, 0.5, check=check)(only_shard(job, make_plan(folder)), "write")
    assert len(fake.answers) == 1


def test_a_machine_that_goes_away_is_no_death(
    folder: Path, make_job: Callable[..., EncodeJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job()
    shard = only_shard(job, make_plan(folder))
    lost = NodeDiedError("its node died")
    fake = FakeRay(monkeypatch, [lost, lost, Outcome()])
    assert Place(job, 0.5)(shard, "rehearse") == Outcome()
    assert fake.asked == {"num_cpus": 0.5, "num_gpus": None, "max_retries": 0}
    FakeRay(monkeypatch, [lost, OutOfMemoryError("95 % of memory")])
    found = Place(job, 0.5)(shard, "rehearse").death
    assert found is not None
    assert found.reason == "out_of_memory"
    FakeRay(monkeypatch, [lost, lost, lost])
    found = Place(job, 0.5)(shard, "rehearse").death
    assert found is not None
    assert "machine went away 3 times" in found.detail
    FakeRay(monkeypatch, [RaySystemError("No module named 'pipeline.encoding'")])
    with pytest.raises(CodebooksError, match="error in code") as caught:
        Place(job, 0.5)(shard, "rehearse")
    assert caught.value.exit_code == 1

"""What Ray Data's processes do with blocks, without Ray: results, suspects and errors, in one stage and in two."""

from __future__ import annotations

import io
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from pipeline.boards import BeginCounter
from pipeline.catalogue import CatalogueConfig
from pipeline.encoding import EncodeConfig, EncodeJob, Shard, assign_shards, build_shards, make_worker, stages
from pipeline.encoding.opened import result_of
from pipeline.encoding.stages import ShardActor, Stage, block_of
from pipeline.errors import Unavailable
from pipeline.images import ImagesConfig, transform_id
from pipeline.models import MODELS, build_model, save_bundle
from pipeline.schema import plan_schema
from pipeline.storage import Body, Files, open_store

IMAGES = ImagesConfig(size=16)
PHOTOS = 5


@pytest.fixture
def job(no_onnx: None, tmp_path: Path) -> EncodeJob:
    """Return a job over five photos in a folder, the last of which is no picture."""
    random = np.random.default_rng(0)
    for number in range(PHOTOS):
        sink = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (20, 20, 3), np.uint8)).save(sink, "PNG")
        (tmp_path / f"{number}.png").write_bytes(sink.getvalue() if number < PHOTOS - 1 else b"no picture")
    torch.manual_seed(0)
    store, config = (
        open_store(str(tmp_path / "store")),
        MODELS["vae"][0].model_validate({"kind": "vae", "latent_dim": 3}),
    )
    model = build_model(config, image_size=IMAGES.size).eval()
    model_id = save_bundle(store, model, config, IMAGES.model_dump(mode="json"), train_key="k", card={})
    return EncodeJob(
        store=store, files=Files(), catalogue=CatalogueConfig(source=str(tmp_path)), images=IMAGES,
        encode=EncodeConfig(batch_size=4, fetch_threads=1), model_id=model_id, transform_id=transform_id(IMAGES),
    )  # fmt: skip


def shard_of(job: EncodeJob, folder: Path) -> Shard:
    given = {
        "item_id": [f"i{n}" for n in range(PHOTOS)], "uri": [str(folder / f"{n}.png") for n in range(PHOTOS)],
        "view": [0] * PHOTOS, "token": [f"version:{n}" for n in range(PHOTOS)], "status": ["added"] * PHOTOS,
        "retried": [False] * PHOTOS,
    }  # fmt: skip
    schema = plan_schema([])
    columns = [pa.array(given.get(field.name, [None] * PHOTOS), field.type) for field in schema]
    plan = assign_shards(pa.Table.from_arrays(columns, schema=schema), image_size=IMAGES.size)
    (shard,) = build_shards(plan, transform_id=job.transform_id, model_id=job.model_id, precision="fp32")
    return shard


@pytest.fixture
def actor(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make actors that share a board, which is asked without Ray."""
    monkeypatch.setattr(stages.ray, "get", lambda value, timeout: value)
    board = BeginCounter()
    begins = SimpleNamespace(begin=SimpleNamespace(remote=board.begin), end=SimpleNamespace(remote=board.end))

    def make(job: EncodeJob, stage: Stage, shard: Shard) -> ShardActor:
        return ShardActor(job, stage, {shard.number: shard}, begins, 2)

    return make


def test_one_stage_and_two_answer_alike_and_write_the_same_parts(job: EncodeJob, actor: Any, tmp_path: Path) -> None:
    shard = shard_of(job, tmp_path)
    first = actor(job, "pixels", shard)
    handed = first(block_of(shard))
    assert handed.num_rows == 1
    assert handed["result"].null_count == handed["error"].null_count == handed["suspect"].null_count == 1
    assert first._worker.encoder is None, "who decodes has no model"
    (row,) = actor(job, "latents", shard)(handed).to_pylist()
    result = result_of(row["result"])
    assert (result.photos, result.refused, result.fetched) == (PHOTOS, 1, PHOTOS)
    parts = {name: job.store.get(name) for name in (shard.pixels_name, str(shard.latents_name))}
    for name in parts:
        job.store.delete(name)
    assert result.node
    assert result.seconds > 0
    assert make_worker(job)(shard) == replace(result, node="", seconds=0.0, said=())
    assert parts == {name: job.store.get(name) for name in parts}
    # What is there already is settled in the first stage, and the second only passes it on.
    settled = actor(job, "pixels", shard)(block_of(shard))
    assert result_of(settled["result"][0].as_py()).reused
    assert actor(job, "latents", shard)(settled) is settled
    (whole,) = actor(job, "whole", shard)(block_of(shard)).to_pylist()
    again = replace(result_of(settled["result"][0].as_py()), seconds=0.0)
    assert replace(result_of(whole["result"]), seconds=0.0) == again


@pytest.mark.parametrize("stage", ["whole", "pixels"])
def test_errors_travel_as_rows_and_what_is_begun_too_often_is_suspect(
    job: EncodeJob, actor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Stage
) -> None:
    shard = shard_of(job, tmp_path)

    def down(*_: Any, **__: Any) -> Body:
        raise Unavailable("the store is down")

    monkeypatch.setattr(type(job.store), "put_if_absent", down)
    rows = [actor(job, stage, shard)(block_of(shard)).to_pylist()[0] for _ in range(3)]
    error = pickle.loads(rows[0]["error"])
    assert isinstance(error, Unavailable)
    assert "in an encoding actor" in error.__notes__[0]
    assert [row["suspect"] for row in rows] == [None, None, shard.number]


def test_each_stage_counts_its_own_begins(job: EncodeJob, actor: Any, tmp_path: Path) -> None:
    shard = shard_of(job, tmp_path)
    handed = actor(job, "pixels", shard)(block_of(shard))
    rows = [actor(job, "latents", shard)(handed).to_pylist()[0] for _ in range(3)]
    assert [row["suspect"] for row in rows] == [None, None, shard.number]


def test_a_block_of_two_shards_is_a_mistake(job: EncodeJob, actor: Any, tmp_path: Path) -> None:
    shard = shard_of(job, tmp_path)
    two = pa.concat_tables([block_of(shard), block_of(replace(shard, number=1))])
    with pytest.raises(RuntimeError, match=r"mixed shards \[0, 1\]"):
        actor(job, "whole", shard)(two)

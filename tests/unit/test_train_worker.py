"""One worker's whole job without Ray, on a local store and on S3: parts to a saved bundle."""

from __future__ import annotations

import io
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import TypeAdapter

from pipeline.models import AnyModelConfig, find_bundle, load_bundle
from pipeline.schema import pixels_schema
from pipeline.storage import Store, open_store
from pipeline.training import PixelRows, TrainConfig
from pipeline.training.ranks import Ranks
from pipeline.training.worker import Board, TrainJob, run_rank

SIZE = 16
PHOTOS = 48
KEY = "feed" * 16


def fill(store: Store) -> tuple[PixelRows, ...]:
    schema = pixels_schema(SIZE)
    colours = np.random.default_rng(0).integers(0, 255, (2, PHOTOS, 1, 3), np.uint8)
    pixels = []
    for part, rows in enumerate(np.repeat(colours, SIZE * SIZE, axis=2)):
        columns = {"pixels": pa.array([row.tobytes() for row in rows], schema.field("pixels").type)}
        columns |= {name: pa.array([f"{row}" for row in range(PHOTOS)]) for name in ("item_id", "uri", "token")}
        table = pa.table([columns.get(field.name, pa.nulls(PHOTOS, field.type)) for field in schema], schema=schema)
        sink = io.BytesIO()
        pq.write_table(table, sink)
        store.put(f"pixels/t/{part}.parquet", sink.getvalue())
        pixels.append(PixelRows(f"pixels/t/{part}.parquet", np.arange(PHOTOS, dtype=np.int32)))
    return tuple(pixels)


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "s3":
        bucket = request.getfixturevalue("s3_server").make_bucket(f"train-{uuid.uuid4().hex[:8]}")
        return open_store(f"{bucket}/store")
    return open_store(str(tmp_path / "store") if request.param == "local" else f"memory://{uuid.uuid4().hex}")


@pytest.mark.slow
def test_a_job_becomes_a_bundle_and_leaves_no_cache(store, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.training.part_cache.tempfile.gettempdir", lambda: str(tmp_path))
    job = TrainJob(
        store=store,
        pixels=fill(store),
        model=TypeAdapter(AnyModelConfig).validate_python({"kind": "vae", "latent_dim": 4, "channels": [4, 8]}),
        images={"size": SIZE},
        train=TrainConfig(epochs=3, batch_size=16, checkpoint_every_s=0),
        run_dir="runs/night",
        train_key=KEY,
    )
    board = Board()
    model_id = run_rank(job, Ranks(), report=board.tell)
    assert model_id == find_bundle(store, KEY)
    progress, error = board.read()
    assert (progress.step, progress.total_steps, error) == (18, 18, None)
    assert list(tmp_path.glob("visual-codebooks-*/*")) == []
    folders = {"/".join(entry.name.split("/")[:3]) for entry in store.list("runs/")}
    assert folders == {"runs/night/checkpoints", "runs/night/tensorboard"}
    # Trained again from nothing, on the same settings, it is the same model; the first one answers the key.
    again = TrainJob(**{**{name: getattr(job, name) for name in job.__slots__}, "run_dir": "runs/other"})
    assert run_rank(again, Ranks()) == model_id
    assert {entry.name.split("/")[1] for entry in store.list("models/")} == {"by-key", model_id}
    mean = load_bundle(store, model_id).model.encode(torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)).mean
    assert mean.shape == (1, 4)

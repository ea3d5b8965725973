"""What a worker fits after a training: on every photo to train on once, on none held out, for any number of workers."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import TypeAdapter

from pipeline.models import AnyModelConfig, Batch, load_bundle
from pipeline.models.mae import MAE
from pipeline.schema import pixels_schema
from pipeline.storage import Store, open_store
from pipeline.training import PartRows, TrainConfig
from pipeline.training.ranks import Ranks
from pipeline.training.worker import TrainJob, run_rank

SIZE, PHOTOS = 16, 30


def filled(store: Store) -> tuple[PartRows, ...]:
    """Return two parts whose photo number n, over both, is of the brightness n; every third is held out."""
    schema, pixels = pixels_schema(SIZE), []
    for part in range(2):
        numbers = np.arange(PHOTOS, dtype=np.uint8) + part * PHOTOS
        stored = np.repeat(numbers, SIZE * SIZE * 3).reshape(PHOTOS, -1)
        columns = {"pixels": pa.array([row.tobytes() for row in stored], schema.field("pixels").type)}
        columns |= {name: pa.array([f"{row}" for row in range(PHOTOS)]) for name in ("item_id", "uri", "token")}
        table = pa.table([columns.get(at.name, pa.nulls(PHOTOS, at.type)) for at in schema], schema=schema)
        sink = io.BytesIO()
        pq.write_table(table, sink)
        store.put(f"pixels/t/{part}.parquet", sink.getvalue())
        rows = np.arange(PHOTOS, dtype=np.int32)
        pixels.append(PartRows(f"pixels/t/{part}.parquet", rows, held_out=rows % 3 == 0))
    return tuple(pixels)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TrainJob:
    monkeypatch.setattr("pipeline.models.bundle.export_encoder", lambda model, **options: b"not exported here")
    monkeypatch.setattr("pipeline.storage.cache.tempfile.gettempdir", lambda: str(tmp_path))
    torch.set_num_threads(1)
    store = open_store(f"memory://{uuid.uuid4().hex}")
    small = {"width": 8, "depth": 1, "heads": 2, "decoder_width": 8, "read_out": {"dims": 3}}
    return TrainJob(
        store=store,
        pixels=filled(store),
        model=TypeAdapter(AnyModelConfig).validate_python({"kind": "mae", **small}),
        images={"size": SIZE},
        train=TrainConfig(epochs=1, batch_size=16),
        run_dir="runs/night",
        train_key="feed" * 16,
    )


def test_every_photo_to_train_on_is_fitted_on_once(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    fit = MAE.fit

    def noted(model: MAE, batches: Iterable[Batch]) -> None:
        assert not model.training
        kept = list(batches)
        seen.extend(int(photo) for batch in kept for photo in batch.images[:, 0, 0, 0])
        fit(model, kept)

    monkeypatch.setattr(MAE, "fit", noted)
    monkeypatch.setattr("pipeline.training.worker._FIT_BATCH", 7)  # the loader fills its last batch with repeats
    model_id = run_rank(job, Ranks())
    assert model_id is not None
    assert sorted(seen) == [number for number in range(2 * PHOTOS) if number % PHOTOS % 3]
    model = load_bundle(job.store, model_id).model
    assert model.encode(torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)).mean.shape == (2, 3)
    card = job.store.get(f"models/{model_id}/card.md").decode()
    assert "| validation/total |" in card  # held-out photos are measured before there is a PCA


def test_a_large_catalogue_is_not_read_whole(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(MAE, "fit", lambda model, batches: seen.extend(len(batch.images) for batch in batches))
    monkeypatch.setattr("pipeline.training.worker._FIT_BATCH", 7)
    monkeypatch.setattr("pipeline.training.worker.FIT_PHOTOS", 10)
    run_rank(job, Ranks())
    assert seen == [7, 3]

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

from pipeline.errors import Unavailable
from pipeline.models import AnyModelConfig, ModelConfig, build_model, find_bundle, load_bundle, save_bundle
from pipeline.schema import pixels_schema
from pipeline.storage import LocalStore, Store, open_store
from pipeline.training import Line, PartRows, TrainConfig, TrainProgress
from pipeline.training.part_cache import PartCache
from pipeline.training.ranks import Ranks
from pipeline.training.worker import TrainJob, _model, _reader, run_rank

SIZE = 16
PHOTOS = 48
KEY = "feed" * 16


def fill(store: Store) -> tuple[PartRows, ...]:
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
        pixels.append(PartRows(f"pixels/t/{part}.parquet", np.arange(PHOTOS, dtype=np.int32)))
    return tuple(pixels)


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "s3":
        bucket = request.getfixturevalue("s3_server").make_bucket(f"train-{uuid.uuid4().hex[:8]}")
        return open_store(f"{bucket}/store")
    return open_store(str(tmp_path / "store") if request.param == "local" else f"memory://{uuid.uuid4().hex}")


@pytest.mark.slow
def test_a_job_becomes_a_bundle_and_leaves_no_cache(store, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.storage.cache.tempfile.gettempdir", lambda: str(tmp_path))
    if not isinstance(store, LocalStore):  # once a real ONNX file, which takes longer than the training
        monkeypatch.setattr("pipeline.models.bundle.export_encoder", lambda *_, **__: b"an encoder")
    job = TrainJob(
        store=store,
        pixels=fill(store),
        model=TypeAdapter(AnyModelConfig).validate_python({"kind": "vae", "latent_dim": 4, "channels": [4, 8]}),
        images={"size": SIZE},
        train=TrainConfig(epochs=3, batch_size=16, checkpoint_every_s=0),
        run_dir="runs/night",
        train_key=KEY,
    )
    said: list[TrainProgress] = []
    model_id = run_rank(job, Ranks(), line=Line(report=said.append))
    assert model_id == find_bundle(store, KEY)
    assert (said[-1].step, said[-1].total_steps) == (18, 18)
    (folder,) = tmp_path.glob("visual-codebooks-*/training")
    assert list(folder.iterdir()) == []
    folders = {"/".join(entry.name.split("/")[:3]) for entry in store.list("runs/")}
    assert folders == {"runs/night/checkpoints", "runs/night/tensorboard"}
    # Trained again from nothing, on the same settings, it is the same model; the first one answers the key.
    again = TrainJob(**{**{name: getattr(job, name) for name in job.__slots__}, "run_dir": "runs/other"})
    assert run_rank(again, Ranks()) == model_id
    assert {entry.name.split("/")[1] for entry in store.list("models/")} == {"by-key", model_id}
    mean = load_bundle(store, model_id).model.encode(torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)).mean
    assert mean.shape == (1, 4)


# --- what surrounds a training: convolutions to begin with, a frozen encoder, labels, held-out photos


def parsed(**values: object) -> ModelConfig:
    return TypeAdapter(AnyModelConfig).validate_python({"latent_dim": 4, "channels": [4, 8], **values})


@pytest.fixture
def surrounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Store, str]:
    """A store with photos and the bundle of an autoencoder; bundles get no real ONNX file, which takes seconds."""
    monkeypatch.setattr("pipeline.models.bundle.export_encoder", lambda model, **options: b"not exported here")
    monkeypatch.setattr("pipeline.storage.cache.tempfile.gettempdir", lambda: str(tmp_path))
    torch.set_num_threads(1)
    store = open_store(f"memory://{uuid.uuid4().hex}")
    config = parsed(kind="autoencoder")
    torch.manual_seed(9)
    source = build_model(config, image_size=SIZE)
    return store, save_bundle(store, source, config, {"size": SIZE}, train_key="0" * 64, card={})


def surrounded_job(store: Store, source: str, run: str) -> TrainJob:
    perceptual = {"weight": 0.1, "encoder": {"model_id": source, "layers": [0]}}
    rows = np.arange(PHOTOS, dtype=np.int32)
    sides = {"held_out": rows % 4 == 0, "category": (rows % 3).astype(np.int32)}
    return TrainJob(
        store=store,
        pixels=tuple(PartRows(part.part, part.rows, **sides) for part in fill(store)),
        model=parsed(kind="cvae", target={"kind": "pixels", "perceptual": perceptual}),
        images={"size": SIZE},
        train=TrainConfig(
            epochs=2, batch_size=6, checkpoint_every_s=0, init_from=source, keep="best", best_by="validation/ssim"
        ),
        run_dir=f"runs/{run}",
        train_key=KEY,
        labels=("bag", "hat"),
    )


def test_a_fresh_training_begins_with_the_convolutions_asked_for(surrounded, tmp_path):
    store, source = surrounded
    job = surrounded_job(store, source, "night")
    learnt = load_bundle(store, source).model.state_dict()
    reader = _reader(job, PartCache(store, tmp_path), for_gpu=False)
    began, continued = (_model(job, Ranks(), reader, fresh=fresh).state_dict() for fresh in (True, False))
    copied = {name for name, tensor in began.items() if name in learnt and torch.equal(tensor, learnt[name])}
    kept = {name for name, tensor in began.items() if torch.equal(tensor, continued[name])}
    weights = {name for name in began if name.endswith("weight") and began[name].ndim == 4}
    assert weights & copied
    assert "encoder" in {name.split(".")[0] for name in copied}
    assert weights & copied <= began.keys() - kept
    assert {name for name in began if "latents" in name or "embed" in name} <= kept
    assert not any("frozen" in name or "network" in name for name in began)  # the frozen encoder is no part of it


@pytest.mark.slow
def test_a_job_with_everything_around_it_is_continued_to_the_same_bundle(surrounded):
    store, source = surrounded
    undisturbed = run_rank(surrounded_job(store, source, "night"), Ranks())
    store.delete(f"models/by-key/{KEY}.json")
    calls = iter([False, False])
    job = surrounded_job(store, source, "other")
    with pytest.raises(Unavailable, match="step 20"):
        run_rank(job, Ranks(), line=Line(should_stop=lambda: next(calls, True)))
    assert run_rank(job, Ranks()) == undisturbed
    bundle = load_bundle(store, undisturbed)
    assert bundle.labels == ("bag", "hat")
    card = store.get(f"models/{undisturbed}/card.md").decode()
    assert "| photos held out | 24 |" in card
    assert "| validation/ssim |" in card
    assert "## Validation mse by category" in card
    assert "| <none> |" in card

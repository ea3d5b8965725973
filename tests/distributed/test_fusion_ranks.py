"""A fusion of two bundles made by two gloo ranks: each rank reads the members, one of them writes the bundle."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import TypeAdapter

from pipeline.errors import NotFound
from pipeline.models import AnyModelConfig, load_bundle
from pipeline.schema import pixels_schema
from pipeline.storage import Store, open_store
from pipeline.training import PartRows, TrainConfig, TrainJob
from pipeline.training.ranks import Ranks
from pipeline.training.worker import run_rank

SIZE, PHOTOS, WORLD = 16, 200, 2
PART = "pixels/t/0.parquet"


def fill(store: Store) -> None:
    """Write a part of one-coloured pictures."""
    schema = pixels_schema(SIZE)
    colours = np.random.default_rng(0).integers(0, 255, (PHOTOS, 1, 3), np.uint8)
    rows = np.repeat(colours, SIZE * SIZE, axis=1)
    columns = {"pixels": pa.array([row.tobytes() for row in rows], schema.field("pixels").type)}
    columns |= {name: pa.array([f"{row}" for row in range(PHOTOS)]) for name in ("item_id", "uri", "token")}
    table = pa.table([columns.get(field.name, pa.nulls(PHOTOS, field.type)) for field in schema], schema=schema)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    store.put(PART, sink.getvalue())


def job(store: Store, key: str, workers: int = 1, **values: object) -> TrainJob:
    return TrainJob(
        store=store,
        pixels=(PartRows(PART, np.arange(PHOTOS, dtype=np.int32)),),
        model=TypeAdapter(AnyModelConfig).validate_python(values),
        images={"size": SIZE, "fit": "pad"},
        train=TrainConfig(epochs=1, batch_size=100, workers=workers),
        run_dir="runs/night",
        train_key=key * 64,
    )


def rank_main(rank: int, world: int, folder: str) -> None:
    store = open_store(f"{folder}/store")
    members = (Path(folder) / "members.txt").read_text().split()
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    made = run_rank(job(store, "3", workers=world, kind="fusion", members=members, weights=[2, 1]), Ranks(rank, world))
    torch.save(made, Path(folder) / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_bundles_become_a_fusion(run_ranks: Any, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    fill(store)
    hog = run_rank(job(store, "1", kind="descriptor", cell=4, features="pixels", read_out={"dims": 2}), Ranks())
    vae = run_rank(job(store, "2", kind="vae", latent_dim=4, channels=[4, 8]), Ranks())
    (tmp_path / "members.txt").write_text(f"{hog} {vae}")
    fused, nothing = run_ranks(__file__, WORLD, tmp_path)
    assert nothing is None
    photos = torch.randint(0, 256, (4, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    bundle = load_bundle(store, fused)
    found = bundle.model.encode(photos).mean
    assert found.shape == (4, 6)
    norms = found.split([2, 4], dim=1)
    assert [one.norm(dim=1).square().tolist() for one in norms] == [
        pytest.approx([2 / 3] * 4, abs=1e-5),
        pytest.approx([1 / 3] * 4, abs=1e-5),
    ]
    assert [part.model["kind"] for part in bundle.config.parts] == ["descriptor", "vae"]
    with pytest.raises(NotFound, match=f"no bundle {'a' * 64}"):
        run_rank(job(store, "4", kind="fusion", members=[hog, "a" * 64]), Ranks())

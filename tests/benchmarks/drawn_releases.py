"""Parts, items and releases of latents that are drawn, without photos; for the benchmarks of indexes and readers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.index import NightIndex
from pipeline.parts import PartFile, latents_part_name, write_part
from pipeline.release import write_release
from pipeline.release.tables import table_files
from pipeline.schema import changes_schema, latents_schema, part_name_column, quarantine_schema
from pipeline.storage import Store

DIM, MODEL = 64, "ab" * 32
PART_ROWS = 1 << 17


def base_of(data: str | None, others: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return the latents that all others are drawn from, and so many of photos that are not among them."""
    if data is None:
        made = np.random.default_rng(0).standard_normal((60_000 + others, DIM), np.float32) * np.geomspace(1, 0.05, DIM)
        return made[:60_000].astype(np.float32), made[60_000:].astype(np.float32)
    from bench_index import components

    return components(Path(data), others, DIM)


def drawn(folder: Path, rows: int, seed: int) -> np.ndarray:
    """Return rows of latents drawn again from the base with jitter, float32 [rows, DIM]."""
    base, rng = np.load(folder / "base.npy", mmap_mode="r"), np.random.default_rng(seed)
    spread = np.asarray(base[:10_000]).std(axis=0)
    jitter = rng.standard_normal((rows, DIM), np.float32) * (0.1 * spread)
    latents: np.ndarray = base[rng.integers(0, len(base), rows)] + jitter.astype(np.float32)
    return latents


def write_latents(store: Any, ids: pa.Array, latents: np.ndarray, key: str) -> PartFile:
    """Write one part of latents."""
    rows = len(ids)
    means = pa.FixedSizeListArray.from_arrays(pa.array(latents.reshape(-1)), DIM)
    columns = [ids, ids, ids, pa.array(["0" * 64] * rows), pa.array(np.arange(rows), pa.int32()), means]
    table = pa.Table.from_arrays(columns, schema=latents_schema(DIM, log_var=False))
    return write_part(store, latents_part_name(MODEL, key), table, key)


def named(numbers: np.ndarray) -> pa.Array:
    return pa.array([f"item-{number:09d}" for number in numbers.tolist()])


def rows_of(ids: pa.Array, part: str) -> pa.Table:
    rows = len(ids)
    return pa.table(
        {
            "item_id": ids,
            "uri": ids,
            "view": pa.array(np.zeros(rows, np.int32)),
            "latents_part": part_name_column(part, rows),
            "latents_row": pa.array(np.arange(rows), pa.int32()),
        }
    )


def release_of(run: str) -> str:
    """Return the name of the release that a run's `publish` writes."""
    return f"{run}-0123456789ab"


def publish(store: Store, made: NightIndex, parts: Sequence[PartFile], run: str, parent: str | None) -> None:
    """Write a night's release, which stands on no channel."""
    write_release(
        store,
        release_id=release_of(run),
        files={
            "items": table_files(made.items),
            "quarantine": table_files(quarantine_schema().empty_table()),
            "changes": table_files(changes_schema().empty_table()),
            **made.built.files(),
        },
        segments=made.built.shared_files(),
        parts=tuple(parts), release_key="0" * 64, run=run, attempt=1, parent=parent, model_id=MODEL, model_kind="vae",
        latent_dim=DIM, transform_id="t", metric=made.built.index.metric.name, index_kind=made.built.kind,
        index_parameters=made.built.parameters, code_version="0",
    )  # fmt: skip


def met(folder: Path, number: int) -> Callable[[], None]:
    """Return a function that returns when both readers have called it as often."""
    turns = iter(range(9))

    def wait() -> None:
        turn = next(turns)
        (folder / f"turn-{turn}-{number}").touch()
        while not (folder / f"turn-{turn}-{1 - number}").exists():
            time.sleep(0.05)

    return wait

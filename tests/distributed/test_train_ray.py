"""Training on Ray: two workers repeat to the bit, also when one of them or the whole job is killed on the way."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from pipeline.errors import CodebooksError, ConfigError
from pipeline.models import AnyModelConfig
from pipeline.schema import pixels_schema
from pipeline.storage import Store, open_store
from pipeline.training import PartRows, TrainConfig, TrainJob, TrainProgress, train_job

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SIZE = 16
PHOTOS = 400
KEY = "c0de" * 16


def fill(store: Store) -> list[PartRows]:
    """Write four parts of one-coloured pictures."""
    schema = pixels_schema(SIZE)
    colours = np.random.default_rng(0).integers(0, 255, (4, PHOTOS, 1, 3), np.uint8)
    pixels = []
    for part, rows in enumerate(np.repeat(colours, SIZE * SIZE, axis=2)):
        columns = {"pixels": pa.array([row.tobytes() for row in rows], schema.field("pixels").type)}
        for name in ("item_id", "uri", "token"):
            columns[name] = pa.array([f"{row}" for row in range(PHOTOS)])
        table = pa.table([columns.get(field.name, pa.nulls(PHOTOS, field.type)) for field in schema], schema=schema)
        sink = io.BytesIO()
        pq.write_table(table, sink)
        store.put(f"pixels/t/{part}.parquet", sink.getvalue())
        pixels.append(PartRows(f"pixels/t/{part}.parquet", np.arange(PHOTOS, dtype=np.int32)))
    return pixels


def model_config() -> AnyModelConfig:
    return TypeAdapter(AnyModelConfig).validate_python({"kind": "vae", "latent_dim": 8, "channels": [8, 16]})


def train(
    store: Store,
    *,
    attempt: int = 1,
    progress: Callable[[TrainProgress], None] | None = None,
    **settings: object,
) -> str:
    base = {"epochs": 24, "batch_size": 64, "workers": 2, "checkpoint_every_s": 0.5, "max_failures": 2}
    job = TrainJob(
        store=store,
        pixels=tuple(fill(store)),
        model=model_config(),
        images={"size": SIZE, "fit": "pad"},
        train=TrainConfig(**{**base, **settings}),
        run_dir="runs/night",
        attempt=attempt,
        train_key=KEY,
    )
    return train_job(job, progress=progress)


def new_store(folder: Path) -> Store:
    return open_store(str(folder / uuid.uuid4().hex))


def workers() -> list[psutil.Process]:
    """Return this machine's Ray Train worker processes."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def complete_steps(store: Store) -> list[int]:
    names = [entry.name for entry in store.list("runs/night/checkpoints/")]
    return [int(name.split("/")[-2]) for name in names if name.endswith("complete.json")]


@pytest.fixture(scope="module")
def undisturbed(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model_id of a training that nothing happens to."""
    store = new_store(tmp_path_factory.mktemp("undisturbed"))
    seen: list[TrainProgress] = []
    model_id = train(store, progress=seen.append)
    assert seen[-1].step == seen[-1].total_steps == 24 * 4 * PHOTOS // 64
    assert all(one.resumed_from is None for one in seen)
    assert seen[-1].loss < seen[0].loss
    assert [entry.name for entry in store.list("runs/night/tensorboard/")] != []
    assert max(complete_steps(store)) == seen[-1].total_steps
    assert len(complete_steps(store)) <= 2
    return model_id


def test_a_killed_worker_costs_no_bit(undisturbed, tmp_path):
    store = new_store(tmp_path)
    seen: list[TrainProgress] = []
    saved: list[int] = []  # the newest checkpoint when the worker was killed

    def kill_one(progress: TrainProgress) -> None:
        seen.append(progress)
        if not saved and (complete := complete_steps(store)):
            saved.append(max(complete))
            workers()[-1].send_signal(signal.SIGKILL)

    assert train(store, progress=kill_one) == undisturbed
    [resumed] = {one.resumed_from for one in seen} - {None}
    assert resumed >= saved[0] > 0  # nothing is lost but the steps since that checkpoint


PROGRAM = """
import sys
import ray
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False, configure_logging=False)
import importlib.util
spec = importlib.util.spec_from_file_location("killed_job", sys.argv[2])
job = importlib.util.module_from_spec(spec)
spec.loader.exec_module(job)
job.train(job.open_store(sys.argv[3]), attempt=2, progress=lambda progress: print(progress.step, flush=True))
"""


class Interrupted(Exception):
    """What a handler of SIGTERM raises in the main thread."""


def test_a_job_interrupted_and_then_killed_continues_to_the_same_bits(undisturbed, tmp_path):
    import ray

    store = new_store(tmp_path)
    seen: list[int] = []

    def interrupt(progress: TrainProgress) -> None:
        seen.append(progress.step)
        raise Interrupted

    with pytest.raises(Interrupted):
        train(store, progress=interrupt, checkpoint_every_s=1000)
    [interrupted] = complete_steps(store)  # written because the driver was told to stop
    assert seen[0] < interrupted < 24 * 4 * PHOTOS // 64

    arguments = [ray.get_runtime_context().gcs_address, __file__, store.url]
    found = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, found))}
    with subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], env=environment) as job:
        deadline = time.monotonic() + 400
        while max(complete_steps(store)) == interrupted:
            assert job.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        job.kill()
    last: list[TrainProgress] = []
    assert train(store, attempt=3, progress=last.append) == undisturbed
    assert last[-1].resumed_from > interrupted


def test_a_diverging_training_ends_with_step_and_parts_and_no_retries(ray_session, tmp_path):
    begun = time.monotonic()
    with pytest.raises(CodebooksError, match=r"not a number at step \d+: total") as raised:
        train(new_store(tmp_path), optimiser="sgd", learning_rate=1e30, warmup=0, max_failures=50)
    assert raised.value.exit_code == 1
    assert time.monotonic() - begun < 400


def test_more_workers_than_the_machine_holds_are_refused_at_once(ray_session, tmp_path):
    with pytest.raises(ConfigError, match="need 64 CPU"):
        train(new_store(tmp_path), workers=64)

"""Training on Ray: two workers repeat to the bit, also when one of them or the whole job is killed on the way.

What they repeat is made without Ray, by two forked ranks that nothing happens to: `rank_main`, see tests/ranks.py.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from pydantic import TypeAdapter

from pipeline.errors import CodebooksError, ConfigError
from pipeline.models import AnyModelConfig, bundle
from pipeline.schema import pixels_schema
from pipeline.storage import Store, open_store
from pipeline.training import PartRows, TrainConfig, TrainJob, TrainProgress, train_job
from pipeline.training.loop import Line
from pipeline.training.ranks import Ranks
from pipeline.training.worker import fix_process

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

SIZE = 16
PHOTOS = 400
TOTAL = 24 * 4 * PHOTOS // 64
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


def job_of(store: Store, *, attempt: int = 1, **settings: object) -> TrainJob:
    class Job(TrainJob):  # in here, so that it travels to the workers by its code
        """A training whose bundle has no real ONNX file, which takes longer to make than the bundle to train."""

        def run_rank(self, ranks: Ranks, **rest: Any) -> str | None:
            bundle.export_encoder = lambda *_, **__: b"an encoder"
            return TrainJob.run_rank(self, ranks, **rest)

    base = {"epochs": 24, "batch_size": 64, "workers": 2, "checkpoint_every_s": 0.5, "max_failures": 2}
    return Job(
        store=store,
        pixels=tuple(fill(store)),
        model=model_config(),
        images={"size": SIZE, "fit": "pad"},
        train=TrainConfig(**{**base, **settings}),
        run_dir="runs/night",
        attempt=attempt,
        train_key=KEY,
    )


def train(
    store: Store, *, attempt: int = 1, progress: Callable[[TrainProgress], None] | None = None, **settings: object
) -> str:
    return train_job(job_of(store, attempt=attempt, **settings), progress=progress)


def rank_main(rank: int, world: int, folder: str) -> None:
    """Train as one rank, without Ray and undisturbed; leave the model_id and how far the training said it was."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    job = job_of(open_store(f"{folder}/store"))
    fix_process(job.train, torch.device("cpu"))
    said: list[TrainProgress] = []
    model_id = job.run_rank(Ranks(rank, world), line=Line(report=said.append), first_here=rank == 0)
    steps = [(one.step, one.total_steps, one.loss) for one in said]
    torch.save({"model_id": model_id, "steps": steps}, Path(folder) / f"rank-{rank}.pt")
    dist.destroy_process_group()


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
def undisturbed(run_ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model_id of a training that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    first, second = run_ranks(__file__, 2, folder)
    assert second["model_id"] is None
    store, steps = open_store(f"{folder}/store"), first["steps"]
    assert steps[-1][0] == steps[-1][1] == TOTAL
    assert steps[-1][2] < steps[0][2]
    assert [entry.name for entry in store.list("runs/night/tensorboard/")] != []
    assert max(complete_steps(store)) == TOTAL
    assert len(complete_steps(store)) <= 2
    return str(first["model_id"])


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


def test_an_interrupted_a_killed_job_and_a_killed_worker_cost_no_bit(undisturbed, forks, tmp_path):
    import ray

    store = new_store(tmp_path)
    seen: list[int] = []

    def interrupt(progress: TrainProgress) -> None:
        seen.append(progress.step)
        raise Interrupted

    with pytest.raises(Interrupted):
        train(store, progress=interrupt, checkpoint_every_s=1000)
    [interrupted] = complete_steps(store)  # written because the driver was told to stop
    assert seen[0] < interrupted < TOTAL

    arguments = [ray.get_runtime_context().gcs_address, __file__, store.url]
    found = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, found))}
    job = forks.start(["-c", PROGRAM, *arguments], environment)
    try:
        deadline = time.monotonic() + 400
        while max(complete_steps(store)) == interrupted:
            assert job.poll() is None, job.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        job.kill()
    assert job.wait(timeout=200) == -signal.SIGKILL

    killed = max(complete_steps(store))
    last: list[TrainProgress] = []
    saved: list[int] = []  # the newest checkpoint when a worker of the third attempt was killed

    def kill_one(progress: TrainProgress) -> None:
        last.append(progress)
        if not saved and (newest := max(complete_steps(store))) > killed:
            saved.append(newest)
            workers()[-1].send_signal(signal.SIGKILL)

    assert train(store, attempt=3, progress=kill_one) == undisturbed
    first, *later = dict.fromkeys(one.resumed_from for one in last)
    assert first >= killed > interrupted  # nothing is lost but the steps since the newest checkpoint
    assert later
    assert later[0] >= saved[0]
    assert last[-1].step == last[-1].total_steps == TOTAL


def test_a_diverging_training_ends_with_step_and_parts_and_no_retries(ray_session, tmp_path):
    begun = time.monotonic()
    with pytest.raises(CodebooksError, match=r"not a number at step \d+: total") as raised:
        train(new_store(tmp_path), workers=1, optimiser="sgd", learning_rate=1e30, warmup=0, max_failures=50)
    assert raised.value.exit_code == 1
    assert time.monotonic() - begun < 400


def test_more_workers_than_the_machine_holds_are_refused_at_once(ray_session, tmp_path):
    with pytest.raises(ConfigError, match="need 64 CPU"):
        train(new_store(tmp_path), workers=64)

"""A machine that goes away under a run: what only helps lives beside the driver, and the work goes on elsewhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]

# In a process of its own: the session's cluster has one node, and this process is connected to it.
PROGRAM = """
import shutil, sys, tempfile
from pathlib import Path
import numpy as np, pyarrow as pa, ray
from PIL import Image
from ray.cluster_utils import Cluster
from pipeline.catalogue import CatalogueConfig
from pipeline.encoding import EncodeConfig, EncodeJob, assign_shards, build_shards, run_shards
from pipeline.images import ImagesConfig, transform_id
from pipeline.schema import plan_schema
from pipeline.storage import Files, open_store
from pipeline.workers import helper, packages_hook

class Where:
    def node(self):
        return ray.get_runtime_context().get_node_id()

folder = Path(sys.argv[1])
count, images = 12, ImagesConfig(size=16)
given = {"item_id": [f"i{n:02d}" for n in range(count)], "view": [0] * count, "status": ["added"] * count,
         "token": [f"t{n}" for n in range(count)], "retried": [False] * count,
         "uri": [str(folder / f"{n}.png") for n in range(count)]}
for n in range(count):
    Image.fromarray(np.full((16, 16, 3), n, np.uint8)).save(folder / f"{n}.png")
schema = plan_schema([])
plan = pa.Table.from_arrays([pa.array(given.get(f.name, [None] * count), f.type) for f in schema], schema=schema)
shards = build_shards(assign_shards(plan, image_size=16, shard_rows=2), transform_id=transform_id(images),
                      model_id=None, precision="fp32")
job = EncodeJob(store=open_store(str(folder / "store")), files=Files(), catalogue=CatalogueConfig(source=str(folder)),
                images=images, encode=EncodeConfig(actors=2), model_id=None, transform_id=transform_id(images))

# A folder of its own, and a short name for its sockets: others on this machine must not find this cluster.
place = tempfile.mkdtemp(prefix="ray-")
quiet = {"include_dashboard": False, "object_store_memory": 128 * 2**20, "setup_worker_path": sys.argv[2]}
cluster = Cluster(initialize_head=True, connect=False, head_node_args={"num_cpus": 2, "temp_dir": place, **quiet})
try:
    # Connected while there is but one node: of several on a machine a driver takes any.
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False, configure_logging=False,
             runtime_env={"worker_process_setup_hook": packages_hook()})
    here = ray.get_runtime_context().get_node_id()
    other = cluster.add_node(num_cpus=2, **quiet)
    where = [helper(Where).remote() for _ in range(4)]
    assert set(ray.get([actor.node.remote() for actor in where])) == {here}
    removed = []

    def ended(result, done, total):
        if not removed:
            removed.append(other)
            cluster.remove_node(other, allow_graceful=False)

    results = run_shards(shards, job, on_result=ended)
    assert set(ray.get([actor.node.remote() for actor in where], timeout=200)) == {here}
    print("done", len(results), sum(result.photos for result in results), sum(result.refused for result in results))
finally:
    ray.shutdown()
    cluster.shutdown()
    shutil.rmtree(place, ignore_errors=True)
"""


def test_a_run_outlives_a_node_and_its_helpers_never_lived_there(forks: Any, tmp_path: Path) -> None:
    given = {**os.environ, **forks.variables, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = ["-c", PROGRAM, str(tmp_path), forks.program]
    done = forks.start(words, {**given, "RAY_BACKEND_LOG_LEVEL": "fatal"})
    try:
        out, err = done.communicate(timeout=400)
    finally:
        done.kill()
    assert done.returncode == 0, err[-4000:]
    assert "done 6 12 0" in out

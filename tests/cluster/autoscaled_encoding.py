"""Encoding on a cluster that grows: Ray's fake autoscaler, whose machines are processes on this one. Needs root.

    python tests/cluster/autoscaled_encoding.py [--second-version] [--out FILE.json]

It runs in network, process and mount namespaces of its own, as starting such a cluster ends every Ray that it sees.
An actor with a GPU is asked while no machine has one; then 400 actors of a head with one CPU: the autoscaler starts
what its limits allow, the pool grows into it, and every photo has its latents. At the end the same is asked of a
cluster without an autoscaler, which must refuse it.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import ray
import torch
from PIL import Image
from ray.cluster_utils import AutoscalingCluster

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.catalogue import CatalogueConfig
from pipeline.encoding import EncodeConfig, EncodeJob, Shard, assign_shards, build_shards, run_shards
from pipeline.encoding.seats import plan_seats
from pipeline.errors import ConfigError
from pipeline.images import ImagesConfig, transform_id
from pipeline.models import MODELS, build_model, save_bundle
from pipeline.schema import plan_schema
from pipeline.storage import Files, open_store
from pipeline.workers import find_room

ROOT = Path(__file__).resolve().parents[2]
ACTORS, SHARDS, ROWS = 400, 400, 5
IMAGES = ImagesConfig(size=32)
CPU_NODES, CPUS_EACH = 2, 2


class Growing(AutoscalingCluster):
    """Ray's own, with the settings that its wheel lacks the file of."""

    def _generate_config(
        self,
        head_resources: dict[str, Any],
        worker_node_types: dict[str, Any],
        autoscaler_v2: bool = False,
        **more: Any,
    ) -> dict[str, Any]:
        provider: dict[str, Any] = {
            "type": "fake_multinode", "use_node_id_as_ip": True, "disable_node_updaters": True,
            "disable_launch_config_check": True, "head_resources": dict(head_resources),
        }  # fmt: skip
        if autoscaler_v2:
            provider |= {"launch_multiple": True, "head_node_id": ray.cluster_utils.FAKE_HEAD_NODE_ID}
        head = {"resources": dict(head_resources), "node_config": {}, "max_workers": 0}
        nothing: dict[str, Any] = {
            name: [] for name in (
                "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
                "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude",
                "rsync_filter",
            )
        }  # fmt: skip
        return {
            "cluster_name": "growing", "max_workers": 8, "idle_timeout_minutes": 0.5, "provider": provider,
            "available_node_types": {**worker_node_types, "ray.head.default": head},
            "head_node_type": "ray.head.default", "upscaling_speed": 1.0, "auth": {}, "docker": {}, "file_mounts": {},
            "file_mounts_sync_continuously": False, **nothing, **more,
        }  # fmt: skip


def make_job(folder: Path, name: str, *, model: bool, **encode: Any) -> tuple[EncodeJob, list[Shard]]:
    """Return a job over small photos on a store of its own, and its shards."""
    photos = folder / "photos"
    count = SHARDS * ROWS
    if not photos.exists():
        photos.mkdir()
        random = np.random.default_rng(0)
        for number in range(50):
            sink = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (60, 45, 3), np.uint8)).save(sink, "JPEG")
            (photos / f"{number}.jpg").write_bytes(sink.getvalue())
    store = open_store(str(folder / name))
    model_id = None
    if model:
        torch.manual_seed(0)
        config = MODELS["vae"][0]()
        built = build_model(config, image_size=IMAGES.size).eval()
        model_id = save_bundle(store, built, config, IMAGES.model_dump(mode="json"), train_key="k", card={})
    given = {
        "item_id": [f"i{n:06d}" for n in range(count)], "uri": [str(photos / f"{n % 50}.jpg") for n in range(count)],
        "view": [0] * count, "token": [f"version:{n}" for n in range(count)], "status": ["added"] * count,
        "retried": [False] * count,
    }  # fmt: skip
    schema = plan_schema([])
    columns = [pa.array(given.get(field.name, [None] * count), field.type) for field in schema]
    plan = assign_shards(pa.Table.from_arrays(columns, schema=schema), image_size=IMAGES.size, shard_rows=ROWS)
    job = EncodeJob(
        store=store, files=Files(), catalogue=CatalogueConfig(source=str(photos)), images=IMAGES,
        encode=EncodeConfig(batch_size=8, fetch_threads=2, **encode), model_id=model_id,
        transform_id=transform_id(IMAGES),
    )  # fmt: skip
    return job, build_shards(plan, transform_id=job.transform_id, model_id=model_id, precision="fp32")


@contextmanager
def watched(trail: list[dict[str, float]]) -> Iterator[None]:
    """Note every second how many machines are up and how many encoding actors run."""
    over, began = threading.Event(), time.monotonic()

    def look() -> None:
        while not over.wait(1.0):
            actors = sum("MapWorker" in " ".join(process.info["cmdline"] or ()) for process in
                         psutil.process_iter(["cmdline"]))  # fmt: skip
            up = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            row = {"machines": len(up), "cpus": sum(node.get("CPU", 0) for node in up), "actors": actors}
            if not trail or any(trail[-1][name] != value for name, value in row.items()):
                trail.append({"second": round(time.monotonic() - began, 1), **row})

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def on_a_growing_cluster(folder: Path, *, second_version: bool) -> dict[str, Any]:
    workers = {
        "cpu": {"resources": {"CPU": CPUS_EACH, "object_store_memory": 10**8}, "node_config": {}, "min_workers": 0,
                "max_workers": CPU_NODES},
        "gpu": {"resources": {"CPU": 1, "GPU": 1, "object_store_memory": 10**8}, "node_config": {}, "min_workers": 0,
                "max_workers": 1},
    }  # fmt: skip
    cluster = Growing({"CPU": 1, "object_store_memory": 2 * 10**8}, workers, autoscaler_v2=second_version)
    cluster.start()
    found: dict[str, Any] = {}
    try:
        ray.init("auto", log_to_driver=False, logging_level="ERROR")
        deadline = time.monotonic() + 60
        while not find_room().grows and time.monotonic() < deadline:
            time.sleep(1)
        room = find_room()
        found["before"] = {"machines": room.machines, "cpus": room.cpus, "gpus": list(room.gpus), "grows": room.grows}
        assert room.grows
        assert (room.machines, room.cpus, room.gpus) == (1, 1.0, ())

        # A group of GPUs at zero; pixels alone, as there is no CUDA behind the number.
        job, shards = make_job(folder, "gpu", model=False, actors=1, gpus_per_actor=1)
        trail: list[dict[str, float]] = []
        began = time.monotonic()
        with watched(trail):
            results = run_shards(shards[:4], job)
        found["gpu_at_zero"] = {"seconds": round(time.monotonic() - began, 1), "trail": trail,
                                "photos": sum(result.photos for result in results)}  # fmt: skip
        assert sum(result.photos for result in results) == 4 * ROWS

        job, shards = make_job(folder, "grown", model=True, actors=ACTORS)
        seats = plan_seats(job.encode, len(shards), SHARDS * ROWS, find_room())
        assert seats.least == ACTORS
        trail = []
        began = time.monotonic()
        with watched(trail):
            results = run_shards(shards, job)
        assert sum(result.photos for result in results) == SHARDS * ROWS
        assert not any(result.refused for result in results)
        found["asked"] = {"actors": seats.least, "shards": len(shards), "photos": SHARDS * ROWS,
                          "seconds": round(time.monotonic() - began, 1), "trail": trail}  # fmt: skip
        assert max(row["machines"] for row in trail) >= 1 + CPU_NODES
        assert max(row["actors"] for row in trail) >= 1 + CPU_NODES * CPUS_EACH
    finally:
        ray.shutdown()
        cluster.shutdown()
    return found


def on_a_fixed_cluster(folder: Path) -> dict[str, Any]:
    """The control: nothing that grows, so what is not there is refused and actors are fitted in."""
    command = ["ray", "start", "--head", "--num-cpus=2", "--object-store-memory=200000000", "--disable-usage-stats"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    try:
        ray.init("auto", log_to_driver=False, logging_level="ERROR")
        time.sleep(12)  # until its monitor has written what it sees
        room = find_room()
        assert not room.grows
        job, shards = make_job(folder, "fixed", model=False, actors=ACTORS)
        seats = plan_seats(job.encode, len(shards), SHARDS * ROWS, room)
        assert seats.most <= 2
        refused = ""
        try:
            plan_seats(EncodeConfig(gpus_per_actor=1), 3, 100, room)
        except ConfigError as error:
            refused = str(error)
        assert "autoscaler" in refused
        return {"grows": room.grows, "actors": seats.most, "refused": refused}
    finally:
        ray.shutdown()
        subprocess.run(["ray", "stop", "--force"], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--second-version", action="store_true", help="of Ray's autoscaler")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.inside:
        own = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        sys.exit(subprocess.run([*own, sys.executable, __file__, *sys.argv[1:], "--inside"], check=False).returncode)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.environ.update(
        RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
        PYTHONPATH=str(ROOT), PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}", OMP_NUM_THREADS="1",
        RAY_BACKEND_LOG_LEVEL="fatal",
    )  # fmt: skip
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        result: dict[str, Any] = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d"), "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "commit": commit.stdout.strip(), "autoscaler": 2 if options.second_version else 1,
        }  # fmt: skip
        result |= on_a_growing_cluster(Path(folder), second_version=options.second_version)
        result["fixed"] = on_a_fixed_cluster(Path(folder))
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()

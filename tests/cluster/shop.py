"""A shop whose cluster is machines of machines.py: head, nodes, an object store, and a desk that commands come from."""

from __future__ import annotations

import ctypes
import io
import json
import socket
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from machines import ROOT, Machine, Network, Process, wait_until
from PIL import Image

sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
from faulty_store import KEY, SECRET, weed_binary

from pipeline.errors import CodebooksError
from pipeline.release import read_head, read_manifest
from pipeline.storage import Retry, S3Store, StorageOptions

PHOTOS = 160
RUN = "2026-11-30"
CONFIG = """\
store: s3://shop/visual
catalogue: {source: s3://shop/catalogue.csv}
images: {size: 32, keep: always}
model: {kind: descriptor, features: hog, cell: 4}
encode: {actors: 3, shard_rows: 8}
cluster: {min_nodes: 2, wait_s: 240}
"""
# A model that is trained, by two workers; a night of it begins with a pass that stores pixels. The other's bundle is
# made by the night alone and lies on the store before each later night, as on any but a shop's first.
TRAINED = """\
store: s3://shop/visual
catalogue: {source: s3://shop/catalogue.csv}
images: {size: 32, keep: always}
model: {kind: vae, latent_dim: 8}
train: {epochs: 40, batch_size: 32, workers: 2, validation: 0, checkpoint_every_s: 2}
encode: {actors: 3, shard_rows: 8}
cluster: {min_nodes: 2, wait_s: 240}
"""
# Each of its workers fills a node, so that of a lost one's two nodes one worker is left, and long enough to be lost in.
ELASTIC = TRAINED.replace("{epochs: 40,", "{epochs: 120, threads: 2, least_workers: 1,")
S3_PORT = 8333
_NEW_NETWORK = 0x40000000


@dataclass
class Shop:
    """The machines of the cluster, the store's server, and where the commands are given.

    held: Ray's processes on the machine that was lost last, by name, as they were when it was.
    """

    network: Network
    redis: bool = False
    held: dict[str, int] = field(default_factory=dict)

    @property
    def head(self) -> Machine:
        return self.network.machines[0]

    @property
    def store(self) -> Machine:
        return self.network.machines[3]

    @property
    def desk(self) -> Machine:
        return self.network.machines[4]

    @property
    def dashboard(self) -> str:
        return f"http://{self.head.ip}:8265"

    @property
    def endpoint(self) -> str:
        return f"http://{self.store.ip}:{S3_PORT}"

    def start_store(self) -> None:
        identity = {
            "name": "shop", "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }  # fmt: skip
        file = self.network.work / "s3.json"
        file.write_text(json.dumps({"identities": [identity]}))
        ip = self.store.ip
        self.store.start(
            "store", weed_binary(), "server", "-dir=/tmp", f"-ip={ip}", f"-ip.bind={ip}", "-s3", f"-s3.port={S3_PORT}",
            "-s3.config=/tmp/s3.json", "-master.volumeSizeLimitMB=64", "-volume.max=50", seeds=[(file, "/tmp/s3.json")],
        )  # fmt: skip
        if self.redis:
            self.store.start("redis", "redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "")
        server = self.bucket("")

        def ready() -> bool:
            try:
                if not server._fs.exists("shop"):
                    server._fs.mkdir("shop")
                server.put("ready", b"1")
            except Exception:  # noqa: BLE001 - whatever a server says that is not up yet
                return False
            return True

        wait_until("the object store answers", ready, limit_s=90, every_s=1)
        rows = "".join(f"item-{number:03},photos/{number}.png\n" for number in range(PHOTOS))
        server.put("catalogue.csv", f"item_id,image\n{rows}".encode())
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(lambda number: server.put(f"photos/{number}.png", picture(number)), range(PHOTOS)))

    def bucket(self, folder: str) -> S3Store:
        url = f"s3://shop/{folder}".rstrip("/")
        return S3Store(url, StorageOptions(endpoint=self.endpoint), retry=Retry(attempts=2))

    def start_head(self) -> None:
        more = {}
        if self.redis:
            more = {"RAY_REDIS_ADDRESS": f"{self.store.ip}:6379", "RAY_external_storage_namespace": "shop"}
        self._start_node(self.head, "--head", "--dashboard-host=0.0.0.0", "--num-cpus=0", **more)
        wait_until("the head takes nodes", lambda: listens(self.head.ip, 6379), limit_s=300)

    def start_node(self, number: int) -> None:
        machine = self.network.machines[number]
        self._start_node(machine, f"--address={self.head.ip}:6379", "--num-cpus=2")

    def _start_node(self, machine: Machine, *options: str, **variables: str) -> None:
        words = [
            "ray",
            "start",
            "--block",
            f"--node-ip-address={machine.ip}",
            "--object-store-memory=100000000",
            *options,
        ]
        # As a supervisor does: a node that was cut off ends itself.
        program = 'while true; do "$@"; ray stop --force >/dev/null 2>&1; sleep 1; done'
        machine.start(
            f"ray{machine.number}", "bash", "-c", program, "node", *words, RAY_AUTH_MODE="disabled", **variables
        )

    def alive(self) -> int:
        """Return how many nodes the head says are alive."""
        try:
            with urllib.request.urlopen(f"{self.dashboard}/nodes?view=summary", timeout=5) as answer:
                summary = json.load(answer)["data"]["summary"]
        except (OSError, ValueError, KeyError):
            return 0
        return sum(node["raylet"].get("state") == "ALIVE" for node in summary)

    def command(self, name: str, *words: str, alone: bool = False) -> Process:
        """Start a refresh from the desk: handed in to the cluster, or on that machine alone."""
        submit = [] if alone else ["submit", "--address", self.dashboard, "--wait", "--pass", "AWS_*"]
        line = ["codebooks", *submit, "refresh", "--json", "--config", "shop.yaml", "--run", RUN, *words]
        work = self.network.work
        config = ELASTIC if "elastic" in name else TRAINED if "-trained" in name else CONFIG
        (work / "shop.yaml").write_text(config)
        return self.desk.start(
            name, "bash", "-c", 'cd /root && exec "$@"', "desk", *line,
            seeds=[(work / "checkout", "/root/checkout"), (work / "shop.yaml", "/root/shop.yaml")],
            PYTHONPATH="/root/checkout", RAY_AUTH_MODE="disabled", AWS_ENDPOINT_URL=self.endpoint,
            AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET, AWS_REGION="us-east-1",
        )  # fmt: skip

    def count(self, name: str, folder: str) -> int:
        """Return how many names of a night's store begin so, 0 where it does not answer."""
        try:
            return sum(1 for _ in self.bucket(f"{name}/store").list(folder))
        except CodebooksError:
            return 0

    def released(self, name: str) -> dict[str, str]:
        """Return what identifies the release of a night."""
        store = self.bucket(f"{name}/store")
        head = read_head(store, "stable")
        if head is None:
            return {}
        manifest = read_manifest(store, head.release_id)
        files = manifest.model_dump(mode="json")["files"]
        said = {role: json.dumps(file, sort_keys=True) for role, file in files.items() if role in ("items", "index")}
        return {"release": head.release_id, "model": manifest.model_id, **said}


def listens(host: str, port: int) -> bool:
    """Return whether a port is open."""
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return False
    return True


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def join(machine: Machine) -> None:
    """Move this process to a machine's network; what it starts from here on is there too."""
    with Path(f"/run/netns/{machine.space}").open() as space:
        if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), _NEW_NETWORK):
            raise OSError(ctypes.get_errno(), "setns")

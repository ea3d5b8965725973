"""What a night costs a photo, stage by stage: processor seconds, bytes on the store, memory; for `cluster/sizing.py`.

    python tests/benchmarks/bench_sizing.py --json tests/benchmarks/results/sizing.json [--sizes 1000,4000,16000]

Every size runs in a process of its own, its stages in that process and on one thread, without Ray: what is counted are
processor seconds, so other things that a machine does hardly reach them. A first night (everything fetched, a VAE of
64 pixels trained for one epoch, encoded, published) and a second one on which 1 in 100 photos is new. The catalogue is
a table with small JPEGs in it, made on the fly; what photos of other sizes cost to decode is measured apart.
"""

from __future__ import annotations

import io
import json
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from beside import tests_module
from nights_here import answered
from options import Options
from PIL import Image
from record import made_on, tell
from steps import apart

from pipeline.events import Event, StageBegan, StageEnded, listening
from pipeline.images import ImagesConfig
from pipeline.images.decode import decode

SIZES = (1000, 4000, 16000)
CHURN = 100  # one photo in so many is new on the second night
SIDES = (256, 512, 1024)
VAE = ["model.kind=vae", "model.latent_dim=32", "images.size=64", "train.epochs=1", "train.validation=0",
       "train.batch_size=64", "encode.batch_size=256", "index.metric=cosine", "index.kind=flat"]  # fmt: skip


def jpeg(number: int, side: int) -> bytes:
    """Return a picture with some structure, about as hard to decode as a product's photo."""
    random = np.random.default_rng(number)
    small = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    noise = random.integers(-6, 7, (side, side, 3))
    sink = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(small) + noise, 0, 255).astype(np.uint8)).save(sink, "JPEG", quality=85)
    return sink.getvalue()


def write_catalogue(path: Path, photos: int, skip: int) -> None:
    """Write a table of `photos` items, the first `skip` of the numbers left out."""
    pictures = [jpeg(number, 96) for number in range(64)]
    numbers = range(skip, skip + photos)
    table = pa.table(
        {
            "item_id": [f"item-{number:09d}" for number in numbers],
            "image": pa.array([pictures[number % 64] for number in numbers], pa.binary()),
            "category": [f"kind-{number % 10}" for number in numbers],
        }
    )
    pq.write_table(table, path, row_group_size=1000)


class Clock:
    """Adds up the processor seconds of every stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, StageBegan):
            self._began[event.name] = time.process_time()
        elif isinstance(event, StageEnded):
            took = time.process_time() - self._began.pop(event.name)
            self.seconds[event.name] = self.seconds.get(event.name, 0.0) + took


def night(run: str, folder: Path) -> dict[str, Any]:
    """Return what one refresh in this process cost."""
    clock = Clock()
    words = ["refresh", "--json", "--run", run, f"store={folder / 'store'}", f"catalogue.source={folder / 'c.parquet'}",
             "catalogue.item_id=item_id", "catalogue.image=image", "catalogue.category=category", *VAE]  # fmt: skip
    began = time.process_time()
    with listening(clock):
        code, found = answered(words)
    whole = time.process_time() - began
    if code:
        raise SystemExit(f"exit {code}: {found}")
    counts = found["plan"]["counts"]
    return {
        "photos": counts["photos"],
        "fetched": counts["to_fetch"],
        "seconds": {stage: round(value, 3) for stage, value in clock.seconds.items()},
        "all_seconds": round(whole, 3),
    }


def one_size(photos: int) -> dict[str, Any]:
    """Return two nights of so many photos; run in a process of its own."""
    import torch

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="sizing-") as name:
        tests_module("stages_here").run_stages_here(patch)
        folder = Path(name)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        write_catalogue(folder / "c.parquet", photos, 0)
        first = night("one", folder)
        store = {room: sum(path.stat().st_size for path in (folder / "store" / room).rglob("*") if path.is_file())
                 for room in ("pixels", "latents", "releases", "runs")}  # fmt: skip
        write_catalogue(folder / "c.parquet", photos, photos // CHURN)
        second = night("two", folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"first": first, "second": second, "store_bytes": store, "rss_before": before, "rss_peak": peak}


def decoding() -> dict[str, Any]:
    """Return processor milliseconds of decoding a photo to 64 pixels, by its side."""
    found = {}
    for side in SIDES:
        photos = [jpeg(number, side) for number in range(8)]
        rounds = max(2, 40 * 256 * 256 // (side * side) // 8)
        best = float("inf")
        for _ in range(3):
            began = time.process_time()
            for _ in range(rounds):
                for photo in photos:
                    decode(photo, ImagesConfig(size=64))
            best = min(best, (time.process_time() - began) / (rounds * len(photos)))
        found[str(side)] = {
            "ms": round(best * 1000, 3),
            "kilobytes": round(sum(map(len, photos)) / len(photos) / 1000, 1),
        }
    return found


def listing() -> dict[str, Any]:
    """Return processor seconds of parsing one page of a bucket's names, as every S3 client of Python's does."""
    import botocore.parsers
    import botocore.session

    model = botocore.session.get_session().get_service_model("s3")
    shape = model.operation_model("ListObjectsV2").output_shape
    page = b"".join(
        b"<Contents><Key>products/2026/front-1600x1600/%010d.jpg</Key><LastModified>2026-11-01T00:00:00.000Z"
        b"</LastModified><ETag>&quot;0123456789abcdef0123456789abcdef&quot;</ETag><Size>60000</Size>"
        b"<StorageClass>STANDARD</StorageClass></Contents>" % number
        for number in range(1000)
    )
    body = b'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">' + page + b"</ListBucketResult>"
    parser = botocore.parsers.create_parser(model.metadata["protocol"])
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        found = parser.parse({"status_code": 200, "headers": {}, "body": body}, shape)
        best = min(best, time.process_time() - began)
    return {"names": len(found["Contents"]), "seconds": round(best, 4)}


def main() -> None:
    arguments = Options(__doc__, sizes=",".join(map(str, SIZES)), json=Path).hidden(one=int).parse_args()
    if arguments.one is not None:
        sys.stdout.write(json.dumps(one_size(arguments.one)))
        return
    nights: dict[str, Any] = {}
    for size in map(int, arguments.sizes.split(",")):
        nights[str(size)] = apart(__file__, "--one", size, OMP_NUM_THREADS="1")
        sys.stderr.write(f"{size}: {json.dumps(nights[str(size)])}\n")
    about = made_on(f"no GPU, {platform.system()}")
    tell({**about, "nights": nights, "decoding": decoding(), "listing": listing()}, arguments.json)


if __name__ == "__main__":
    main()

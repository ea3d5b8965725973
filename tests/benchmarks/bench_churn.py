"""What one per cent of churn costs of a full encode: photo-seconds of two nights of Fashion-MNIST's 60,000 photos.

    python tests/benchmarks/bench_churn.py --data ../shared/data [--json FILE]

Night 1 fetches, decodes, trains one epoch and encodes everything. On night 2 half a per cent of the items have another
picture, half a per cent are gone and as many new, pictures of the data's test part: one per cent is to be encoded.
Photo-seconds are the sum, over all shards of a night's stages `pixels` and `encode`, of the seconds that an actor
worked on it; on night 1 two at a time, so that each waits for the other: `actor_cpu_s` is beside it, CPU seconds of
the actors from start to end, and so are the seconds of the stages by the clock, in which Ray and actors start. With
`--here` the stages run in this process without Ray and photo-seconds are its CPU seconds, which a busy machine does not
stretch; training then sees 5,000 photos.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from encode_accounts import cpu_seconds
from nights_here import stages_here
from options import Options, absent
from record import DATA, ROOT, made_on, tell
from steps import apart
from watched import Looking

from jobs.__main__ import main as command
from pipeline.encoding import EncodeJob, Shard, ShardResult, run_shards_here
from pipeline.events import Event, ShardEnded, listening

STAGES = ("pixels", "encode")


def write_catalogues(data: Path, folder: Path, churn: float) -> dict[str, int]:
    """Write the catalogues of both nights; return how many items were changed, removed, added."""
    names = ["item_id", "category", "image"]
    first = pq.read_table(data / "fashion-mnist" / "train.parquet", columns=names)
    others = pq.read_table(data / "fashion-mnist" / "test.parquet", columns=names)
    pq.write_table(first, folder / "night-1.parquet")
    changed, moved = (int(first.num_rows * churn / 2),) * 2
    images = others["image"].slice(moved, changed).combine_chunks()
    again = first.slice(0, changed).set_column(2, "image", images)
    second = pa.concat_tables([again, first.slice(changed + moved), others.slice(0, moved)])
    pq.write_table(second, folder / "night-2.parquet")
    return {"changed": changed, "removed": moved, "added": moved}


class ActorCpu(Looking):
    """Notes what CPU seconds the actors of this process's Ray have used, as long as they are seen."""

    def __init__(self) -> None:
        super().__init__(0.2)
        self._used: dict[tuple[int, str], float] = {}

    def look(self) -> None:
        self._used |= {who: seconds for who, seconds in cpu_seconds().items() if who[1] == "actors"}

    def seconds(self) -> float:
        self.stop()
        return sum(self._used.values())


def counted(spent: Counter[str]) -> Callable[..., list[ShardResult]]:
    """Return what runs shards here and adds what they take of this process's CPU to `spent`, by stage."""

    def run(shards: Iterable[Shard], job: EncodeJob, **asked: Any) -> list[ShardResult]:
        began = time.process_time()
        try:
            return run_shards_here(shards, job, **asked)
        finally:
            spent["pixels" if job.model_id is None else "encode"] += time.process_time() - began

    return run


def night(folder: Path, number: int, *, here: bool) -> dict[str, Any]:
    """Run a refresh in this process and return what its shards took."""
    shards: Counter[str] = Counter()
    photos: Counter[str] = Counter()

    def note(event: Event) -> None:
        if isinstance(event, ShardEnded) and event.stage in STAGES:
            shards[event.stage] += 0.0 if here else event.seconds
            photos[event.stage] += event.photos

    cpu = ActorCpu()
    cpu.start()
    preset = ROOT / "jobs" / "presets" / "vae_fashion_mnist.yaml"
    words = ["refresh", "--config", str(preset), "--run", f"night-{number}", "--json", f"store={folder / 'store'}"]
    words += [f"catalogue.source={folder / f'night-{number}.parquet'}", "train.epochs=1"]
    words += ["train.photos=5000"] if here else []
    began, out = time.monotonic(), sys.stdout
    way = stages_here(counted(shards)) if here else nullcontext()
    with way, listening(note), (folder / "result.json").open("w") as sys.stdout:
        code = command(words)
    sys.stdout = out
    result = json.loads((folder / "result.json").read_text())
    return {
        "exit": code, "wall_s": round(time.monotonic() - began, 1), "photos": dict(photos),
        "photo_s": {stage: round(seconds, 2) for stage, seconds in shards.items()},
        "actor_cpu_s": round(cpu.seconds(), 2), "stages_s": result.get("seconds"), "counts": result.get("counts"),
    }  # fmt: skip


def main() -> None:
    parser = Options(__doc__, data=DATA, churn=0.01, here=(False, "without Ray, in CPU seconds"), json=Path)
    options = parser.hidden(night=int, folder=Path).parse_args()
    if options.night:
        print(json.dumps(night(options.folder, options.night, here=options.here)))
        return
    if absent(options.data):
        return
    found: dict[str, Any] = {**made_on(), "here": options.here}
    with tempfile.TemporaryDirectory(prefix="churn-") as name:
        found["touched"] = write_catalogues(options.data, Path(name), options.churn)
        for number in (1, 2):
            words = ["--night", number, "--folder", name, *(["--here"] if options.here else [])]
            found[f"night {number}"] = apart(__file__, *words)
    whole, part = (sum(found[f"night {number}"]["photo_s"].values()) for number in (1, 2))
    found["share_of_photo_s"] = round(part / whole, 4)
    tell(found, options.json)


if __name__ == "__main__":
    main()

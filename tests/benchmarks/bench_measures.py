"""What the nightly measures cost: processor and wall seconds of each line, beside building the index of that night.

    python tests/benchmarks/bench_measures.py --rows 60000 1000000 [--data ../shared/data] [--json measures.json]

Latents are generated: 32 dimensions, 2,000 groups, 20 categories. One item in a hundred is new since the parent, whose
tables lie on the store. Photos that are looked at once more are Fashion-MNIST's (without --data noise) at 64 pixels,
seen by an untrained VAE of the preset's size, which takes as long as a trained one. The index is exact, the
slowest to ask.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from options import Options
from PIL import Image
from record import made_on, write

from jobs.config import Config
from pipeline.evaluation.nightly.asked import ROLE, asked_table
from pipeline.evaluation.nightly.lines import LINES
from pipeline.evaluation.nightly.photos import chosen_photos
from pipeline.evaluation.nightly.tonight import LeftOut, Tonight
from pipeline.images import ImagesConfig
from pipeline.index import IndexConfig, LatentArrays, build_index
from pipeline.models import Bundle
from pipeline.models.kinds import build_model
from pipeline.models.vae import VAEConfig
from pipeline.quality.nightly import tonight_of
from pipeline.release import write_release
from pipeline.release.tables import table_files
from pipeline.schema import changes_schema
from pipeline.storage import MemoryStore
from pipeline.tables import Night

DIMS, GROUPS, KINDS, SIZE, STRETCH = 32, 2000, 20, 64, 1024
MODEL = "ab" * 32


@contextmanager
def timed(into: dict[str, Any], name: str) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    into[name] = {"cpu_s": round(time.process_time() - cpu, 2), "wall_s": round(time.perf_counter() - wall, 2)}
    print(f"{name}: {into[name]}", flush=True)


def latents_of(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return means float32 [rows, DIMS] and the group of each."""
    dice = np.random.default_rng(0)
    centres = dice.normal(size=(GROUPS, DIMS)).astype(np.float32)
    groups = dice.integers(GROUPS, size=rows)
    means = centres[groups] + 0.5 * dice.normal(size=(rows, DIMS)).astype(np.float32)
    return means.astype(np.float32), groups


def items_of(rows: int, groups: np.ndarray) -> pa.Table:
    numbers = np.arange(rows)
    parts = pa.DictionaryArray.from_arrays(
        (numbers // STRETCH).astype(np.int32), [f"pixels/t/{part:06d}.parquet" for part in range(-(-rows // STRETCH))]
    )
    ids = [f"item-{number:08d}" for number in range(rows)]
    return pa.table(
        {
            "item_id": ids,
            "uri": [f"s3://shop/{name}.jpg" for name in ids],
            "digest": [f"{number:064x}" for number in range(rows)],
            "pixels_part": parts,
            "pixels_row": (numbers % STRETCH).astype(np.int32),
            "latents_part": parts,
            "latents_row": (numbers % STRETCH).astype(np.int32),
            "kind": [f"kind-{group % KINDS}" for group in groups.tolist()],
        }
    )


def photos(data: Path | None) -> np.ndarray:
    """Return STRETCH photos, uint8 [STRETCH, SIZE, SIZE, 3]."""
    if data is None:
        return np.random.default_rng(0).integers(0, 256, (STRETCH, SIZE, SIZE, 3), np.uint8)
    table = pq.read_table(data / "fashion-mnist" / "train.parquet").slice(0, STRETCH)
    opened = [Image.open(io.BytesIO(photo)).convert("RGB").resize((SIZE, SIZE)) for photo in table["image"].to_pylist()]
    return np.stack([np.asarray(photo) for photo in opened])


def bundle() -> Bundle:
    config = VAEConfig()
    model = build_model(config, image_size=SIZE).eval()
    images = ImagesConfig(size=SIZE).model_dump(mode="json")
    return Bundle(MODEL, config, SIZE, images, model)


def measured(rows: int, data: Path | None) -> dict[str, Any]:
    told: dict[str, Any] = {"rows": rows}
    means, groups = latents_of(rows)
    items, model, store = items_of(rows, groups), bundle(), MemoryStore(f"memory://measures-{rows}")
    told["dims"] = DIMS
    with timed(told, "index, flat"):
        built = build_index(LatentArrays(means), IndexConfig(kind="flat"))
    config = Config.model_validate(
        {"store": {"url": "memory://x"}, "catalogue": {"source": "c.csv", "category": "kind"}, "model": {"kind": "vae"}}
    )
    fresh = np.random.default_rng(1).choice(rows, rows // 100, replace=False)
    new = np.zeros(rows, np.bool_)
    new[fresh] = True
    old = items.filter(pa.array(~new))
    changes = pa.table(
        {**{name: items.filter(pa.array(new))[name] for name in ("item_id", "uri")}, "change": ["added"] * len(fresh)}
    ).cast(changes_schema())
    night = Night("night", model.model_id, "cosine", items, LatentArrays(means), built.index, changes, None, "kind")

    def tonight(night: Night) -> Tonight:
        return tonight_of(store, config, items.select(["item_id", "uri", "kind"]), model, night, None)

    before = Night("before", model.model_id, "cosine", old, LatentArrays(means[~new]), None, changes.slice(0, 0), None)  # type: ignore[arg-type]
    former = tonight(
        Night(**{name: getattr(before, name) for name in ("run", "model_id", "metric", "items", "latents", "changes")},
              index=build_index(before.latents, IndexConfig(kind="flat", queries=10)).index, parent=None)
    )  # fmt: skip
    parent = write_release(
        store, release_id="before-000000000000", files={ROLE: table_files(asked_table(former.asked, former.item_ids)),
        "items": table_files(old)}, release_key="k", run="before", attempt=1, parent=None, model_id=model.model_id,
        model_kind="vae", latent_dim=DIMS, transform_id="t", metric="cosine", index_kind="flat", parts=(),
        code_version="0",
    ).manifest  # fmt: skip
    given = {name: getattr(night, name) for name in Night.__slots__} | {"parent": parent}
    now = tonight(Night(**given))
    told["lines"] = {}
    with timed(told["lines"], "order of items"):
        _ = now.order
    keep_pixels(store, now, photos(data))
    with timed(told["lines"], "photos looked at"):
        looked = now.looked
    told["photos"] = 0 if isinstance(looked, LeftOut) else len(looked.rows) + len(looked.second)
    with timed(told["lines"], "nearest of asked"):
        _ = now.asked
    with timed(told["lines"], "nearest of sampled"):
        _ = now.sample_near
    for name, line in LINES.items():
        with timed(told["lines"], name):
            found = line(now)
        if isinstance(found, LeftOut):
            told["lines"][name]["left_out"] = found.why
    told["cpu_s"] = round(sum(each["cpu_s"] for each in told["lines"].values()), 1)
    told["wall_s"] = round(sum(each["wall_s"] for each in told["lines"].values()), 1)
    return told


def keep_pixels(store: MemoryStore, now: Tonight, pixels: np.ndarray) -> None:
    """Write the parts that will be read; all of them would be gigabytes."""
    names = set(now.night.items["pixels_part"].take(pa.array(chosen_photos(now)[0])).to_pylist())
    column = pa.array([photo.tobytes() for photo in pixels], pa.binary(SIZE * SIZE * 3))
    sink = io.BytesIO()
    pq.write_table(pa.table({"pixels": column}), sink, compression="zstd", row_group_size=STRETCH)
    for name in names:
        store.put_if_absent(name, sink.getvalue())


def main() -> None:
    parser = Options(__doc__, data=Path, json=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[60_000, 1_000_000])
    asked = parser.parse_args()
    told = {**made_on("shared with other work; cpu_s is what counts"), "results": []}
    for rows in asked.rows:
        told["results"].append(measured(rows, asked.data))
        print(json.dumps(told["results"][-1], indent=1))
        if asked.json is not None:
            write(asked.json, told)


if __name__ == "__main__":
    main()

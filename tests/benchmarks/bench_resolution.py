"""A night with a fusion of three sizes beside nights of one size: fetches a photo, seconds and bytes by stage.

Made-up products as JPEG files of --side pixels; the stages run in this process, without Ray, one after the other on one
thread. First the members' own nights: a descriptor of 32 pixels, a small VAE of 64, a descriptor of 224; then their
fusion, on a store that holds nothing but the members' bundles. Photos are counted where they are read.

    python tests/benchmarks/bench_resolution.py --photos 400 --json tests/benchmarks/results/resolution.json
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from beside import tests_module
from nights_here import answered
from options import Options
from PIL import Image
from record import made_on, tell, write

from pipeline.catalogue import PhotoReader
from pipeline.errors import PhotoRefused
from pipeline.images.render import render_products
from pipeline.storage import open_store

FOLDERS = ("pixels", "photos", "latents")
MEMBERS = {
    "descriptor 32": ["model.kind=descriptor", "images.size=32", "model.cell=4"],
    "vae 64": ["model.kind=vae", "images.size=64", "model.latent_dim=32", "model.channels=[16, 32]", "train.epochs=1"],
    "descriptor 224": ["model.kind=descriptor", "images.size=224", "model.cell=28"],
}

ALONE = {"descriptor 224, nothing fitted": [*MEMBERS["descriptor 224"], "model.read_out={dims: null}"]}


def write_photos(folder: Path, count: int, side: int) -> Path:
    """Write a catalogue of rendered products, one JPEG each; return its table."""
    rows = []
    for number, (_, photo) in enumerate(render_products(count, seed=0, size=(side, side))):
        Image.open(BytesIO(photo)).convert("RGB").save(folder / f"{number:06d}.jpg", quality=90)
        rows.append(f"{number:06d},{number:06d}.jpg\n")
    (folder / "catalogue.csv").write_text("item_id,image\n" + "".join(rows))
    return folder / "catalogue.csv"


@contextmanager
def counted() -> Iterator[tuple[Counter[str], Counter[str]]]:
    """Let nights run here, and count the photos that are read: (by the stages, for the page)."""
    found = Counter[str](), Counter[str]()

    def counting(kept: Counter[str]) -> type[PhotoReader]:
        class Counting(PhotoReader):
            def read(self, photos: pa.Table) -> list[bytes | PhotoRefused]:
                kept.update(photos["uri"].to_pylist())
                return super().read(photos)

        return Counting

    with pytest.MonkeyPatch.context() as patch:
        tests_module("stages_here").run_stages_here(patch)
        for name, kept in zip(("encoding.config", "quality.pictures"), found, strict=True):
            patch.setattr(f"pipeline.{name}.PhotoReader", counting(kept))
        yield found


def night(store: Path, catalogue: Path, name: str, words: list[str]) -> dict[str, Any]:
    """Run one night and return its model, what it fetched, its seconds by stage and the bytes it left."""
    settings = [f"store={store}", f"catalogue.source={catalogue}", "train.validation=0", f"publish.channel={name}"]
    before = sizes(store)
    with counted() as (reads, shown):
        code, result = answered(["refresh", "--json", "--run", name, *settings, *words])
    if code:
        raise SystemExit(f"{name}: exit {code}: {result.get('error')}")
    after = sizes(store)
    return {
        "model_id": result["model_id"],
        "fetches_a_photo": {str(times): count for times, count in Counter(reads.values()).items()},
        "shown_again": len(shown),
        "seconds": result["seconds"],
        "bytes": {folder: after[folder] - before[folder] for folder in FOLDERS},
    }


def sizes(store: Path) -> dict[str, int]:
    """Return the bytes of each folder of a store."""
    opened = open_store(str(store))
    return {folder: sum(entry.size for entry in opened.list(f"{folder}/")) for folder in FOLDERS}


def nights(photos: int, side: int) -> dict[str, Any]:
    """Return what every night measured."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        catalogue = write_photos(folder, photos, side)
        store = folder / "store"
        found = {}
        for number, (title, words) in enumerate({**ALONE, **MEMBERS}.items()):
            found[title] = night(folder / "alone" if title in ALONE else store, catalogue, f"night-{number}", words)
        members = ",".join(found[title]["model_id"] for title in MEMBERS)
        for kind in FOLDERS:  # what the members left of photos is no help to the fusion
            for entry in list(open_store(str(store)).list(f"{kind}/")):
                open_store(str(store)).delete(entry.name)
        words = ["model.kind=fusion", f"model.members=[{members}]", "model.read_out={dims: 64}"]
        found["fusion of the three"] = night(store, catalogue, "fusion", words)
        return found


def main() -> None:
    """Run the nights, print the table and write the results."""
    asked = Options(__doc__, photos=400, side=320, json=Path).parse_args()
    torch.set_num_threads(1)
    results = {"photos": asked.photos, "side": asked.side, "nights": nights(asked.photos, asked.side)}
    tell(results, None)
    if asked.json:
        write(asked.json, {**made_on(), "results": results})


if __name__ == "__main__":
    main()

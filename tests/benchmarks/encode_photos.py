"""Photos, plans and jobs of the benchmarks that encode: JPEG files, and sources that answer late or repeat a few."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from made_photos import make_photo
from record import ROOT

from pipeline.catalogue import CatalogueConfig
from pipeline.encoding import EncodeConfig, EncodeJob, Encoder
from pipeline.images import ImagesConfig, transform_id
from pipeline.models import MODELS, build_model, save_bundle
from pipeline.schema import plan_schema
from pipeline.storage import Body, Files, open_store

OWN_PATHS = [str(ROOT), str(Path(__file__).resolve().parent)]


class SlowFiles(Files):
    """Files of which each comes some seconds later, as from an object store."""

    def __init__(self, delay: float) -> None:
        super().__init__()
        self.delay = delay

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "delay": self.delay}

    def fetch(self, uri: str, **wanted: Any) -> Body:
        time.sleep(self.delay)
        return super().fetch(uri, **wanted)


class SlowHost(SlowFiles):
    """Files that come late in one process alone, the first that they are sent to: as on a host with a bad cable.

    folder: where that process leaves its mark; a new one for each run.
    """

    def __init__(self, delay: float, folder: Path) -> None:
        super().__init__(delay)
        self.folder = folder

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        try:
            (self.folder / "slow").open("x").write(str(os.getpid()))
        except FileExistsError:
            if (self.folder / "slow").read_text() != str(os.getpid()):
                self.delay = 0.0


class RepeatedPhotos(Files):
    """Files of which every address gives one of a few photos, held in memory, by the number at its end."""

    def __init__(self, photos: list[bytes]) -> None:
        super().__init__()
        self.photos = photos

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "photos": self.photos}

    def fetch(self, uri: str, **wanted: Any) -> Body:
        return Body(self.photos[int(uri.rsplit("/", 1)[1]) % len(self.photos)], ())


class SlowEncoding(Files):
    """Files that make the encoder of each process they are sent to slow, as a GPU that is busy: it sleeps a batch long.

    Every process writes down when its encoder was at work, in a file of its own in `folder`.
    """

    def __init__(self, batch_s: float, folder: Path) -> None:
        super().__init__()
        self.batch_s, self.folder = batch_s, folder

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "batch_s": self.batch_s, "folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        real = Encoder._encoded
        if getattr(real, "slow", False):
            return

        def slow(encoder: Encoder, *given: Any) -> Any:
            began = time.time()
            time.sleep(self.batch_s)
            found = real(encoder, *given)
            with (self.folder / f"busy-{os.getpid()}").open("a") as file:
                file.write(f"{began} {time.time()}\n")
            return found

        slow.slow = True  # type: ignore[attr-defined]
        Encoder._encoded = slow  # type: ignore[method-assign]


def busy_share(folder: Path) -> float:
    """Return which share of the time between its first and its last batch the one encoder was at work."""
    (path,) = folder.glob("busy-*")
    spans = np.array([[float(word) for word in line.split()] for line in path.read_text().splitlines()])
    path.unlink()
    return float((spans[:, 1] - spans[:, 0]).sum() / (spans[-1, 1] - spans[0, 0]))


def make_photos(folder: Path, source: Path | None, count: int) -> list[str]:
    """Return the names of `count` JPEG files, links to 500 of a folder's or to 500 that are made."""
    if source is None:
        generator = np.random.default_rng(0)
        originals = []
        for n in range(min(count, 500)):
            originals.append(folder / f"original-{n}.jpg")
            originals[-1].write_bytes(make_photo(generator))
    else:
        found = (path for path in source.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg"})
        originals = []
        for n, path in enumerate(sorted(found)[: min(count, 500)]):
            originals.append(folder / f"original-{n}.jpg")  # copied: the source may lie on another disk
            originals[-1].write_bytes(path.read_bytes())
    names = [folder / f"{n:07d}.jpg" for n in range(count)]
    for n, name in enumerate(names):
        os.link(originals[n % len(originals)], name)
    return [str(name) for name in names]


def added_plan(uris: list[str]) -> pa.Table:
    """Return a plan in which each photo, an item of its own, is new; without shards."""
    count = len(uris)
    given = {
        "item_id": [f"{n:07d}" for n in range(count)], "uri": uris, "view": [0] * count, "token": ["version:1"] * count,
        "status": ["added"] * count, "retried": [False] * count,
    }  # fmt: skip
    schema = plan_schema([])
    columns = [pa.array(given.get(field.name, [None] * count), field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def make_job(folder: Path, files: Files, *, size: int, model: str, actors: int) -> EncodeJob:
    """Return a job whose store, with an untrained model, lies in `folder`."""
    images, config = ImagesConfig(size=size), MODELS[model][0]()
    torch.manual_seed(0)
    store = open_store(str(folder / "store"))
    built = build_model(config, image_size=images.size)
    model_id = save_bundle(store, built, config, images.model_dump(mode="json"), train_key="bench", card={})
    encode = EncodeConfig(actors=actors, batch_size=256)
    return EncodeJob(store, files, CatalogueConfig(source=str(folder)), images, encode, model_id, transform_id(images))


def start_ray(cpus: int) -> None:
    """Start a Ray of this process with so many logical CPUs, whose actors find these files too."""
    import ray
    import ray.data

    for name, value in (
        ("RAY_AUTH_MODE", "disabled"), ("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"),
    ):  # fmt: skip
        os.environ.setdefault(name, value)
    os.environ["PYTHONPATH"] = os.pathsep.join([*OWN_PATHS, os.environ.get("PYTHONPATH", "")])
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.init(
        num_cpus=cpus, include_dashboard=False, object_store_memory=512 * 2**20, logging_level="ERROR",
        log_to_driver=False, configure_logging=False,
    )  # fmt: skip
    ray.data.DataContext.get_current().enable_progress_bars = False

"""What the quality table measures in the process of one run: a preset's bundle, a fusion of bundles, the floors."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from model_measures import FLOORS, SIZES, Photos, both_parts, pixel_rows, preset_config
from options import Given
from record import ROOT

from jobs.config import Config
from pipeline.evaluation.quality import FactorPhotos, encoder_quality, factor_photos, factor_quality, label_quality
from pipeline.evaluation.spaces import Space, baseline_spaces, model_space
from pipeline.images import ImagesConfig
from pipeline.models import load_bundle, train_key
from pipeline.storage import open_store
from pipeline.training import Line
from pipeline.training.progress import TrainProgress
from pipeline.training.ranks import Ranks
from pipeline.training.worker import TrainJob, fix_process, run_rank

# The network whose random weights are among the floors.
UNTRAINED = {"fashion_mnist": "simclr_fashion_mnist", "clothing": "simclr_clothing"}
# Bundles that a fusion's preset is measured with, by preset: the same seed of each.
MEMBERS: dict[str, tuple[str, ...]] = {
    "fusion_fashion_mnist": ("descriptor_views_fashion_mnist", "vae_hog32_fashion_mnist", "autoencoder_fashion_mnist"),
    "fusion_clothing": ("descriptor_views_clothing", "vae_hog_clothing"),
}
PERTURBED = 5000  # photos of the tests by logo and by edit


def measure(name: str, seed: int, asked: Given) -> list[dict[str, Any]]:
    """Return the rows of one preset with one seed, or those of all floors."""
    size = SIZES[asked.catalogue]
    folder, bank, held = photos_of(asked)
    factors = factor_photos(ImagesConfig(size=size), seed=0)
    if name == FLOORS:
        untrained = preset_config(UNTRAINED[asked.catalogue], None).model
        spaces = baseline_spaces(bank.pixels, seed=seed, untrained=untrained, side=size)
        return [row(space, bank, held, factors, asked, name, seed) for space in spaces]
    model_id, spent = bundle_of(name, seed, asked, folder, bank)
    bundle = load_bundle(open_store(str(asked.cache)), model_id)
    shown = name.removesuffix(f"_{asked.catalogue}")
    found = row(model_space(shown, bundle.model), bank, held, factors, asked, name, seed)
    return [{**found, **spent, "kind": bundle.config.kind, "model_id": model_id}]


def photos_of(asked: Given) -> tuple[str, Photos, Photos]:
    """Return the cache's folder of decoded photos, those to learn from and those held out."""
    return both_parts(asked.data, asked.cache, asked.catalogue, SIZES[asked.catalogue], asked.limit)


def bundle_of(name: str, seed: int, asked: Given, folder: str, bank: Photos) -> tuple[str, dict[str, float]]:
    """Return the model_id of a preset trained with a seed, and CPU seconds, photos a CPU second and photos of it.

    What an earlier run trained with the same settings is taken from the cache, whose times are those of then.
    """
    if (kept := kept_bundle(name, seed, asked)) is not None:
        return kept
    members = [bundle_of(member, seed, asked, folder, bank)[0] for member in MEMBERS.get(name, ())]
    config = seeded(name, seed, asked, members)
    settings, images = config.train, config.images.model_dump(mode="json")
    key = key_in_cache(config, asked)
    note = note_of(key, asked)
    pixels, labels = pixel_rows(config, seed, folder, bank)
    store = open_store(str(asked.cache))
    job = TrainJob(store, tuple(pixels), config.model, images, settings, f"runs/{key[:12]}", key, labels)
    fix_process(settings, Ranks().device)
    ends: list[tuple[float, int]] = []

    def report(progress: TrainProgress) -> None:
        ends.append((time.process_time(), progress.total_steps))

    begun = time.process_time()
    model_id = run_rank(job, Ranks(), line=Line(report=report))
    assert model_id is not None
    spent = {"fit_cpu_s": time.process_time() - begun, "train_photos": len(bank.items), "epochs": settings.epochs}
    if ends:  # what the loop took; fitting the read-out, export and saving come after it
        seconds = ends[-1][0] - begun
        spent |= {"train_cpu_s": seconds, "images_per_cpu_s": ends[-1][1] * settings.batch_size / seconds}
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps({"model_id": model_id, **spent}))
    return model_id, spent


def presets_of(catalogue: str) -> list[str]:
    """Return the names of a catalogue's presets: fusions last, VQ models before them."""
    names = [path.stem for path in (ROOT / "jobs" / "presets").glob(f"*_{catalogue}.yaml")]
    return sorted(
        names, key=lambda name: (name in MEMBERS, name.startswith("vqvae"), name.removesuffix(f"_{catalogue}"))
    )


def kept_bundle(name: str, seed: int, asked: Given) -> tuple[str, dict[str, float]] | None:
    """Return what `bundle_of` would take from the cache; None where it would train."""
    members = [kept_bundle(member, seed, asked) for member in MEMBERS.get(name, ())]
    there = [member[0] for member in members if member is not None]
    if len(there) < len(members):
        return None
    note = note_of(key_in_cache(seeded(name, seed, asked, there), asked), asked)
    if not note.exists():
        return None
    kept = json.loads(note.read_text())
    return kept.pop("model_id"), kept


def seeded(name: str, seed: int, asked: Given, members: Sequence[str]) -> Config:
    """Return a preset's settings with a seed, one thread, and the model_ids of a fusion's members."""
    config = preset_config(name, asked.epochs)
    train = config.train.model_copy(update={"seed": seed, "threads": 1, "checkpoint_every_s": 1e9})
    model = config.model.model_copy(update={"members": tuple(members)}) if members else config.model
    return config.model_copy(update={"train": train, "model": model})


def key_in_cache(config: Config, asked: Given) -> str:
    """Return the train key of settings on the catalogue's photos."""
    images, train = config.images.model_dump(mode="json"), config.train
    return train_key(config.model, images, train.key_values(), train.seed, 1, f"{asked.catalogue} {asked.limit}")


def note_of(key: str, asked: Given) -> Path:
    """Return the file that is written when a bundle is finished: its model_id and what it took."""
    return Path(asked.cache) / "times" / f"{key}.json"


def row(
    space: Space,
    bank: Photos,
    held: Photos,
    factors: FactorPhotos,
    asked: Given,
    preset: str,
    seed: int,
) -> dict[str, Any]:
    """Return every measure of a space; the numbers of each query go into a file of their own, for paired intervals."""
    encode, seconds = timed(space.encode)
    known, found = encode(bank.pixels), encode(held.pixels)
    rate = (len(bank.pixels) + len(held.pixels)) / sum(seconds)
    quality = label_quality(known, bank.categories, bank.groups, found, held.categories, seed=0)
    everything = held.pixels if len(held.pixels) >= PERTURBED else np.concatenate([bank.pixels, held.pixels])
    numbers = {
        **quality.numbers(),
        **encoder_quality(space.encode, everything[:PERTURBED], seed=0),
        **factor_quality(space.encode, factors, seed=0),
    }
    queries = Path(asked.cache) / "queries" / f"{asked.catalogue}-{space.name}-{preset}-{seed}.npz".replace(" ", "_")
    queries.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(queries, **{name: values.astype(np.float32) for name, values in quality.values.items()})
    return {"name": space.name, "dims": space.dims, "kind": preset, "encode_images_per_cpu_s": rate,
            "queries": queries.name, **numbers}  # fmt: skip


def timed(encode: Callable[[np.ndarray], np.ndarray]) -> tuple[Callable[[np.ndarray], np.ndarray], list[float]]:
    """Return a function that also notes its CPU seconds, and the list it notes them in."""
    seconds: list[float] = []

    def run(pixels: np.ndarray) -> np.ndarray:
        begun = time.process_time()
        found = encode(pixels)
        seconds.append(time.process_time() - begun)
        return found

    return run, seconds

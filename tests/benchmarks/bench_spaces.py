"""Does every kind of index find what it reports? Three real spaces of both catalogues, asked by photos not in them.

`vae` (trained for a few epochs) and `descriptor_views` (fitted), by their presets, and `fusion` of the two, as kind
`fusion` makes it (less the items' mean, to length 1, side by side, in 64 components); the catalogue's training photos
are the items (--limit of them), held-out photos ask. Recall@10 of the held-out photos beside what the build reports
(`recall_low`; `mean` is that of its own queries), with the 95 % interval of the former by bootstrap over queries:
`short` where all of the interval lies below.

    python tests/benchmarks/bench_spaces.py --data ../shared/data --json results/spaces.json [--limit 20000]
        [--spaces clothing/descriptor_views,...]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from model_measures import SIZES, Photos, both_parts, preset_config, train
from options import NEEDED, Given, Options, absent, names_of
from record import DATA, add, made_on
from side_by_side import CACHE

from pipeline.errors import CodebooksError
from pipeline.evaluation.baselines import model_latents, principal_components
from pipeline.evaluation.retrieval import interval
from pipeline.index import KINDS, METRICS, IndexConfig, LatentArrays, build_index, kinds_here, nearest_exact
from pipeline.models import Batch, Model, build_model

EPOCHS = {"fashion_mnist": 1, "clothing": 4}
MEMBERS = ("vae", "descriptor_views")
FUSED = 64
SPACES = [f"{catalogue}/{model}" for catalogue in SIZES for model in (*MEMBERS, "fusion")]
K = 10


def model_of(name: str, catalogue: str, folder: str, bank: Photos, limit: int, cache: Path) -> Model:
    """Return a preset's model: trained where it is trained, else fitted on at most 5,000 photos."""
    config = preset_config(f"{name}_{catalogue}", EPOCHS[catalogue])
    if name == "vae":
        return train(config, 0, cache, folder, bank, chosen=np.arange(len(bank.items)) < limit)[0]
    torch.manual_seed(0)
    model = build_model(config.model, image_size=config.images.size, labels=tuple(sorted(set(bank.categories))))
    some = np.random.default_rng(0).permutation(len(bank.items))[:5000]
    batch = Batch(torch.from_numpy(bank.pixels[np.sort(some)].transpose(0, 3, 1, 2).copy()))
    model.prepare([batch])
    if model.fits:
        model.eval().fit([batch])
    return model.eval()


def vectors_of(name: str, catalogue: str, options: Given) -> tuple[np.ndarray, np.ndarray]:
    """Return a space's vectors of the items and of the photos that ask, float32 [n, d] and [q, d]."""
    if name == "fusion":
        members = [vectors_of(member, catalogue, options) for member in MEMBERS]
        items, asked = (np.concatenate(side, axis=1) for side in zip(*map(at_length_one, members), strict=True))
        found = principal_components(items, FUSED)
        return found.project(items), found.project(asked)
    folder, bank, held = both_parts(options.data, options.cache, catalogue, SIZES[catalogue])
    model = model_of(name, catalogue, folder, bank, options.limit, options.cache)
    return model_latents(model, bank.pixels[: options.limit]), model_latents(model, held.pixels[: options.queries])


def at_length_one(member: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
    centred = [side - member[0].mean(axis=0) for side in member]
    return [side / np.linalg.norm(side, axis=1, keepdims=True) for side in centred]


def measured(space: str, options: Given) -> dict[str, Any]:
    catalogue, name = space.split("/")
    items, queries = (LatentArrays(mean=vectors) for vectors in vectors_of(name, catalogue, options))
    truth, _ = nearest_exact(METRICS["cosine"], items, queries, K)
    rows = []
    for kind in kinds_here(IndexConfig()):
        try:
            built = build_index(items, IndexConfig(kind=kind, metric="cosine", threads=1, target_recall=options.target))
        except CodebooksError as error:
            rows.append({"kind": kind, "refused": " ".join(str(error).split())[:200]})
            continue
        ids = built.index.search(queries, K).ids
        found = np.array([len(np.intersect1d(a, b)) / K for a, b in zip(ids, truth, strict=True)])
        low, high = interval(found, seed=0)
        effort = {each: built.parameters[each] for each in KINDS[built.kind].tuned}
        about = {"kind": kind, "effort": effort, "reported": round(built.recall_low, 4), "mean": round(built.recall, 4)}
        about |= {"found": round(float(found.mean()), 4), "low": round(low, 4), "high": round(high, 4)}
        rows.append({**about, "short": bool(high < built.recall_low)})
        print(space, rows[-1], flush=True)
    return {"items": len(items), "queries": len(queries), "dims": items.mean.shape[1], "rows": rows}


def main() -> None:
    options = Options(
        __doc__, data=DATA, cache=CACHE, json=NEEDED, spaces=",".join(SPACES), limit=20_000, queries=500, target=0.95
    ).parse_args()
    spaces = names_of(options.spaces, SPACES, "spaces")
    if absent(options.data):
        return
    torch.set_num_threads(1)
    said = made_on()
    for space in spaces:
        add(options.json, {**measured(space, options), **said}, space)


if __name__ == "__main__":
    main()

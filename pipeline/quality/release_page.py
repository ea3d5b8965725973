"""Choose what a release's page shows: neighbours, reconstructions, gates, quarantine, changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import NotReconstructing
from ..index import LatentArrays, SearchIndex
from ..models import Bundle
from ..models.reconstruct import reconstruct
from ..ordering import take_column
from ..planning import NightSettings, Plan, category_told
from ..report import GateRow, NeighbourRow, Picture, ReportData, render_page
from ..storage import Files, Store
from ..tables import sid_lines
from .examining import Findings
from .pictures import Pictures

_QUERIES = 8
_NEIGHBOURS = 10
_OVERFETCH = 40  # photos asked for so that ten distinct other items are among them
_BY_CATEGORY = {
    "category_knn": "k-NN accuracy",
    "category_precision_at_10": "P@10",
    "category_map_at_r": "MAP@R",
    "category_ndcg_at_10": "NDCG@10",
    "category_probe": "linear probe",
}


def report_page(
    store: Store,
    config: NightSettings,
    plan: Plan,
    bundle: Bundle,
    found: Findings,
    *,
    run: str,
    measured: Mapping[str, Any],
    files: Files | None = None,
) -> bytes:
    """Return the release's self-contained HTML page.

    measured: seconds and photos_per_s by stage so far. files: reads the shown photos whose pixels are not kept.
    """
    items, counts = found.items, found.counts
    shown = choose_queries(items, seed=config.train.seed)
    index = found.built.index
    near = [neighbours_of(row, items, found.latents, index) for row in shown]
    wanted = sorted({*shown, *(row for pairs in near for row, _ in pairs)})
    images = bundle.transforms[0].under(config.images)
    album = Pictures(store, images, files=files, catalogue=config.catalogue, plan_rows=plan.rows)
    pixels = album.read(items, wanted)
    data = ReportData(
        title=f"Release of run {run}",
        facts=facts(config, plan, bundle, found, measured),
        gates=[GateRow(v.name, _text(v.value), _text(v.limit), v.passed) for v in found.verdicts],
        neighbours=neighbour_rows(items, shown, near, pixels, category=config.catalogue.category),
        reconstructions=reconstructions(
            bundle, [pixels[row] for row in shown if row in pixels], categories_of(config, items, shown, pixels)
        ),
        quarantine=quarantine_rows(found.quarantine),
        changes=[(name, counts[name]) for name in ("added", "changed", "removed", "relabelled", "quarantined")],
    )
    return render_page(data)


def choose_queries(items: pa.Table, *, seed: int) -> list[int]:
    """Return up to eight rows of items, spread over the table, the same for the same seed."""
    generator = np.random.default_rng(seed)
    return sorted(generator.choice(items.num_rows, size=min(_QUERIES, items.num_rows), replace=False).tolist())


def neighbours_of(row: int, items: pa.Table, latents: LatentArrays, index: SearchIndex) -> list[tuple[int, float]]:
    """Return (row, score) of the ten nearest photos of other items, the best photo of each item, nearest first."""
    ids, scores = index.search(latents.take([row]), min(_OVERFETCH, items.num_rows))
    own = items["item_id"][row].as_py()
    best: dict[str, tuple[int, float]] = {}
    for found, score in zip(ids[0].tolist(), scores[0].tolist(), strict=True):
        if found < 0:
            break
        item = items["item_id"][found].as_py()
        if item != own and item not in best:
            best[item] = (found, score)
    return list(best.values())[:_NEIGHBOURS]


def neighbour_rows(
    items: pa.Table,
    shown: Sequence[int],
    found: Sequence[Sequence[tuple[int, float]]],
    pixels: dict[int, np.ndarray],
    *,
    category: str | None,
) -> list[NeighbourRow]:
    """Return the grid: a query and its neighbours; those without pixels are left out."""
    rows = []
    for query, near in zip(shown, found, strict=True):
        if query not in pixels:
            continue
        label = items[category][query].as_py() if category else None
        pictures = []
        for row, score in near:
            if row in pixels:
                other = items[category][row].as_py() if category else None
                detail = f"{score:.3f}" if other is None else f"{other}, {score:.3f}"
                same = None if label is None or other is None else other == label
                pictures.append(Picture(pixels[row], items["item_id"][row].as_py(), detail, same))
        caption = items["item_id"][query].as_py()
        rows.append(NeighbourRow(Picture(pixels[query], caption, str(label or ""), None), pictures))
    return rows


def reconstructions(
    bundle: Bundle, photos: Sequence[np.ndarray], categories: Sequence[str | None] | None = None
) -> list[tuple[Picture, Picture]]:
    """Return (original, reconstruction) pairs; none for a model without a decoder.

    categories: the photos' own, where the model is told them.
    """
    try:
        made = reconstruct(bundle.model, np.stack(photos), categories) if photos else np.empty(0)
    except NotReconstructing:
        return []
    pairs = zip(photos, made, strict=True)
    return [(Picture(a, "original"), Picture(b, "reconstruction")) for a, b in pairs]


def categories_of(
    config: NightSettings, items: pa.Table, shown: Sequence[int], pixels: dict[int, np.ndarray]
) -> list[str | None] | None:
    """Return the categories of the shown photos with pixels, None for a model that is not told them."""
    told = category_told(config)
    if told is None:
        return None
    rows = [row for row in shown if row in pixels]
    return list(take_column(items[told], np.array(rows, np.int64)).cast(pa.string()).to_pylist())


def quarantine_rows(quarantine: pa.Table) -> list[tuple[str, int, str]]:
    """Return (reason, count, one example) of the refused photos, most frequent first."""
    counted = sorted(pc.value_counts(quarantine["reason"]).to_pylist(), key=lambda entry: -entry["counts"])
    rows = []
    for entry in counted:
        first = quarantine.filter(pc.equal(quarantine["reason"], entry["values"])).slice(0, 1).to_pylist()[0]
        rows.append((entry["values"], entry["counts"], f"{first['item_id']}: {first['detail']}"))
    return rows


def facts(
    config: NightSettings, plan: Plan, bundle: Bundle, found: Findings, measured: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Return what the head of the page says."""
    counts, measures, rates = found.counts, found.measures, measured["photos_per_s"]
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in measured["seconds"].items())
    return [
        ("photos, items", f"{counts['photos']:,} photos of {counts['items']:,} items; {counts['refused']:,} refused"),
        ("model", f"{config.model.kind}, {bundle.model.latent_dim} dimensions, {bundle.model_id[:12]}"),
        ("index", f"{found.built.kind}, {config.index.metric}, recall {measures['recall']:.3f}"),
        *(("index, " + name, line) for name, line in found.built.told()),
        ("parent", plan.summary.parent or "none: the first release of this channel"),
        ("by category", "; ".join(category_lines(measures)) or "no category named"),
        *(("semantic IDs", line) for line in sid_lines(measures, found.further.inputs)),
        ("stages", seconds),
        ("photos per second", ", ".join(f"{name} {value:,.0f}" for name, value in rates.items()) or "nothing computed"),
    ]


def category_lines(measures: Mapping[str, float]) -> list[str]:
    """Return a release's measures by category for people, one each, those with an interval with it."""
    lines = []
    for name, title in _BY_CATEGORY.items():
        if name in measures:
            low, high = measures.get(f"{name}_low"), measures.get(f"{name}_high")
            between = "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"
            lines.append(f"{title} {measures[name]:.3f}{between}")
    return lines


def _text(value: float | None) -> str:
    return "off" if value is None else f"{value:.4g}"

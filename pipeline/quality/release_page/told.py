"""What a release says of itself, in words for the head of its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...models import Bundle
from ...planning import NightSettings, Plan
from ...release import Manifest
from ...tables import sid_lines
from ..examining import Findings

_BY_CATEGORY = {
    "category_knn": "k-NN accuracy",
    "category_precision_at_10": "P@10",
    "category_map_at_r": "MAP@R",
    "category_ndcg_at_10": "NDCG@10",
    "category_probe": "linear probe",
}


def category_lines(measures: Mapping[str, float]) -> list[str]:
    """Return a release's measures by category for people, one each, those with an interval with it."""
    lines = []
    for name, title in _BY_CATEGORY.items():
        if name in measures:
            low, high = measures.get(f"{name}_low"), measures.get(f"{name}_high")
            between = "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"
            lines.append(f"{title} {measures[name]:.3f}{between}")
    return lines


def night_facts(
    config: NightSettings, plan: Plan, bundle: Bundle, found: Findings, measured: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Return what the head of a page says of a release that is being made."""
    rates = measured["photos_per_s"]
    return [
        *_facts(
            counts=found.counts,
            measures=found.measures,
            model=f"{config.model.kind}, {bundle.model.latent_dim} dimensions, {bundle.model_id[:12]}",
            index=f"{found.built.kind}, {config.index.metric}",
            told=found.built.told(),
            parent=plan.summary.parent,
            inputs=found.further.inputs,
        ),
        ("photos per second", ", ".join(f"{name} {value:,.0f}" for name, value in rates.items()) or "nothing computed"),
    ]


def stored_facts(manifest: Manifest) -> list[tuple[str, str]]:
    """Return what the head of a page says of a release on the store."""
    return [
        *_facts(
            counts=manifest.counts,
            measures=manifest.measures,
            model=f"{manifest.model_kind}, {manifest.latent_dim} dimensions, {manifest.model_id[:12]}",
            index=f"{manifest.index_kind}, {manifest.metric}",
            told=[],
            parent=manifest.parent,
            inputs=manifest.inputs,
        ),
        ("made", f"{manifest.created:%Y-%m-%d %H:%M} UTC by run {manifest.run}, version {manifest.code_version}"),
    ]


def _facts(
    *,
    counts: Mapping[str, int],
    measures: Mapping[str, float],
    model: str,
    index: str,
    told: Sequence[tuple[str, str]],
    parent: str | None,
    inputs: Mapping[str, Any],
) -> list[tuple[str, str]]:
    recall = f", recall {measures['recall']:.3f}" if "recall" in measures else ""
    known = {name: counts.get(name, 0) for name in ("photos", "items", "refused")}
    return [
        ("photos, items", f"{known['photos']:,} photos of {known['items']:,} items; {known['refused']:,} refused"),
        ("model", model),
        ("index", index + recall),
        *(("index, " + name, line) for name, line in told),
        ("parent", parent or "none: the first release of this channel"),
        ("by category", "; ".join(category_lines(measures)) or "no category named"),
        *(("semantic IDs", line) for line in sid_lines(measures, inputs)),
    ]

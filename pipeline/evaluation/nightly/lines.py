"""The table of a night's measures, one line each, and their computation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import pyarrow as pa

from ..measured import Measured
from .asked import asked_table
from .category import category
from .churn import churn
from .code_use import code_use
from .config import LineName
from .coverage import coverage
from .drift import drift, drift_changed
from .hubness import hubness
from .identical import identical
from .lidar import lidar
from .likelihood import likelihood
from .near_duplicates import near_duplicates
from .photo_recall import photo_recall
from .reconstruction import reconstruction
from .rekeyed import rekeyed
from .scores import scores
from .spread import spread
from .tonight import Found, LeftOut, Tonight
from .view_agreement import view_agreement

LINES: Mapping[LineName, Callable[[Tonight], Found]] = {
    "photo_recall": photo_recall,
    "view_agreement": view_agreement,
    "lidar": lidar,
    "reconstruction": reconstruction,
    "likelihood": likelihood,
    "spread": spread,
    "hubness": hubness,
    "churn": churn,
    "scores": scores,
    "near_duplicates": near_duplicates,
    "identical": identical,
    "rekeyed": rekeyed,
    "coverage": coverage,
    "drift": drift,
    "drift_changed": drift_changed,
    "code_use": code_use,
    "category": category,
}
OF_PIXELS: tuple[LineName, ...] = ("photo_recall", "view_agreement", "lidar", "reconstruction")


@dataclass(frozen=True, slots=True)
class Nightly:
    """found: the measures, in the order of LINES; left_out: why a line was not measured; asked: schema.NEIGHBOURS, what
    the next night compares with; None where nothing compares."""

    found: tuple[Measured, ...]
    left_out: dict[str, str]
    asked: pa.Table | None

    def behind(self, others: Iterable[Measured]) -> Nightly:
        """Return it with other measures of the night before the found ones."""
        return replace(self, found=(*others, *self.found))


def nightly_measures(tonight: Tonight) -> Nightly:
    """Return what LINES measure of a night, but for those that are off, and for values that are no number."""
    found: list[Measured] = []
    left_out: dict[str, str] = {}
    for name, line in LINES.items():
        if name in tonight.config.without:
            continue
        said = line(tonight)
        if isinstance(said, LeftOut):
            left_out[name] = said.why
            continue
        if strange := [one.name for one in said if not math.isfinite(one.value)]:
            left_out[name] = f"{', '.join(sorted(set(strange)))} would be no finite number"
        found += [one for one in said if math.isfinite(one.value)]
    parent = tonight.night.parent
    if parent is not None and not tonight.same_space:
        what = "is of another bundle or metric, or weighs codes by what it holds"
        left_out["parent_scores"] = f"scores are not compared with those of {parent.release_id}, which {what}"
    compares = {"churn", "scores"} - set(tonight.config.without)
    return Nightly(tuple(found), left_out, asked_table(tonight.asked, tonight.item_ids) if compares else None)

"""How much a night measures."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

LineName = Literal[
    "photo_recall",
    "view_agreement",
    "lidar",
    "reconstruction",
    "likelihood",
    "spread",
    "hubness",
    "churn",
    "scores",
    "near_duplicates",
    "identical",
    "rekeyed",
    "coverage",
    "drift",
    "drift_changed",
    "code_use",
    "category",
]
LINE_NAMES: tuple[str, ...] = get_args(LineName)


class MeasuresConfig(BaseModel):
    """What a night measures of a release (`evaluation.nightly` names all), and on how many items.

    queries: items whose photos are shown once more and whose neighbours are asked of the index, and up to 600 more so
    that each of the 20 most frequent categories has some. fetched: how many photos whose pixels are not kept may be
    fetched once more for it. sample: items that stand for the catalogue where all are compared with all. seed: which
    items these are, and how their photos are shown. without: lines that are left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    queries: int = Field(default=1000, ge=10, le=20_000)
    fetched: int = Field(default=200, ge=0, le=20_000)
    sample: int = Field(default=10_000, ge=100, le=50_000)
    seed: int = Field(default=0, ge=0)
    without: tuple[LineName, ...] = ()

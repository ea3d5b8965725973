"""What a night has to do: which photos, in which shards, by which keys; and what of them is trained on."""

from __future__ import annotations

from .code_rows import ReleasePhotos, release_photos
from .plan import Plan, PlanSummary, category_told, make_plan, nothing_to_do, release_config
from .settings import NightSettings
from .training_rows import TrainingRows, check_training_columns, training_rows

__all__ = [
    "NightSettings",
    "Plan",
    "PlanSummary",
    "ReleasePhotos",
    "TrainingRows",
    "category_told",
    "check_training_columns",
    "make_plan",
    "nothing_to_do",
    "release_config",
    "release_photos",
    "training_rows",
]

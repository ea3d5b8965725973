"""What a night has to do: which photos, in which shards, by which keys; and what of them is trained on."""

from __future__ import annotations

from .asked import Asked, category_told
from .code_rows import ReleasePhotos, release_photos
from .memory import memory_lines
from .plan import (
    Plan,
    PlanSummary,
    make_plan,
    measure_settings,
    nothing_to_do,
    nothing_usable,
    release_config,
    table_settings,
)
from .refused import ask_refused_again
from .renewal import Renewal, renewal_of
from .resolution import main_transforms, photos_to_learn_from, pixels_line, shard_builder, stores_pixels
from .settings import NightSettings
from .standing import Standing, look
from .teachers import fit_settings, teacher_plan
from .training_rows import TrainingRows, check_training_columns, first_shards, training_rows

__all__ = [
    "Asked",
    "NightSettings",
    "Plan",
    "PlanSummary",
    "ReleasePhotos",
    "Renewal",
    "Standing",
    "TrainingRows",
    "ask_refused_again",
    "category_told",
    "check_training_columns",
    "first_shards",
    "fit_settings",
    "look",
    "main_transforms",
    "make_plan",
    "measure_settings",
    "memory_lines",
    "nothing_to_do",
    "nothing_usable",
    "photos_to_learn_from",
    "pixels_line",
    "release_config",
    "release_photos",
    "renewal_of",
    "shard_builder",
    "stores_pixels",
    "table_settings",
    "teacher_plan",
    "training_rows",
]

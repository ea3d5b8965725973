"""What a night has to do first, for a model that learns from a teacher which has no bundle yet."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..images import transform_id
from ..keys import digest_of
from ..models.bundle import find_bundle
from ..storage import Store
from ..training import TrainConfig
from .asked import Asked
from .plan import Plan
from .resolution import main_transforms
from .settings import NightSettings


def fit_settings(train: TrainConfig) -> TrainConfig:
    """Return what of a training a teacher takes, whose read-out alone is fitted: which photos are held out, the seed.

    So the same teacher has one train key, whoever learns from it, and it is never made anew by the night.
    """
    kept = ("seed", "version", "validation", "split_by", "threads", "cache_gib", "max_failures")
    return TrainConfig.model_validate({name: getattr(train, name) for name in kept})


def teacher_plan(plan: Plan, config: NightSettings, store: Store, chosen: NDArray[np.bool_] | None = None) -> Plan:
    """Return a plan for the teacher's own bundle: the same photos, as the teacher sees them, under its train key.

    config: the night's, with the teacher as its model. chosen: which photos alone it may be fitted on, which sets it
    apart from the teacher of all. Raises ConfigError, NotFound as `main_transforms`.
    """
    key = Asked.of(config, plan.summary.sample).train_key(
        "" if chosen is None else f"chosen:{digest_of(chosen.tobytes())}"
    )
    found = {
        "train_key": key,
        "model_id": find_bundle(store, key),
        "transform_id": transform_id(*main_transforms(config, store, None)),
    }
    return Plan(plan.rows, plan.summary.model_copy(update=found))

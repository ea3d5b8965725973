"""Candidates of `choose`: read from the config, presets and files, and made by the stages in this process."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.command import Arguments
from jobs.computing import encode_photos, train_model
from jobs.config import Config
from jobs.context import Context
from jobs.sources import read_sources
from pipeline.index import gather_latents
from pipeline.models import load_bundle
from pipeline.planning import Plan, make_plan
from pipeline.quality.candidates import Named, named_candidates
from pipeline.quality.choosing import Made
from pipeline.settings import check_and_build, merge, normal
from pipeline.storage import Store
from pipeline.storage.overlay import Overlay

_BY_KEY = ("models/by-key/",)


def candidates_asked(arguments: Arguments, config: Config) -> dict[str, Named]:
    """Return the candidates that a command line or its config names. Raises ConfigError as `named_candidates` does."""
    return named_candidates(
        config.choose,
        config,
        merge(read_sources(arguments)).values,
        arguments.options.candidates,
        read=lambda name: merge(read_sources(Arguments(config=name), {})).values,
        build=lambda source: check_and_build(merge([normal(source)]), Config),
    )


@dataclass
class Stages:
    """Makes candidates by the stages of a night, on this machine, on a store that is thrown away."""

    context: Context
    scratch: Store
    limit: int
    plans: dict[tuple[str, str], Plan] = field(default_factory=dict)

    def plan(self, settings: Any, apart: str) -> pa.Table:
        """Return the photos that a model of these settings is made of."""
        return self._plan(settings, apart).rows

    def made(self, settings: Any, apart: str, key: str, chosen: NDArray[np.bool_]) -> Made:
        """Return the model that answers the key, made of the chosen photos alone, and what it says of all."""
        context, plan = self._context(settings, apart), self._plan(settings, apart)
        plan = replace(plan, summary=plan.summary.model_copy(update={"train_key": key, "model_id": None}))
        begun = time.process_time()
        model_id = train_model(context, plan, lambda: None, chosen=chosen)
        spent = time.process_time() - begun
        plan = replace(plan, summary=plan.summary.model_copy(update={"model_id": model_id}))
        items = encode_photos(context, plan, model_id, lambda: None).items
        vectors = gather_latents(context.store, items).mean
        return Made(load_bundle(context.store, model_id), context.store, items, vectors, spent)

    def _plan(self, settings: Any, apart: str) -> Plan:
        """Return the plan of a seeded sample, compared with no release; one for all folds of a fusion's members."""
        named = (apart, settings.model.model_dump_json() + settings.images.model_dump_json())
        if named not in self.plans:
            context = self._context(settings, apart)
            self.plans[named] = make_plan(
                context.config, context.store, context.files, run=context.run.name, limit=self.limit
            )
        return self.plans[named]

    def _context(self, settings: Any, apart: str) -> Context:
        store = Overlay(self.scratch, self.context.store, apart=apart, apart_prefix=_BY_KEY)
        # Stored for all folds and seeds, whatever a night would do; thrown away at the end.
        images = settings.images.model_copy(update={"keep": "always"})
        return replace(self.context, config=settings.model_copy(update={"images": images}), store=store, here=True)

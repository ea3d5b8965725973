"""The stages that need Ray: pixels, training, encoding."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.context import Context, StartRay
from pipeline.catalogue import FailureLimits
from pipeline.encoding import (
    Asked,
    FetchLimits,
    ShardResult,
    among,
    collect_features,
    collect_pixels,
    collect_rows,
    compact,
    hash_parts,
    run_shards,
    run_shards_apart,
    settle,
)
from pipeline.events import ShardEnded, tell
from pipeline.models.bundle import BUNDLES, find_bundle
from pipeline.parts import PartFile
from pipeline.planning import (
    Plan,
    TrainingRows,
    category_told,
    check_training_columns,
    first_shards,
    fit_settings,
    photos_to_learn_from,
    teacher_plan,
    training_rows,
)
from pipeline.planning.stage_work import held_over, latents_parts, none_left, stage_work, training_of
from pipeline.quality.examining import check_encoded
from pipeline.runs import Lookout
from pipeline.training import train_here, train_job


@dataclass(frozen=True, slots=True)
class Encoded:
    """The photos that live (schema.items_schema), those refused (schema.QUARANTINE but first_seen), parts by name."""

    items: pa.Table
    refused: pa.Table
    parts: dict[str, PartFile]


def train_model(context: Context, plan: Plan, start_ray: StartRay, *, chosen: NDArray[np.bool_] | None = None) -> str:
    """Return the model_id that answers the plan's train key; decodes pixels and trains when no bundle does.

    A model that only fits takes the pixels of as many photos as that needs; one that learns nothing takes none. chosen:
    which rows of the plan may be trained on, bool [n]; None: all.
    """
    store, config = context.store, context.config
    found = plan.summary.model_id or find_bundle(store, plan.summary.train_key)
    if found:
        BUNDLES.answer(store, plan.summary.train_key, found)  # an earlier version may have named it by another key
        context.progress.note(f"train: bundle {found[:12]} answers train key {plan.summary.train_key[:12]}")
        return found
    check_training_columns(plan.rows, config)
    teacher = _teacher(context, plan, start_ray, chosen)
    rows, needed = TrainingRows([], ()), photos_to_learn_from(config, store)
    if needed != 0:
        fitting = plan
        if needed is not None and chosen is None and needed < plan.rows.num_rows:
            fitting = replace(plan, rows=first_shards(plan.rows, config.train, needed))
        stage = "teacher" if teacher else "pixels"
        asked, results = compute(context, fitting, start_ray, stage=stage, model_id=teacher)
        context.attempt.check()
        living = collect_pixels(store, asked.rows, asked.shards, results)
        if not living:
            raise none_left(store, asked)
        seen = collect_features(store, asked.shards, results) if teacher else None
        rows = training_rows(asked.rows, living if chosen is None else among(living, chosen), config, seen)
    unseen = f", {rows.unseen:,} left out, of which the teacher says nothing" if rows.unseen else ""
    context.progress.note(f"train: {rows.photos:,} photos, {rows.held_out:,} held out for validation{unseen}")
    start_ray()
    job = training_of(context, plan, rows, teacher, exports=not context.here)
    with context.watch.stage("train", photos=rows.photos * config.train.epochs):
        train = train_here if context.here else train_job
        return train(job, progress=context.progress.training)


def _teacher(context: Context, plan: Plan, start_ray: StartRay, chosen: NDArray[np.bool_] | None) -> str | None:
    """Return the model_id of the model's teacher, made now where the config describes it; None where it has none."""
    asked = context.config.model.taught_by()
    if asked is None or isinstance(asked, str):
        return asked
    config = context.config.model_copy(update={"model": asked, "train": fit_settings(context.config.train)})
    its_plan = teacher_plan(plan, config, context.store, chosen)
    return train_model(replace(context, config=config), its_plan, start_ray, chosen=chosen)


def encode_photos(context: Context, plan: Plan, model_id: str, start_ray: StartRay) -> Encoded:
    """Return the items of the release: carried rows, and the rest encoded by `model_id`."""
    context.attempt.check()
    asked, results = compute(context, plan, start_ray, stage="encode", model_id=model_id)
    items, refused = collect_rows(context.store, asked.rows, asked.shards, results)
    if not items.num_rows and any(result.unanswered for result in results):
        raise none_left(context.store, asked)
    gates_passed = [gate for one in context.allowed for gate in one.gates]
    check_encoded(items, refused, context.config.gates, allowed=gates_passed)
    parts = latents_parts(context.store, plan, results)
    with context.watch.stage("compact"):
        items, rewritten = compact(
            context.store,
            items,
            parts,
            model_id=model_id,
            precision=context.config.encode.precision,
            below=context.config.encode.rewrite_below,
            max_parts=context.config.encode.max_parts,
            category=category_told(context.config),
        )
        return Encoded(items, refused, hash_parts(context.store, items, {**parts, **rewritten}))


def compute(
    context: Context, plan: Plan, start_ray: StartRay, *, stage: str, model_id: str | None
) -> tuple[Asked, list[ShardResult]]:
    """Return what of the plan was asked and became of it; Ray is not started when every part is there already.

    model_id: as `stage_work` takes it. Raises what `FailureLimits.check` does when more photos fail than are photos'
    fault.
    """
    with context.watch.stage(stage):
        work = stage_work(context, plan, stage=stage, model_id=model_id)
    if not work.todo:
        return work.asked, work.done
    start_ray()
    context.attempt.check()
    lookout = Lookout(context.store, context.run.folder, context.attempt.number)
    limits = FetchLimits(FailureLimits(plan.rows["uri"], context.config.catalogue.max_unreachable), work.asked)
    with context.watch.stage(stage, photos=work.photos), context.progress.stage(stage, total=work.photos) as advance:

        def ended(result: ShardResult, _done: int, _total: int) -> None:
            advance(result.photos)
            told = (result.photos, result.refused, result.reused, result.node, result.seconds, result.said)
            tell(ended_shard := ShardEnded(stage, result.number, *told))
            context.progress.shard(ended_shard)
            limits.note(result)

        run = run_shards_apart if context.here else run_shards
        fresh = run(work.todo, work.job, on_result=ended, check=lookout.check)
    limits.end()
    results = sorted([*work.done, *fresh], key=lambda result: result.number)
    return settle(work.asked, results, held_over(context, plan, fresh)), results

"""The stages that need Ray: pixels, training, encoding."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.context import Context, StartRay
from pipeline.catalogue import FailureLimits
from pipeline.encoding import (
    HELD_OVER,
    Asked,
    EncodeJob,
    FetchLimits,
    ShardResult,
    among,
    ask_again,
    collect_features,
    collect_pixels,
    collect_rows,
    compact,
    hash_parts,
    run_shards,
    run_shards_apart,
    settle,
    split_done,
)
from pipeline.events import ShardEnded, tell
from pipeline.models.bundle import BUNDLES, find_bundle
from pipeline.parts import PartFile, read_part
from pipeline.planning import (
    Plan,
    TrainingRows,
    category_told,
    check_training_columns,
    first_shards,
    fit_settings,
    main_transforms,
    nothing_usable,
    photos_to_learn_from,
    shard_builder,
    stores_pixels,
    teacher_plan,
    training_rows,
)
from pipeline.quality.examining import check_encoded
from pipeline.release import read_manifest
from pipeline.release.tables import read_table
from pipeline.runs import Lookout
from pipeline.training import TrainJob, train_here, train_job


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
            raise nothing_usable(_with_refusals(context, asked))
        seen = collect_features(store, asked.shards, results) if teacher else None
        rows = training_rows(asked.rows, living if chosen is None else among(living, chosen), config, seen)
    unseen = f", {rows.unseen:,} left out, of which the teacher says nothing" if rows.unseen else ""
    context.progress.note(f"train: {rows.photos:,} photos, {rows.held_out:,} held out for validation{unseen}")
    start_ray()
    job = TrainJob(
        store=store,
        pixels=tuple(rows.pixels),
        labels=rows.labels,
        model=config.model,
        images=config.images.model_dump(mode="json"),
        train=config.train,
        run_dir=f"runs/{context.run.name}",
        attempt=context.attempt.number,
        train_key=plan.summary.train_key,
        teacher=teacher,
        exports=not context.here,
    )
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


def _with_refusals(context: Context, asked: Asked) -> pa.Table:
    """Return the plan's refused photos, and those that the first part says were refused by the decoder."""
    names = ["item_id", "uri", "reason", "detail"]
    said = [asked.rows.select(names)]
    said += [read_part(context.store, shard.pixels_name, names) for shard in asked.shards[:1]]
    return pa.concat_tables([rows.filter(pc.is_valid(rows["reason"])) for rows in said])


def encode_photos(context: Context, plan: Plan, model_id: str, start_ray: StartRay) -> Encoded:
    """Return the items of the release: carried rows, and the rest encoded by `model_id`."""
    context.attempt.check()
    asked, results = compute(context, plan, start_ray, stage="encode", model_id=model_id)
    items, refused = collect_rows(context.store, asked.rows, asked.shards, results)
    if not items.num_rows and any(result.unanswered for result in results):
        raise nothing_usable(_with_refusals(context, asked))
    gates_passed = [gate for one in context.allowed for gate in one.gates]
    check_encoded(items, refused, context.config.gates, allowed=gates_passed)
    parts = {result.latents.name: result.latents for result in results if result.latents is not None}
    if plan.summary.parent is not None:
        parts = {**{part.name: part for part in read_manifest(context.store, plan.summary.parent).parts}, **parts}
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

    Without a model only the shards whose photos have to be fetched. A model of other sizes than the plan's own, a
    teacher, has them decoded in the same pass; photos are fetched for it where it has no latents yet. Stages before
    `encode` store the pixels where a training reads them. Raises what `FailureLimits.check` does when more
    photos fail than are photos' fault.
    """
    config, store = context.config, context.store
    known = plan.summary.model_id or find_bundle(store, plan.summary.train_key)
    transforms = main_transforms(config, store, known)
    stores = stores_pixels(config, plan.summary.counts["photos"]) or (
        stage != "encode" and config.model.trains_on_pixels
    )
    with context.watch.stage(stage):
        asked = ask_again(
            store,
            plan.rows,
            shard_builder(config, store, transforms, model_id, stores=stores),
            transform_id=plan.summary.transform_id,
            run=context.run.name,
        )
        done, todo = split_done(asked.shards, store)
    if not todo:
        return asked, done
    start_ray()
    context.attempt.check()
    photos = sum(shard.photos.num_rows for shard in todo)
    job = EncodeJob(
        store=store,
        files=context.files,
        catalogue=config.catalogue,
        images=config.images,
        encode=config.encode,
        model_id=model_id,
        transform_id=plan.summary.transform_id,
        stores=transforms,
    )
    lookout = Lookout(store, context.run.folder, context.attempt.number)
    limits = FetchLimits(FailureLimits(plan.rows["uri"], config.catalogue.max_unreachable), asked)
    with context.watch.stage(stage, photos=photos), context.progress.stage(stage, total=photos) as advance:

        def ended(result: ShardResult, _done: int, _total: int) -> None:
            advance(result.photos)
            told = (result.photos, result.refused, result.reused, result.node, result.seconds, result.said)
            tell(ended_shard := ShardEnded(stage, result.number, *told))
            context.progress.shard(ended_shard)
            limits.note(result)

        run = run_shards_apart if context.here else run_shards
        fresh = run(todo, job, on_result=ended, check=lookout.check)
    limits.end()
    results = sorted([*done, *fresh], key=lambda result: result.number)
    return settle(asked, results, _yesterday(context, plan, fresh)), results


def _yesterday(context: Context, plan: Plan, results: list[ShardResult]) -> pa.Table | None:
    """Return the parent's items where photos that do not answer tonight may keep their latents of yesterday."""
    silent = any(photo.reason == "unreachable" for result in results for photo in result.unanswered)
    # Latents of another model cannot stand beside tonight's, nor may those of a model that was told another category.
    if not silent or plan.summary.parent is None or plan.summary.encode_all or category_told(context.config):
        return None
    return read_table(context.store, read_manifest(context.store, plan.summary.parent), "items", columns=HELD_OVER)

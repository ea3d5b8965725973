"""The stages that need Ray: pixels, training, encoding."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from jobs.context import Context, StartRay
from pipeline.encoding import (
    EncodeJob,
    Shard,
    ShardResult,
    build_shards,
    collect_pixels,
    collect_rows,
    compact,
    run_shards,
    split_done,
)
from pipeline.errors import InputError
from pipeline.models.bundle import answer_also, find_bundle
from pipeline.parts import PartFile, read_part
from pipeline.planning import Plan, category_told, check_training_columns, training_rows
from pipeline.release import read_manifest
from pipeline.runs import Lookout
from pipeline.training import train_bundle


@dataclass(frozen=True, slots=True)
class Encoded:
    """The photos that live (schema.items_schema), those refused (schema.QUARANTINE but first_seen), parts by name."""

    items: pa.Table
    refused: pa.Table
    parts: dict[str, PartFile]


def train_model(context: Context, plan: Plan, start_ray: StartRay) -> str:
    """Return the model_id that answers the plan's train key; decodes pixels and trains when no bundle does."""
    store, config = context.store, context.config
    found = plan.summary.model_id or find_bundle(store, plan.summary.train_key)
    if found:
        answer_also(store, plan.summary.train_key, found)  # an earlier version may have named it by another key
        context.progress.note(f"train: bundle {found[:12]} answers train key {plan.summary.train_key[:12]}")
        return found
    check_training_columns(plan.rows, config)
    shards = shards_of(context, plan, model_id=None)
    results = compute(context, plan, shards, start_ray, stage="pixels", model_id=None)
    context.attempt.check()
    living = collect_pixels(store, plan.rows, shards, results)
    if not living:
        raise InputError(_nothing_to_train_on(context, shards))
    rows = training_rows(plan.rows, living, config)
    context.progress.note(f"train: {rows.photos:,} photos, {rows.held_out:,} held out for validation")
    start_ray()
    with context.watch.stage("train", photos=rows.photos * config.train.epochs):
        return train_bundle(
            store,
            pixels=rows.pixels,
            labels=rows.labels,
            model=config.model,
            images=config.images.model_dump(mode="json"),
            train=config.train,
            run_dir=f"runs/{context.run.name}",
            attempt=context.attempt.number,
            train_key=plan.summary.train_key,
            progress=context.progress.training,
        )


def _nothing_to_train_on(context: Context, shards: list[Shard]) -> str:
    names = ["item_id", "uri", "reason", "detail"]
    first = read_part(context.store, shards[0].pixels_name, names).slice(0, 3).to_pylist()
    refused = "; ".join(f"{row['item_id']} ({row['uri']}): {row['reason']}, {row['detail']}" for row in first)
    count = sum(shard.photos.num_rows for shard in shards)
    return f"none of {count:,} photos could be used, so there is nothing to train on. First: {refused}"


def encode_photos(context: Context, plan: Plan, model_id: str, start_ray: StartRay) -> Encoded:
    """Return the items of the release: carried rows, and the rest encoded by `model_id`."""
    context.attempt.check()
    shards = shards_of(context, plan, model_id=model_id)
    results = compute(context, plan, shards, start_ray, stage="encode", model_id=model_id)
    items, refused = collect_rows(context.store, plan.rows, shards, results)
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
    return Encoded(items, refused, {**parts, **rewritten})


def shards_of(context: Context, plan: Plan, *, model_id: str | None) -> list[Shard]:
    """Return the shards of a plan; without a model only those whose photos have to be fetched."""
    return build_shards(
        plan.rows,
        transform_id=plan.summary.transform_id,
        model_id=model_id,
        precision=context.config.encode.precision,
        retry_of=context.run.name,
        category=category_told(context.config),
    )


def compute(
    context: Context, plan: Plan, shards: list[Shard], start_ray: StartRay, *, stage: str, model_id: str | None
) -> list[ShardResult]:
    """Return the results of all shards in their order; Ray is not started when every part is there already."""
    config, store = context.config, context.store
    with context.watch.stage(stage):
        done, todo = split_done(shards, store)
    if not todo:
        return done
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
    )
    lookout = Lookout(store, context.run.folder, context.attempt.number)
    with context.watch.stage(stage, photos=photos), context.progress.stage(stage, total=photos) as advance:

        def ended(result: ShardResult, _done: int, _total: int) -> None:
            lookout.check()
            advance(result.photos)

        fresh = run_shards(todo, job, on_result=ended)
    return sorted([*done, *fresh], key=lambda result: result.number)

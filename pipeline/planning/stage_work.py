"""What one stage of a night computes: the photos that are asked for, in which shards, and the job that does it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ..encoding import HELD_OVER, Asked, EncodeJob, Shard, ShardResult, ask_again, split_done
from ..errors import CodebooksError
from ..models.bundle import find_bundle
from ..parts import FoundPart, read_part
from ..release import read_manifest
from ..release.tables import read_table
from ..storage import Store
from ..training import TrainJob
from .asked import category_told
from .freezing import NightAttempt
from .plan import Plan, nothing_usable
from .resolution import main_transforms, shard_builder, stores_pixels
from .training_rows import TrainingRows


@dataclass(frozen=True, slots=True)
class StageWork:
    """What a stage asks for: done, todo: its shards whose parts are on the store already, and the others; job: how."""

    asked: Asked
    done: list[ShardResult]
    todo: list[Shard]
    job: EncodeJob

    @property
    def photos(self) -> int:
        """Return how many photos are left to compute."""
        return sum(shard.photos.num_rows for shard in self.todo)


def stage_work(context: NightAttempt, plan: Plan, *, stage: str, model_id: str | None) -> StageWork:
    """Return what a stage computes of a plan.

    Without a model only the shards whose photos have to be fetched. A model of other sizes than the plan's own, a
    teacher, has them decoded in the same pass; photos are fetched for it where it has no latents yet. Stages before
    `encode` store the pixels where a training reads them.
    """
    config, store, transform_id = context.config, context.store, plan.summary.transform_id
    known = plan.summary.model_id or find_bundle(store, plan.summary.train_key)
    transforms = main_transforms(config, store, known)
    learns = stage != "encode" and config.model.trains_on_pixels
    stores = stores_pixels(config, plan.summary.counts["photos"]) or learns
    build = shard_builder(config, store, transforms, model_id, stores=stores)
    asked = ask_again(store, plan.rows, build, transform_id=transform_id, run=context.run.name)
    done, todo = split_done(asked.shards, store)
    job = EncodeJob(
        store=store,
        files=context.files,
        catalogue=config.catalogue,
        images=config.images,
        encode=config.encode,
        model_id=model_id,
        transform_id=transform_id,
        stores=transforms,
    )
    return StageWork(asked, done, todo, job)


def training_of(
    context: NightAttempt, plan: Plan, rows: TrainingRows, teacher: str | None, *, exports: bool
) -> TrainJob:
    """Return the training that answers a plan's key. exports: whether its bundle holds an encoder for others, too."""
    config = context.config
    return TrainJob(
        store=context.store,
        pixels=tuple(rows.pixels),
        labels=rows.labels,
        model=config.model,
        images=config.images.model_dump(mode="json"),
        train=config.train,
        run_dir=f"runs/{context.run.name}",
        attempt=context.attempt.number,
        train_key=plan.summary.train_key,
        teacher=teacher,
        exports=exports,
    )


def none_left(store: Store, asked: Asked) -> CodebooksError:
    """Return the error for a plan of which no photo is left, with what the decoder said in the first part."""
    names = ["item_id", "uri", "reason", "detail"]
    said = [asked.rows.select(names)]
    said += [read_part(store, shard.pixels_name, names) for shard in asked.shards[:1]]
    return nothing_usable(pa.concat_tables([rows.filter(pc.is_valid(rows["reason"])) for rows in said]))


def held_over(context: NightAttempt, plan: Plan, results: Iterable[ShardResult]) -> pa.Table | None:
    """Return the parent's items where photos that do not answer tonight may keep their latents of yesterday."""
    silent = any(photo.reason == "unreachable" for result in results for photo in result.unanswered)
    # Latents of another model cannot stand beside tonight's, nor may those of a model that was told another category.
    if not silent or plan.summary.parent is None or plan.summary.encode_all or category_told(context.config):
        return None
    return read_table(context.store, read_manifest(context.store, plan.summary.parent), "items", columns=HELD_OVER)


def latents_parts(store: Store, plan: Plan, results: Iterable[ShardResult]) -> dict[str, FoundPart]:
    """Return the latents parts that tonight's items may name, by name: the parent's and those of tonight's shards."""
    before = () if plan.summary.parent is None else read_manifest(store, plan.summary.parent).parts
    tonight = [result.latents for result in results if result.latents is not None]
    return {part.name: part for part in (*before, *tonight)}

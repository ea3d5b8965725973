"""Photos of a frozen plan that could not be had when it was made: a later attempt of the run asks for them again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..catalogue import compare, resolve_tokens
from ..encoding import assign_shards
from ..ordering import as_numpy, take_column, take_rows
from ..release import read_manifest
from ..release.tables import read_table
from ..schema import PHOTOS, attribute_fields
from ..storage import Files, Store
from .asked import category_told
from .plan import Plan
from .resolution import latent_bytes, main_transforms
from .settings import NightSettings

# What a place said of a photo and may say otherwise now. What the catalogue says is frozen with the plan.
_ASKED = ("forbidden", "missing", "unreachable", "unreadable")


def ask_refused_again(plan: Plan, config: NightSettings, store: Store, files: Files) -> Plan:
    """Return a frozen plan with the photos that answer now taken into it, in shards of their own.

    Without this a run whose gates refused it for them would be refused again under the same name for ever. Raises as
    `resolve_tokens`.
    """
    rows, summary = plan.rows, plan.summary
    refused = as_numpy(pc.equal(rows["status"], "refused")).astype(np.bool_)
    positions = np.flatnonzero(refused & as_numpy(pc.is_in(rows["reason"], value_set=pa.array(_ASKED))))
    if not len(positions):
        return plan
    parent = read_manifest(store, summary.parent) if summary.parent else None
    named = pc.unique(take_column(rows["item_id"], positions))
    items = read_table(store, parent, "items", of_items=named) if parent else None
    photos = take_rows(
        rows.select([*PHOTOS.names, *(field.name for field in attribute_fields(rows.schema))]), positions
    )
    none = pa.nulls(len(positions), pa.string())
    photos = photos.set_column(photos.schema.get_field_index("token"), PHOTOS.field("token"), none)
    resolved, _ = resolve_tokens(photos, config.catalogue, files, known=items, max_bytes=config.images.max_bytes)
    found = compare(resolved, items, None, told=category_told(config))
    answered = found.rows.filter(pc.not_equal(found.rows["status"], "refused"))
    if not answered.num_rows:
        return plan
    again = assign_shards(
        found.rows,
        image_size=[images.size for images in main_transforms(config, store, summary.model_id)],
        shard_rows=config.encode.shard_rows,
        encode_all=summary.encode_all,
        latent_bytes=latent_bytes(config, store, summary.model_id),
        transform_id=summary.transform_id,
        tail_for=config.encode.tail_for,
    ).select(rows.column_names)
    first = (pc.max(rows["shard"]).as_py() or 0) + 1
    index = again.schema.get_field_index("shard")
    again = again.set_column(index, rows.schema.field(index), pc.add(again["shard"], pa.scalar(first, pa.int32())))
    order = np.arange(rows.num_rows)
    order[positions] = rows.num_rows + np.arange(len(positions))
    rows = take_rows(pa.concat_tables([rows, again.cast(rows.schema)]), order)
    counts = dict(summary.counts)
    for name in ("added", "changed", "same"):
        counts[name] += found.counts[name]
    counts["refused"] -= answered.num_rows
    counts["to_fetch"] += answered.num_rows - found.counts["same"]
    counts["to_encode"] += again.num_rows - again["shard"].null_count
    counts["shards"] = pc.max(rows["shard"]).as_py() + 1 if pc.count(rows["shard"]).as_py() else 0
    return replace(plan, rows=rows, summary=summary.model_copy(update={"counts": counts}))

"""Work out what a run has to do, once, and freeze it: the photos, their tokens, the shards, the parent release."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from ..catalogue import (
    CatalogueNotes,
    Difference,
    Failed,
    FailureLimits,
    catalogue_notes,
    check_living,
    compare,
    named_in,
    read_photos,
    resolve_tokens,
)
from ..damaged import damaged_as
from ..encoding import assign_shards
from ..errors import CodebooksError, InputError, IntegrityError, Unavailable
from ..evaluation import MeasuresConfig
from ..ordering import as_numpy, ranks, run_starts, take_column
from ..release import Manifest, Sample, read_manifest
from ..release.tables import read_table, write_table
from ..schema import PART_NAMES, PHOTOS, attribute_fields, held_table, plan_schema
from ..storage import Files, Store, home_of
from .asked import category_told
from .memory import Need, Sizes, check_driver, memory_needs
from .renewal import Renewal, renewal_of
from .resolution import check_metric, check_tables, compared_codes, latent_bytes, latent_dim
from .settings import NightSettings
from .standing import Standing, look

_META = b"plan"
_GROUP_ROWS = 1 << 17
_HARDWARE = {"threads": None, "gpu": "auto", "memory_gib": None}  # of the section `index`; their defaults


class PlanSummary(BaseModel):
    """What a plan decided, beside its rows.

    channel: where the run may publish; null for a sample that is published nowhere. head: the channel's head number
    when the plan was frozen; only head + 1 may be published. model_id: the bundle that answers `train_key`, or null
    when one has to be trained. encode_all: all carried photos are encoded again, because the parent release has another
    model (without it only those whose category changed, by a conditional model). catalogue: what reading it found
    beside its photos. listed, heads, revalidated, reads, read_bytes, slowed: what the tokens cost (`TokenCost`).
    sample: which items alone were taken, null for all. renewal: what is done anew although the channel has a release.
    memory: what each role takes. fetch_bytes: of the photos to fetch, as far as anything has told their size;
    unsized: how many of them nothing has. seconds: what planning took.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    channel: str | None
    head: int
    parent: str | None
    transform_id: str
    train_key: str
    model_id: str | None
    encode_all: bool
    counts: dict[str, int]
    catalogue: CatalogueNotes
    listed: int
    heads: int
    revalidated: int
    reads: int = 0
    read_bytes: int = 0
    slowed: dict[str, float] = Field(default_factory=dict)
    limit: int | None
    sample: Sample | None = None
    renewal: Renewal | None = None
    memory: tuple[Need, ...] = ()
    fetch_bytes: int = 0
    unsized: int = 0
    seconds: float

    def lines(self) -> list[str]:
        """Return its counts for people, and what of the catalogue was dropped, merged or read otherwise."""
        counts = self.counts
        named = ", ".join(f"{counts[key]:,} {key}" for key in ("added", "changed", "removed", "same", "refused"))
        head = f"plan: {counts['photos']:,} photos of {counts['items']:,} items: {named}; {counts['shards']:,} shards"
        found = self.catalogue.counted
        return [head, *(f"  {seen.number:,} {what}: {seen.where}" for what, seen in found.items())]


@dataclass(frozen=True, slots=True)
class Plan:
    """A frozen plan: `rows` has schema.plan_schema, sorted by (item_id, view)."""

    rows: pa.Table
    summary: PlanSummary

    def to_bytes(self) -> bytes:
        """Return the plan as one Parquet file, the summary in its metadata."""
        meta = {**(self.rows.schema.metadata or {}), _META: self.summary.model_dump_json().encode()}
        # Short row groups: beside the rows one of them is held, with part names as text.
        return write_table(self.rows.replace_schema_metadata(meta), group_rows=_GROUP_ROWS)

    @staticmethod
    def from_bytes(data: bytes) -> Plan:
        """Return the plan that `to_bytes` wrote. Raises IntegrityError on anything else."""
        wrong = "plan.parquet is not a whole Parquet file ({}); start a run of another name"
        with damaged_as(lambda words: IntegrityError(wrong.format(words))):
            rows = held_table(pq.read_table(pa.BufferReader(data), read_dictionary=list(PART_NAMES)))
        meta = rows.schema.metadata or {}
        if _META not in meta:
            raise IntegrityError("plan.parquet has no plan in its metadata; start a run of another name")
        if "signed_uri" not in rows.column_names:  # frozen by an earlier version
            rows = rows.append_column(PHOTOS.field("signed_uri"), pa.nulls(rows.num_rows, pa.string()))
        return Plan(rows=rows, summary=PlanSummary.model_validate_json(meta[_META]))


def make_plan(
    config: NightSettings,
    store: Store,
    files: Files,
    *,
    run: str,
    limit: int | None,
    channel: str | None = None,
    live: bool = False,
) -> Plan:
    """Read the catalogue, resolve tokens, compare with the channel's release and cut the work into shards.

    limit: take a seeded sample of so many items, which is compared with nothing unless a channel for samples is named.
    live: as in `look`.
    Raises ConfigError for a conditional model without categories, for more photos than this process can hold, and as
    `look`, InputError when the catalogue cannot be read or is empty, Unavailable on temporary failures.
    """
    began = time.monotonic()
    standing = look(config, store, run=run, limit=limit, channel=channel, live=live)
    parent, transform = standing.parent, standing.transform_id
    renewal = renewal_of(standing, store)
    told = category_told(config)
    photos = read_photos(config.catalogue, files, limit=limit, seed=config.train.seed)
    memory = _memory(config, store, photos, standing)
    items = read_table(store, parent, "items") if parent else None
    comparable = parent is not None and parent.transform_id == transform  # what another refused, this one may accept
    refused = read_table(store, parent, "quarantine") if parent else None
    if refused is not None and standing.encode_all:  # nor may what the model refused stand for another model
        refused = refused.filter(pc.not_equal(refused["stage"], "encode"))
    notes = catalogue_notes(photos)
    photos, cost = resolve_tokens(photos, config.catalogue, files, known=items, max_bytes=config.images.max_bytes)
    difference = compare(photos, items, refused if comparable else None, told=told)
    check_living(difference.rows, items, config.catalogue.max_unreachable)
    del photos, items
    failed = _newly_failed(difference.rows, refused)
    FailureLimits(difference.rows["uri"], config.catalogue.max_unreachable).check(failed)
    rows = _drop_missing_pixels(store, difference.rows, encode_all=standing.encode_all, usable=comparable)
    rows = _sharded(config, store, rows, standing)
    if difference.counts["refused"] == rows.num_rows:
        raise nothing_usable(rows)
    requests = {name: value for name, value in asdict(replace(cost, sizes=None)).items() if name != "sizes"}
    summary = PlanSummary(
        channel=standing.channel,
        head=standing.head,
        parent=parent.release_id if parent else None,
        transform_id=transform,
        train_key=standing.train_key,
        model_id=standing.model_id,
        encode_all=standing.encode_all,
        counts=_counts(difference, rows, parent),
        catalogue=notes,
        **requests,
        **_to_fetch(rows, cost.sizes),
        limit=limit,
        sample=standing.asked.sample,
        renewal=renewal,
        memory=memory,
        seconds=round(time.monotonic() - began, 3),
    )
    return Plan(rows=rows.select(plan_schema(attribute_fields(rows.schema)).names), summary=summary)


def _sharded(config: NightSettings, store: Store, rows: pa.Table, standing: Standing) -> pa.Table:
    """Return the rows with the shards that have to be computed."""
    return assign_shards(
        rows,
        image_size=[images.size for images in standing.transforms],
        shard_rows=config.encode.shard_rows,
        encode_all=standing.encode_all,
        latent_bytes=latent_bytes(config, store, standing.model_id),
        transform_id=standing.transform_id,
        tail_for=config.encode.tail_for,
    )


def _memory(config: NightSettings, store: Store, photos: pa.Table, standing: Standing) -> tuple[Need, ...]:
    """Return what each role will take. Raises ConfigError where this process cannot hold what a driver does."""
    check_metric(config, store, standing.model_id)
    check_tables(config, store, standing.model_id)
    sizes = Sizes(
        photos=photos.num_rows,
        row_bytes=photos.nbytes,
        latent_dim=latent_dim(config, store, standing.model_id),
        pixel_bytes=sum(3 * images.size**2 for images in standing.transforms),
        trains=standing.model_id is None,
        code_features=compared_codes(config, store, standing.model_id),
    )
    needs = memory_needs(config, sizes)
    check_driver(needs)
    return needs


def nothing_to_do(plan: Plan, store: Store, config: NightSettings) -> bool:
    """Return whether the channel's release already is what this plan would publish."""
    summary = plan.summary
    if summary.parent is None or summary.encode_all:
        return False
    if any(summary.counts[name] for name in ("added", "changed", "removed", "relabelled")):
        return False
    parent = read_manifest(store, summary.parent)
    if parent.sample != summary.sample or _of_releases(parent.config) != release_config(config):
        return False
    refused = plan.rows.filter(pc.is_valid(plan.rows["reason"]))
    names = ["item_id", "uri", "reason"]
    before = read_table(store, parent, "quarantine", columns=names)
    return _keys(refused, names) == _keys(before, names)


def release_config(config: NightSettings) -> dict[str, Any]:
    """Return the parts of a config that a release depends on beside its items and model; not where it is computed."""
    return _of_releases(
        {
            "index": config.index.model_dump(mode="json"),
            "gates": config.gates.model_dump(mode="json", exclude={"promote"}),
            "encode": {"precision": config.encode.precision},
            **table_settings(config),
            **({"measures": measured} if (measured := measure_settings(config)) else {}),
        }
    )


def measure_settings(config: NightSettings) -> dict[str, Any]:
    """Return the section `measures` as plain values, nothing where it is the default."""
    return config.measures.model_dump(mode="json") if config.measures != MeasuresConfig() else {}


def table_settings(config: NightSettings) -> dict[str, Any]:
    """Return `tables`, `semantic_ids` and `publish.keep_space` where they ask for something, as plain values."""
    asked: dict[str, Any] = {"tables": config.tables.model_dump(mode="json")} if config.tables.asked else {}
    if config.semantic_ids is not None:
        asked["semantic_ids"] = config.semantic_ids.model_dump(mode="json")
    if config.publish.keep_space:
        asked["keep_space"] = True
    return asked


def _of_releases(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a release's config with what of `index` is the machine's as by default, as earlier keys had it.

    The memory that `auto` may take is a part of what it chooses by.
    """
    index = config.get("index", {})
    hardware = {name: value for name, value in _HARDWARE.items() if name != "memory_gib" or index.get("kind") != "auto"}
    return {**config, "index": {**index, **hardware}}


def _keys(table: pa.Table, names: list[str]) -> set[tuple[object, ...]]:
    # Refused photos only: gates keep them a small share of a catalogue.
    return set(zip(*(table[name].to_pylist() for name in names), strict=True)) if table.num_rows else set()


def _drop_missing_pixels(store: Store, rows: pa.Table, *, encode_all: bool, usable: bool) -> pa.Table:
    """Clear the pixels part of carried rows to encode again where it has expired or was made by another transform."""
    again = pc.equal(rows["status"], "same")
    if not encode_all:
        again = pc.and_(again, pc.is_null(rows["latents_part"]))
    if not pc.any(again).as_py():
        return rows
    codes, names = ranks(rows["pixels_part"])
    folders = {name.rsplit("/", 1)[0] + "/" for name in names}
    there = {entry.name for folder in folders for entry in store.list(folder)} if usable else set()
    found = np.array([*(name in there for name in names), False])[codes]
    lost = as_numpy(again).astype(np.bool_) & ~found
    kept = pa.array(np.arange(rows.num_rows), mask=lost)
    for name in ("pixels_part", "pixels_row"):
        rows = rows.set_column(rows.schema.get_field_index(name), name, take_column(rows[name], kept))
    return rows


def _newly_failed(rows: pa.Table, refused: pa.Table | None) -> list[Failed]:
    """Return the photos that cannot be had tonight, but for those that yesterday's release could not have either."""
    failed = rows.filter(pc.is_valid(rows["reason"]))
    if refused is not None and failed.num_rows:
        failed = failed.filter(pa.array(~named_in(failed, refused)))
    said = failed.select(["uri", "reason", "detail"]).to_pylist()
    return [Failed(home_of(row["uri"]), row["uri"], row["reason"], row["detail"]) for row in said]


def _counts(difference: Difference, rows: pa.Table, parent: Manifest | None) -> dict[str, int]:
    shards = pc.max(rows["shard"]).as_py()
    computed = rows.num_rows - rows["shard"].null_count
    fetched = pc.sum(_fetched(rows)).as_py() or 0
    return {
        **difference.counts,
        "photos": rows.num_rows,
        "items": int(run_starts(rows["item_id"]).sum()),
        "to_fetch": int(fetched),
        "to_encode": int(computed),
        "shards": 0 if shards is None else shards + 1,
        "parent_photos": parent.counts.get("photos", 0) if parent else 0,
    }


def _fetched(rows: pa.Table) -> pa.ChunkedArray:
    """Return which rows' photos are fetched, bool [n]."""
    return pc.and_(pc.is_valid(rows["shard"]), pc.is_null(rows["pixels_part"]))


def _to_fetch(rows: pa.Table, sizes: pa.ChunkedArray | None) -> dict[str, Any]:
    """Return `fetch_bytes` and `unsized` of a plan's rows. sizes: of the rows' photos, int64 [n], null: unknown."""
    fetched = _fetched(rows)
    if sizes is None:
        return {"unsized": pc.sum(fetched).as_py() or 0}
    told = sizes.filter(fetched)
    return {"fetch_bytes": pc.sum(told).as_py() or 0, "unsized": told.null_count}


def nothing_usable(rows: pa.Table) -> CodebooksError:
    """Return the error for rows of a plan of which no photo can be used: temporary where one may answer later."""
    refused = rows.filter(pc.is_valid(rows["reason"]))
    reasons = {entry["values"]: entry["counts"] for entry in pc.value_counts(refused["reason"]).to_pylist()}
    first = refused.slice(0, 3).select(["item_id", "uri", "detail"]).to_pylist()
    what = f"none of the catalogue's {rows.num_rows} photos can be used: {json.dumps(reasons)}; first rows: {first}."
    if "unreachable" in reasons:
        return Unavailable(f"{what} Nothing is published; run the same command again")
    return InputError(
        f"{what} Check catalogue.image and where the URIs point (relative ones start at the table's folder)."
    )

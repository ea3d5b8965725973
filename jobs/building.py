"""From encoded photos to a release on the store: index, measures, gates, report, manifest."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version

import pyarrow as pa
import pyarrow.compute as pc

from jobs.computing import Encoded
from jobs.context import Context
from jobs.planning import Plan, release_config
from jobs.reporting import Findings, report_page
from pipeline.catalogue import changes_between
from pipeline.errors import IntegrityError
from pipeline.evaluation import GateVerdict, category_measures, check_gates
from pipeline.index import BuiltIndex, LatentArrays, build_index, gather_latents
from pipeline.keys import digest_of
from pipeline.models import bundle_files, load_bundle
from pipeline.parts import PartFile
from pipeline.release import FileEntry, Manifest, read_manifest, release_id, release_key, write_release
from pipeline.release.tables import read_table, write_table
from pipeline.schema import quarantine_schema
from pipeline.storage import Store


@dataclass(frozen=True, slots=True)
class Candidate:
    """A release that is written and on no channel yet. report_name: the page's name on the store."""

    manifest: Manifest
    manifest_sha256: str
    verdicts: tuple[GateVerdict, ...]
    report_name: str


def build_candidate(context: Context, plan: Plan, model_id: str, encoded: Encoded) -> Candidate:
    """Build the index over the items and write the release; the first attempt to write its manifest wins."""
    parent = read_manifest(context.store, plan.summary.parent) if plan.summary.parent else None
    found = examine(context, plan, encoded, parent)
    bundle = load_bundle(context.store, model_id)
    with context.watch.stage("report"):
        page = report_page(context, plan, bundle, found)
    config, items_bytes = context.config, write_table(found.items)
    settings = release_config(config)
    key = release_key(
        items_digest=digest_of(items_bytes),
        model_id=model_id,
        index=settings["index"],
        evaluation={},
        gates=settings["gates"],
        parent=plan.summary.parent,
    )
    written = write_release(
        context.store,
        release_id=release_id(context.run.name, key),
        files={
            "items": (items_bytes, ".parquet", found.items.num_rows),
            "quarantine": (write_table(found.quarantine), ".parquet", found.quarantine.num_rows),
            "changes": (write_table(found.changes), ".parquet", found.changes.num_rows),
            "index": (found.built.data, ".faiss", found.items.num_rows),
            "report": (page, ".html", None),
        },
        release_key=key,
        run=context.run.name,
        attempt=context.attempt.number,
        parent=plan.summary.parent,
        model_id=model_id,
        model_kind=config.model.kind,
        latent_dim=bundle.model.latent_dim,
        transform_id=plan.summary.transform_id,
        metric=config.index.metric,
        index_kind=config.index.kind,
        index_parameters=found.built.parameters,
        counts=found.counts,
        measures=found.measures,
        parts=named_parts(found.items, encoded.parts),
        config=settings,
        code_version=version("visual-codebooks"),
        inputs={"catalogue": config.catalogue.source, "train_key": plan.summary.train_key},
        **model_files(context.store, model_id, parent),
    )
    report_name = written.manifest.files["report"].name
    return Candidate(written.manifest, written.manifest_sha256, found.verdicts, report_name)


def examine(context: Context, plan: Plan, encoded: Encoded, parent: Manifest | None) -> Findings:
    """Build the index over the items, and measure what the gates look at."""
    context.attempt.check()
    config, store, items = context.config, context.store, encoded.items
    with context.watch.stage("index", photos=items.num_rows):
        context.progress.note(f"index: {config.index.kind} over {items.num_rows:,} photos, {config.index.metric}")
        latents = gather_latents(store, items)
        built = build_index(latents, config.index)
    context.attempt.check()
    with context.watch.stage("evaluate"):
        parent_items = read_table(store, parent, "items") if parent else None
        parent_quarantine = read_table(store, parent, "quarantine") if parent else None
        quarantine = with_first_seen(encoded.refused, parent_quarantine, context.run.name)
        changes = changes_between(items, quarantine, parent_items, parent_quarantine)
        counts = count(items, quarantine, changes, plan)
        measures = measure(context, items, latents, built, counts)
        verdicts = tuple(check_gates(measures, config.gates))
    return Findings(items, quarantine, changes, latents, built, counts, measures, verdicts)


def model_files(store: Store, model_id: str, parent: Manifest | None) -> dict[str, FileEntry]:
    """Return the manifest's entries of the bundle's files; a parent of the same model must list the same bytes."""
    found = bundle_files(store, model_id)
    if parent is None or parent.model_id != model_id:
        return found
    for now, entry in ((found["encoder"], parent.encoder), (found["bundle_config"], parent.bundle_config)):
        if entry is not None and now != entry:
            raise IntegrityError(
                f"{entry.name} on {store.url} has {now.bytes:,} bytes and the sha256 {now.sha256}, the parent release "
                f"says {entry.bytes:,} bytes and {entry.sha256}: it was changed after it was written; restore it, or "
                "train another model (train.seed)"
            )
    return found


def named_parts(items: pa.Table, known: dict[str, PartFile]) -> tuple[PartFile, ...]:
    """Return the latents parts that items names, in name order."""
    names = sorted(pc.unique(items["latents_part"]).to_pylist())
    unknown = [name for name in names if name not in known]
    if unknown:
        raise IntegrityError(f"items names {len(unknown)} parts that nobody wrote, first {unknown[0]!r}; report this")
    return tuple(known[name] for name in names)


def with_first_seen(refused: pa.Table, parent: pa.Table | None, run: str) -> pa.Table:
    """Return the quarantine table: the run that first refused each photo is kept while it is refused."""
    if parent is not None and parent.num_rows:
        seen = parent.select(["item_id", "uri", "first_seen"])
        refused = refused.join(seen, keys=["item_id", "uri"], join_type="left outer")
        first = pc.fill_null(refused["first_seen"], run)
        refused = refused.drop_columns(["first_seen"]).append_column("first_seen", first)
    else:
        refused = refused.append_column("first_seen", pa.repeat(pa.scalar(run), refused.num_rows))
    order = [("item_id", "ascending"), ("uri", "ascending")]
    schema = quarantine_schema()
    return refused.select(schema.names).sort_by(order).combine_chunks().cast(schema)


def count(items: pa.Table, quarantine: pa.Table, changes: pa.Table, plan: Plan) -> dict[str, int]:
    """Return a release's counts: photos, items, refused, and photos by change."""
    by_change = {entry["values"]: entry["counts"] for entry in pc.value_counts(changes["change"]).to_pylist()}
    return {
        "photos": items.num_rows,
        "items": pc.count_distinct(items["item_id"]).as_py(),
        "refused": quarantine.num_rows,
        "parent_photos": plan.summary.counts["parent_photos"],
        **{name: by_change.get(name, 0) for name in ("added", "changed", "removed", "relabelled", "quarantined")},
    }


def measure(
    context: Context, items: pa.Table, latents: LatentArrays, built: BuiltIndex, counts: dict[str, int]
) -> dict[str, float]:
    """Return what the gates look at and what the page shows, by name; shares are of all photos that were asked for."""
    measures = {
        "recall": built.recall,
        "quarantine_share": counts["refused"] / max(1, counts["refused"] + counts["photos"]),
        "removed_share": counts["removed"] / max(1, counts["parent_photos"]),
        "items": float(counts["items"]),
    }
    category = context.config.catalogue.category
    if category is not None:
        measures |= category_measures(items, latents.mean, category, seed=context.config.train.seed)
    return measures

"""From encoded photos to a release on the store: index, measures, gates, report, manifest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np

from jobs.computing import Encoded
from jobs.config import Config
from jobs.context import Context
from pipeline.catalogue import CARRIED, changes_between
from pipeline.evaluation import GateVerdict
from pipeline.evaluation.judging import side_of
from pipeline.evaluation.measured import whole_catalogue
from pipeline.evaluation.verdicts import one_a_gate, verdicts_table
from pipeline.events import Examined, tell
from pipeline.index import gather_latents, nightly_index
from pipeline.index.kept_space import kept_space
from pipeline.index.thresholds import pair_quantiles
from pipeline.models import Bundle, load_bundle
from pipeline.models.codebooks import code_levels
from pipeline.planning import Plan, measure_settings, release_config, table_settings
from pipeline.quality.examining import (
    Findings,
    count,
    measure,
    model_files,
    named_parts,
    refused_by_reason,
    with_first_seen,
)
from pipeline.quality.gating import counted_shares, gates_of, verdicts_on
from pipeline.quality.nightly import measure_night, measured_files
from pipeline.quality.promoting import side_of_release
from pipeline.quality.release_page import report_page
from pipeline.release import Manifest, read_manifest, release_id, release_key, write_release
from pipeline.release.tables import hashed_table, read_table, table_files
from pipeline.tables import Makers, Night, SemanticIdsConfig, further_tables
from pipeline.tables.quantizer import Codebooks
from pipeline.training import CodebooksJob, train_codebooks


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
    bundle = load_bundle(context.store, model_id)
    found = examine(context, plan, bundle, encoded, parent)
    config = context.config
    with context.watch.stage("report"):
        page = report_page(
            context.store,
            config,
            plan,
            bundle,
            found,
            run=context.run.name,
            measured=context.watch.summary(),
            files=context.files,
        )
    settings = release_config(config)
    items = hashed_table(found.items)
    key = release_key(
        items_digest=items.digest,
        manifest_format=3 if found.built.segments else items.manifest_format,
        model_id=model_id,
        index=settings["index"],
        evaluation=measure_settings(config),
        gates=settings["gates"],
        parent=plan.summary.parent,
        tables=table_settings(config),
    )
    written = write_release(
        context.store,
        release_id=release_id(context.run.name, key),
        files={"items": items.files, **_files(found), "report": (page, ".html", None)},
        segments=found.built.shared_files(),
        release_key=key,
        run=context.run.name,
        attempt=context.attempt.number,
        parent=plan.summary.parent,
        model_id=model_id,
        model_kind=config.model.kind,
        latent_dim=bundle.model.latent_dim,
        transform_id=plan.summary.transform_id,
        metric=found.built.index.metric.name,
        index_kind=found.built.kind,
        index_parameters={**found.built.parameters, **pair_quantiles(found.built.index, found.items["item_id"])},
        counts=found.counts,
        measures=found.measures,
        parts=named_parts(found.items, encoded.parts),
        config=settings,
        code_version=version("visual-codebooks"),
        inputs=inputs_of(config, plan, found),
        **model_files(context.store, model_id, parent),
    )
    return Candidate(written.manifest, written.manifest_sha256, found.verdicts, written.manifest.file("report").name)


def _files(found: Findings) -> dict[str, Any]:
    """Return a release's files by role, but for its items and its page."""
    return {
        "quarantine": table_files(found.quarantine, looked_up=True),
        "changes": table_files(found.changes, looked_up=True),
        **found.built.files(),
        "verdicts": table_files(verdicts_table(found.verdicts)),
        **found.further.files,
        **measured_files(found.nightly, found.measures),
    }


def inputs_of(config: Config, plan: Plan, found: Findings) -> dict[str, Any]:
    """Return what the manifest says of what the release was made from, and of how it was judged."""
    inputs: dict[str, Any] = {"catalogue": config.catalogue.source, "train_key": plan.summary.train_key}
    if plan.summary.sample is not None:
        inputs["sample"] = plan.summary.sample.model_dump(mode="json")
    return {
        **inputs,
        **found.further.inputs,
        "verdicts": [verdict.plain() for verdict in one_a_gate(found.verdicts)],
        "not_measured": found.nightly.left_out,
    }


def examine(context: Context, plan: Plan, bundle: Bundle, encoded: Encoded, parent: Manifest | None) -> Findings:
    """Build the index over the items, and measure what the gates look at."""
    context.attempt.check()
    config, store, items = context.config, context.store, encoded.items
    with context.watch.stage("index", photos=items.num_rows):
        context.progress.note(f"index: {config.index.kind} over {items.num_rows:,} photos, {config.index.metric}")
        latents = gather_latents(store, items, columns=config.index.needs)
        asked = config.publish.keep_space
        kept = kept_space(store, items, latents, parent, model_id=bundle.model_id, index=config.index, asked=asked)
        latents = kept.rotated(latents)
        made = nightly_index(
            store, items, latents, config.index, model_id=bundle.model_id, parent=parent, sample=plan.summary.sample
        )
        built = made.built
    context.attempt.check()
    with context.watch.stage("evaluate"):
        parent_quarantine = read_table(store, parent, "quarantine") if parent else None
        quarantine = with_first_seen(encoded.refused, parent_quarantine, context.run.name)
        before = read_table(store, parent, "items", without=CARRIED) if parent else None
        changes = changes_between(items, quarantine, before, parent_quarantine)
        del before  # as long as tonight's items
        counts = count(items, quarantine, changes, plan)
        night = Night(
            run=context.run.name,
            model_id=bundle.model_id,
            metric=config.index.metric,
            items=items,
            latents=latents,
            index=built.index,
            changes=changes,
            parent=parent,
            category=config.catalogue.category,
            sample=plan.summary.sample,
            space=kept.space,
        )
        makers = Makers(partial(codebooks_of, context), partial(code_levels, bundle.model))
        further = further_tables(store, night, config.tables, config.semantic_ids, makers)
        further.files.update(kept.files())
        further.inputs.update(kept.inputs)
        nightly = measure_night(store, config, plan, bundle, night, context.files)
        nightly = nightly.behind(counted_shares(counts, quarantine, changes))
        measures = {**measure(built, counts), **whole_catalogue(nightly.found), **further.measures}
        verdicts = verdicts_on(
            measures,
            side_of(measures, nightly.found, bundle.model_id),
            side_of_release(store, parent) if parent else None,
            gates_of(config.gates, plan.summary.sample),
            context.allowed,
        )
        tell(Examined(one_a_gate(verdicts), refused_by_reason(quarantine), measures))
    return Findings(made.items, quarantine, changes, latents, built, counts, measures, nightly, verdicts, further)


def codebooks_of(context: Context, vectors: np.ndarray, asked: SemanticIdsConfig) -> Codebooks:
    """Return codebooks of semantic IDs that are trained, by this attempt or an earlier one of the run."""
    context.progress.note(f"codebooks of semantic IDs: {asked.method} on {len(vectors):,} item vectors")
    where, threads = f"runs/{context.run.name}", context.config.train.threads
    job = CodebooksJob(context.store, vectors, asked, where, context.attempt.number, threads)
    return train_codebooks(job, progress=context.progress.training)

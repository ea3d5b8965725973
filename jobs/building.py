"""From encoded photos to a release on the store: index, measures, gates, report, manifest."""

from __future__ import annotations

from importlib.metadata import version

from jobs.computing import Encoded
from jobs.context import Context
from pipeline.index.thresholds import pair_quantiles
from pipeline.models import load_bundle
from pipeline.planning import Plan, release_config
from pipeline.quality.examining import model_files, named_parts
from pipeline.quality.finding import Candidate, examine, files_of, inputs_of, key_of
from pipeline.quality.release_page import report_page
from pipeline.release import read_manifest, release_id, write_release
from pipeline.release.tables import hashed_table


def build_candidate(context: Context, plan: Plan, model_id: str, encoded: Encoded) -> Candidate:
    """Build the index over the items and write the release; the first attempt to write its manifest wins."""
    parent = read_manifest(context.store, plan.summary.parent) if plan.summary.parent else None
    bundle = load_bundle(context.store, model_id)
    found = examine(context, plan, bundle, encoded.items, encoded.refused, parent)
    config = context.config
    with context.watch.stage("report"):
        run, measured, files = context.run.name, context.watch.summary(), context.files
        page = report_page(context.store, config, plan, bundle, found, run=run, measured=measured, files=files)
    settings = release_config(config)
    items = hashed_table(found.items)
    key = key_of(config, plan, found, items, model_id)
    written = write_release(
        context.store,
        release_id=release_id(context.run.name, key),
        files={"items": items.files, **files_of(found), "report": (page, ".html", None)},
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

"""What tonight's photos make of a release before it is written: the index over them, tables, measures, verdicts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from ..errors import GateRefused
from ..evaluation import GateVerdict
from ..evaluation.judging import side_of
from ..evaluation.measured import whole_catalogue
from ..evaluation.verdicts import Allowed, one_a_gate, refusal_text, verdicts_table
from ..events import Examined, tell
from ..index import Origin, gather_latents, nightly_index
from ..index.kept_space import kept_space
from ..models import Bundle
from ..models.codebooks import code_levels
from ..planning import NightSettings, Plan, measure_settings, release_config, table_settings
from ..planning.freezing import NightAttempt
from ..progress import Progress
from ..release import Manifest, release_key
from ..release.tables import HashedTable, read_table, table_files
from ..tables import Makers, Night, SemanticIdsConfig, further_tables, night_changes
from ..tables.quantizer import Codebooks
from ..training import CodebooksJob, train_codebooks
from ..watch import Watch
from .examining import Findings, count, measure, refused_by_reason, with_first_seen
from .gating import counted_shares, gates_of, verdicts_on
from .nightly import measure_night, measured_files
from .promoting import side_of_release


class WatchedAttempt(NightAttempt, Protocol):
    """A night's attempt, where it shows what it does, and the gates that a person lets pass."""

    @property
    def progress(self) -> Progress: ...
    @property
    def watch(self) -> Watch: ...
    @property
    def allowed(self) -> tuple[Allowed, ...]: ...


def examine(
    context: WatchedAttempt, plan: Plan, bundle: Bundle, items: pa.Table, refused: pa.Table, parent: Manifest | None
) -> Findings:
    """Build the index over the items, and measure what the gates look at.

    items: the living photos (schema.items_schema); refused: the others (schema.QUARANTINE but first_seen).
    """
    context.attempt.check()
    config, store = context.config, context.store
    with context.watch.stage("index", photos=items.num_rows):
        context.progress.note(f"index: {config.index.kind} over {items.num_rows:,} photos, {config.index.metric}")
        latents = gather_latents(store, items, columns=config.index.needs)
        asked = config.publish.keep_space
        kept = kept_space(store, items, latents, parent, model_id=bundle.model_id, index=config.index, asked=asked)
        latents = kept.rotated(latents)
        sample = None if plan.summary.sample is None else plan.summary.sample.model_dump(mode="json")
        origin = Origin(sample, kept.space)
        made = nightly_index(
            store, items, latents, config.index, model_id=bundle.model_id, parent=parent, origin=origin
        )
        built = made.built
    context.attempt.check()
    with context.watch.stage("evaluate"):
        parent_quarantine = read_table(store, parent, "quarantine") if parent else None
        quarantine = with_first_seen(refused, parent_quarantine, context.run.name)
        changes = night_changes(store, context.run.name, items, quarantine, parent, parent_quarantine)
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


def codebooks_of(context: WatchedAttempt, vectors: np.ndarray, asked: SemanticIdsConfig) -> Codebooks:
    """Return codebooks of semantic IDs that are trained, by this attempt or an earlier one of the run."""
    context.progress.note(f"codebooks of semantic IDs: {asked.method} on {len(vectors):,} item vectors")
    where, threads = f"runs/{context.run.name}", context.config.train.threads
    job = CodebooksJob(context.store, vectors, asked, where, context.attempt.number, threads)
    return train_codebooks(job, progress=context.progress.training)


def files_of(found: Findings) -> dict[str, Any]:
    """Return a release's files by role, but for its items and its page."""
    return {
        "quarantine": table_files(found.quarantine, looked_up=True),
        "changes": table_files(found.changes, looked_up=True),
        **found.built.files(),
        "verdicts": table_files(verdicts_table(found.verdicts)),
        **found.further.files,
        **measured_files(found.nightly, found.measures),
    }


def inputs_of(config: NightSettings, plan: Plan, found: Findings) -> dict[str, Any]:
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


def key_of(config: NightSettings, plan: Plan, found: Findings, items: HashedTable, model_id: str) -> str:
    """Return the key of the release: what names it beside its run. items: its table of this role."""
    settings = release_config(config)
    return release_key(
        items_digest=items.digest,
        manifest_format=3 if found.built.segments else items.manifest_format,
        model_id=model_id,
        index=settings["index"],
        evaluation=measure_settings(config),
        gates=settings["gates"],
        parent=plan.summary.parent,
        tables=table_settings(config),
    )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A release that is written and on no channel yet. report_name: the page's name on the store."""

    manifest: Manifest
    manifest_sha256: str
    verdicts: tuple[GateVerdict, ...]
    report_name: str

    @property
    def refused(self) -> bool:
        """Return whether a gate stops it."""
        return any(verdict.stops for verdict in self.verdicts)

    def details(self) -> dict[str, Any]:
        """Return what a run's result says of it, as plain values."""
        return {
            "counts": self.manifest.counts,
            "measures": self.manifest.measures,
            "verdicts": [verdict.plain() for verdict in self.verdicts],
            "report": self.report_name,
        }

    def refusal(self) -> GateRefused:
        """Return the error of one that gates stop."""
        release = self.manifest.release_id
        said = refusal_text(
            self.verdicts,
            what=f"release {release} is written and not published",
            look_at=self.report_name,
            again=f"the same command with --run {self.manifest.run}",
        )
        return GateRefused(said, release=release, verdicts=[verdict.plain() for verdict in self.verdicts])

    def quarantined(self) -> str:
        """Return in words how many photos could not be used tonight, and how many of these live on as they were."""
        refused, held = self.manifest.counts["refused"], self.manifest.counts.get("held", 0)
        kept = f", {held:,} of them unreachable and kept with yesterday's latents" if held else ""
        return f"; {refused:,} photos are quarantined{kept}" if refused else ""

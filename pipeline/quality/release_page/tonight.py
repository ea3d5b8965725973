"""The report of a release that is being made: from what the night holds in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import CodebooksError
from ...evaluation.verdicts import verdicts_table
from ...index.opened import OpenedRelease
from ...models import Bundle
from ...planning import NightSettings, Plan
from ...release import History, Manifest, read_manifest
from ...report import render_night
from ...storage import Files, Store
from ...storage.cache import FileCache
from ..examining import Findings
from ..pictures import Pictures
from .assembling import night_report
from .curves import channel_history, measure_curves, training_curves, training_run
from .sides import Album, Side, fetched
from .stored import told_of
from .subject import Subject, Told
from .told import night_facts
from .verdict import with_table


def report_page(
    store: Store,
    config: NightSettings,
    plan: Plan,
    bundle: Bundle,
    found: Findings,
    *,
    run: str,
    measured: Mapping[str, Any],
    files: Files | None = None,
) -> bytes:
    """Return the release's self-contained HTML page.

    measured: seconds and photos_per_s by stage so far. files: reads the shown photos whose pixels are not kept.
    """
    manifest, before, alone = _parent(store, plan)
    images = bundle.transforms[0].under(config.images)
    pictures = Pictures(store, images, files=files, catalogue=config.catalogue, plan_rows=plan.rows)
    past, unread = _past(store, plan.summary.channel)
    elsewhere = fetched(pictures)
    subject = Subject(
        title=f"Release of run {run}",
        store=store,
        now=Side.of_tables(f"run {run}", found.items, found.built.index),
        told=Told(
            facts=night_facts(config, plan, bundle, found, measured),
            counts=found.counts,
            measured=with_table(found.measures, found.nightly.found),
            verdicts=verdicts_table(found.verdicts),
            quarantine=found.quarantine,
            ids=found.further.shown.get("semantic_ids"),
        ),
        before=before,
        told_before=None if manifest is None or before is None else told_of(store, manifest),
        alone=alone,
        changes=found.changes,
        album=Album(store, elsewhere),
        whole_album=Album(store, elsewhere, whole=True),
        bundle=bundle,
        category=config.catalogue.category,
        seed=config.train.seed,
        seconds=measured["seconds"],
        photos_per_s=measured["photos_per_s"],
        curves=measure_curves(past, "", found.counts, found.measures),
        training=training_curves(store, training_run(past, bundle.model_id, run)),
        left_out=[*unread, *found.nightly.left_out.items()],
    )
    return render_night(night_report(subject))


def _past(store: Store, channel: str | None) -> tuple[History | None, list[tuple[str, str]]]:
    """Return the channel's newest entries; a damaged one among them leaves the curves out, never a release."""
    try:
        return channel_history(store, channel), []
    except CodebooksError as error:
        return None, [("Curves over releases", str(error))]


def _parent(store: Store, plan: Plan) -> tuple[Manifest | None, Side | None, str]:
    """Return the parent release, opened; where that cannot be had, why not."""
    parent = plan.summary.parent
    if parent is None:
        return None, None, "this is the first release of its channel"
    try:
        manifest = read_manifest(store, parent)
        return manifest, Side.of_opened(OpenedRelease(store, FileCache(), manifest, None)), ""
    except CodebooksError as error:  # a page without its parent's neighbours is better than no release
        return None, None, f"the parent {parent} cannot be opened here: {error}"

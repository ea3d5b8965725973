"""The report of a release on the store, beside another one: from what both keep there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import yaml

from ...catalogue import CARRIED, changes_between
from ...errors import CodebooksError
from ...evaluation.measured import measured_of
from ...index.opened import OpenedRelease
from ...models import Bundle, load_bundle
from ...release import Manifest
from ...release.history import History
from ...release.tables import read_table
from ...report.night import NightReport
from ...runs import open_run
from ...schema import CHANGES, QUARANTINE, VERDICTS
from ...storage import Store
from ..trends import judged
from .assembling import night_report
from .curves import channel_history, measure_curves, training_curves, training_run
from .sides import Album, Side
from .subject import Subject, Told
from .told import stored_facts
from .verdict import measured_in, with_table


@dataclass(frozen=True, slots=True)
class Asked:
    """What a report of stored releases is told. channel: whose releases the curves are over; category: the column by
    which items are told apart, None: that of the run's own config; price: of an hour, None where it is not known."""

    channel: str
    category: str | None = None
    price: float | None = None


def stored_report(
    store: Store, now: OpenedRelease, before: OpenedRelease | None, asked: Asked, *, alone: str = ""
) -> NightReport:
    """Return the report of a release; before: the one beside it, alone: why there is none."""
    manifest = now.manifest
    frozen, result = _run(store, manifest)
    left_out: list[tuple[str, str]] = []
    bundle: Bundle | None = None
    try:
        bundle = load_bundle(store, manifest.model_id)
    except CodebooksError as error:
        left_out.append(("What the model draws", str(error)))
    past = channel_history(store, frozen.get("channel") or asked.channel)
    told = told_of(store, manifest)
    category = asked.category or (frozen.get("catalogue") or {}).get("category")
    if category is not None and category not in now.items.attributes.names:
        left_out.append(("Categories", f"the items have no column {category!r}"))
        category = None
    left_out += manifest.inputs.get("not_measured", {}).items()
    if not result:
        left_out.append(("Seconds and cost", f"the run {manifest.run} has left no result, or another release's"))
    subject = Subject(
        title=f"Release {manifest.release_id}",
        store=store,
        now=Side.of_opened(now),
        told=told,
        before=None if before is None else Side.of_opened(before),
        told_before=None if before is None else told_of(store, before.manifest),
        alone=alone,
        changes=_changes(store, manifest, None if before is None else before.manifest),
        album=Album(store),
        whole_album=Album(store, whole=True),
        bundle=bundle,
        category=category,
        seed=int((frozen.get("train") or {}).get("seed") or 0),
        seconds=result.get("seconds", {}),
        photos_per_s=result.get("photos_per_s", {}),
        allowed=_let_pass(past, manifest),
        price=asked.price,
        curves=measure_curves(past, manifest.release_id, manifest.counts, manifest.measures),
        training=training_curves(store, training_run(past, manifest.model_id, manifest.run)),
        left_out=left_out,
    )
    return night_report(subject)


def _let_pass(past: History | None, manifest: Manifest) -> Mapping[str, str]:
    """Return by gate why the channel took this release although the gate refused it."""
    told = () if past is None else past.told
    return next((one.allowed for one in told if one.entry.release_id == manifest.release_id and one.allowed), {})


def told_of(store: Store, manifest: Manifest) -> Told:
    """Return what a stored release says of itself; older ones have neither of the tables `measures` and `verdicts`."""
    files = manifest.files
    measured = measured_in(manifest.measures)
    if "measures" in files:
        measured = with_table(manifest.measures, measured_of(read_table(store, manifest, "measures")))
    return Told(
        facts=stored_facts(manifest),
        counts=manifest.counts,
        measured=measured,
        verdicts=read_table(store, manifest, "verdicts") if "verdicts" in files else _judged(manifest),
        quarantine=read_table(store, manifest, "quarantine") if "quarantine" in files else QUARANTINE.empty_table(),
        ids=read_table(store, manifest, "semantic_ids", columns=["item_id", "codes"])
        if "semantic_ids" in files
        else None,
    )


def _judged(manifest: Manifest) -> pa.Table:
    """Return the verdicts of a release that kept none, by the limits and values in its manifest."""
    found = judged(manifest.config.get("gates"), manifest.counts, manifest.measures)
    rows: list[dict[str, Any]] = [
        {"check": one.gate, "value": one.value, "limit": one.limit, "passed": one.passed, "examples": []}
        for one in found
    ]
    return pa.Table.from_pylist(rows, schema=VERDICTS)


def _changes(store: Store, manifest: Manifest, other: Manifest | None) -> pa.Table:
    """Return what changed from the other release to this one; from the parent as this one's own table has it."""
    if other is None or other.release_id == manifest.parent:
        return read_table(store, manifest, "changes") if "changes" in manifest.files else CHANGES.empty_table()
    (items, quarantine), (old_items, old_quarantine) = (
        (read_table(store, one, "items", without=CARRIED), read_table(store, one, "quarantine"))
        for one in (manifest, other)
    )
    return changes_between(items, quarantine, old_items, old_quarantine)


def _run(store: Store, manifest: Manifest) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the config that the run froze and its result, as far as they are there and of this release."""
    run = open_run(store, manifest.run)
    try:
        frozen = yaml.safe_load(run.read_frozen("config.yaml") or b"{}")
        result = run.read_result() or {}
    except (yaml.YAMLError, CodebooksError):
        return {}, {}
    return frozen if isinstance(frozen, dict) else {}, result if result.get("release") == manifest.release_id else {}

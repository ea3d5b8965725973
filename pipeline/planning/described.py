"""A plan as text for people: what a refresh would do and cost, and the first photos of it."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow.compute as pc

from ..catalogue import CatalogueNotes, prefixes_to_add
from ..storage import Store
from .memory import memory_lines
from .plan import Plan, PlanSummary
from .resolution import pixels_line
from .settings import NightSettings

_SHOWN = 5


def pixels_lines(config: NightSettings, store: Store, plan: Plan) -> list[str]:
    """Return in words what a night stores of the photos it fetches; none where it fetches none."""
    summary, counts = plan.summary, plan.summary.counts
    if not counts["to_fetch"]:
        return []
    sizes = {"fetched": counts["to_fetch"], "photos": counts["photos"], "fetch_bytes": summary.fetch_bytes}
    return [pixels_line(config, store, model_id=summary.model_id, **sizes)]


def describe(plan: Plan, *, idle: bool, pixels: Sequence[str] = ()) -> str:
    """Return the plan as text for people. pixels: lines on what is stored."""
    summary, counts = plan.summary, plan.summary.counts
    model = f"bundle {summary.model_id[:12]}" if summary.model_id else "a new one will be trained"
    requests = f"{summary.listed:,} listed names, {summary.heads:,} HEADs, {summary.revalidated:,} conditional GETs"
    renewal, channel = summary.renewal, summary.channel or "none, a sample is not published"
    counted = summary.lines()
    lines = [
        *([] if renewal is None else [*renewal.lines(), "a refresh does it with --retrain or where train.when is set"]),
        counted[0],
        f"channel: {channel}, parent {summary.parent or 'none'} (number {summary.head})",
        f"model: {model}; train key {summary.train_key[:12]}",
        f"to fetch: {_fetched(summary)}; to encode: {counts['to_encode']:,}; in {counts['shards']:,} shards",
        *pixels,
        f"catalogue: {catalogue_line(summary.catalogue)}",
        *counted[1:],
        *memory_lines(summary.memory),
        f"planning took {summary.seconds:.1f} s; tokens cost {requests}",
        "first photos:",
        *(f"  {row['item_id']}  {row['uri']}  {row['token']}  ({row['status']})" for row in first_photos(plan)),
    ]
    if summary.reads:
        lines.append(
            f"{summary.reads:,} photos ({summary.read_bytes / 1e6:,.1f} MB) were read whole: their servers say nothing "
            "else that tells whether they changed; a column named in catalogue.version spares that"
        )
    if summary.slowed:
        hosts = ", ".join(f"{host} ({seconds:g} s)" for host, seconds in list(summary.slowed.items())[:_SHOWN])
        lines.append(f"{len(summary.slowed):,} hosts asked for fewer requests and got them: {hosts}")
    outside = prefixes_to_add(plan.rows["detail"])
    if outside:
        found = ", ".join(f"{prefix} ({count:,} photos)" for prefix, count in list(outside.items())[:_SHOWN])
        lines.append(f"not allowed: {found}; what is right goes into catalogue.allowed_prefixes")
    refused = first_refused(plan)
    if refused:
        lines.append("first refused:")
        lines.extend(f"  {row['item_id']}  {row['uri']}  {row['reason']}: {row['detail']}" for row in refused)
    if idle:
        lines.append("nothing has changed: a refresh would end at once")
    return "\n".join(lines)


def _fetched(summary: PlanSummary) -> str:
    """Return in words how many photos and bytes are fetched, as far as these are known before."""
    photos = summary.counts["to_fetch"]
    sized, said = photos - summary.unsized, f"{photos:,} photos"
    if sized <= 0:
        return f"{said}, nothing tells their bytes before" if photos else said
    of = f" of {sized:,} of them, nothing tells those of the others" if summary.unsized else ""
    return f"{said}, {summary.fetch_bytes / 1e6:,.1f} MB{of}"


def catalogue_line(notes: CatalogueNotes) -> str:
    """Return what reading the catalogue found, and what it passed over, as one line."""
    passed = [
        (notes.no_image, "items without a photo"),
        (notes.repeated, "photos named twice by one item"),
        (sum(notes.skipped.values()), f"other files ({', '.join(sorted(notes.skipped))})"),
        (len(notes.skipped_columns), f"columns that cannot be kept ({', '.join(notes.skipped_columns)})"),
    ]
    found = (
        f"{notes.format}, {notes.files:,} files, {notes.rows:,} rows, {notes.items:,} items, {notes.photos:,} photos"
    )
    return "; passed over ".join([found, *(f"{count:,} {what}" for count, what in passed if count)])


def first_photos(plan: Plan) -> list[dict[str, object]]:
    """Return the first five photos as resolved: item_id, uri, token, status."""
    return list(plan.rows.slice(0, _SHOWN).select(["item_id", "uri", "token", "status"]).to_pylist())


def first_refused(plan: Plan) -> list[dict[str, object]]:
    """Return the first five photos that cannot be used: item_id, uri, reason, detail."""
    refused = plan.rows.filter(pc.equal(plan.rows["status"], "refused"))
    return list(refused.slice(0, _SHOWN).select(["item_id", "uri", "reason", "detail"]).to_pylist())

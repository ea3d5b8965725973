"""What was written, for people and for a scheduler's log: what became of every event is said."""

from __future__ import annotations

from typing import Any

from ..index.fusion import RRF_K
from .offering import Recommended


def details_of(done: Recommended) -> dict[str, Any]:
    """Return the fields of the JSON answer."""
    summary = done.summary
    rows = {table: sum(file.rows for file in summary.files if file.table == table) for table in _TABLES}
    return {"place": done.place, "rows": rows, **summary.model_dump(mode="json", include={"counts", "files"})}


def told(done: Recommended) -> str:
    """Return the answer as text."""
    summary, counts = done.summary, done.summary.counts
    rows = details_of(done)["rows"]
    first = (
        f"{done.place} {'held already' if done.done_before else 'holds'} what {counts.events:,} events of "
        f"{counts.customers:,} customers say of {summary.release_id}:"
    )
    lines = [
        first,
        *(f"  {table:<20}{rows[table]:>12,} rows  {meaning}" for table, meaning in _TABLES.items()),
    ]
    if counts.unknown_events:
        several = f"{counts.unknown_items:,}{' or more' if counts.unknown_items >= 100_000 else ''}"
        lines.append(
            f"  {counts.unknown_events:,} events are of {several} items that the release does not hold, for example "
            + ", ".join(map(repr, counts.unknown_first))
        )
    said = (
        (counts.customers_without, "customers have had nothing that the release holds, and stand in no table"),
        (counts.repeated, "events repeat a customer and an item; their weights were added up"),
        (counts.trimmed, "customers have more items than ask for them (--most-items)"),
        (counts.alone, "customers are like no other"),
    )
    return "\n".join([*lines, *(f"  {number:,} {meaning}" for number, meaning in said if number)])


_TABLES = {
    "customer_items": f"what to offer a customer; score: sum of share / ({RRF_K} + rank)",
    "customer_customers": "who is like a customer; score: cosine, 0 to 1",
    "item_items": "the items nearest to an item; score: the release's metric",
}

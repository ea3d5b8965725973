"""Counts, measures and gates over the releases of a channel: as a table for people, as columns, and as curves."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from pyarrow import csv

from ..evaluation.gates import GATES
from ..release.history import History, Told
from ..release.manifest import Manifest
from ..release.tables import write_table
from ..report.trends import Curve, Point, TrendsData, render_trends

FORMS = (".html", ".parquet", ".csv")
_COUNT, _MEASURE = "count", "measure"


@dataclass(frozen=True, slots=True)
class Gated:
    """A gate of a release as its manifest records it; of releases from before verdicts were recorded judged anew.

    limit: None where the gate was off. passed: or let pass by a person.
    """

    gate: str
    value: float | None
    limit: float | None
    passed: bool


@dataclass(frozen=True, slots=True)
class Column:
    """One entry of the channel's log. expired: its release is gone, and with it all but the entry; bundle_changed:
    its model is another than that of the last entry before it whose release is there."""

    number: int
    created: datetime
    release: str
    reason: str
    current: bool
    expired: bool
    model_id: str | None
    bundle_changed: bool
    verdict: str | None
    counts: Mapping[str, int]
    measures: Mapping[str, float]
    gates: tuple[Gated, ...]

    def value(self, kind: str, name: str) -> float | None:
        """Return a count or a measure, None where the release has it not."""
        return (self.counts if kind == _COUNT else self.measures).get(name)


@dataclass(frozen=True, slots=True)
class Trends:
    """Entries oldest first; names: (kind, name) of every count and measure that one of them has, counts first."""

    channel: str
    columns: tuple[Column, ...]
    names: tuple[tuple[str, str], ...]
    left_out: int

    def rows(self) -> list[dict[str, Any]]:
        """Return the entries as plain values for JSON."""
        return [
            {
                **{name: getattr(column, name) for name in _FIELDS},
                "created": column.created.isoformat(timespec="seconds"),
                "counts": dict(column.counts),
                "measures": dict(column.measures),
                "gates": [
                    {"gate": one.gate, "value": one.value, "limit": one.limit, "passed": one.passed}
                    for one in column.gates
                ],
            }
            for column in self.columns
        ]


_FIELDS = ("number", "created", "release", "reason", "current", "expired", "model_id", "bundle_changed", "verdict")


def trends(found: History) -> Trends:
    """Return what the entries of a channel's history measured."""
    columns, model = list[Column](), None
    for told in found.told:
        column = _column(told, model)
        model = column.model_id or model
        columns.append(column)
    names: dict[tuple[str, str], None] = {}
    for kind, field in ((_COUNT, "counts"), (_MEASURE, "measures")):
        names |= {(kind, name): None for column in columns for name in getattr(column, field)}
    return Trends(found.channel, tuple(columns), tuple(names), found.left_out)


def _column(told: Told, before: str | None) -> Column:
    manifest = told.manifest
    model = None if manifest is None else manifest.model_id
    return Column(
        number=told.entry.number,
        created=told.entry.created.astimezone(UTC),
        release=told.entry.release_id,
        reason=told.entry.reason,
        current=told.current,
        expired=manifest is None,
        model_id=model,
        bundle_changed=None not in (before, model) and before != model,
        verdict=told.verdict,
        counts={} if manifest is None else dict(manifest.counts),
        measures={} if manifest is None else dict(manifest.measures),
        gates=() if manifest is None else _gated(manifest),
    )


def _gated(manifest: Manifest) -> tuple[Gated, ...]:
    """Return the recorded verdicts; of a release that records none those of its limits and values."""
    if manifest.verdicts is None:
        return judged(manifest.config.get("gates"), manifest.counts, manifest.measures)
    return tuple(
        Gated(one["check"], one["value"], one["limit"], one["passed"] or one["allowed"] is not None)
        for one in manifest.verdicts
    )


def judged(
    recorded: Mapping[str, Any] | None, counts: Mapping[str, int], measures: Mapping[str, float]
) -> tuple[Gated, ...]:
    """Return the recorded gates whose value the manifest holds too; recorded: the config's section."""
    known: dict[str, float] = {**counts, **measures}  # the gate on items looks at a count
    found, limits = list[Gated](), recorded or {}
    for gate in GATES:
        if gate.field not in limits or gate.measure not in known:
            continue
        limit, value = limits[gate.field], known[gate.measure]
        passed = limit is None or (value >= limit if gate.side == "least" else value <= limit)
        found.append(Gated(gate.field, value, limit, bool(passed)))
    return tuple(found)


def trends_text(found: Trends) -> str:
    """Return the entries as a table for people: a row for each count and measure, a column for each entry."""
    lines = [f"channel {found.channel}, newest last; * the current release, ! another bundle than the one before"]
    heads = [f"{'!' if one.bundle_changed else ''}{'*' if one.current else ''}{one.number}" for one in found.columns]
    cells = [["", *heads], ["", *(one.created.strftime("%m-%d") for one in found.columns)]]
    cells += [[name, *(shown(one.value(kind, name)) for one in found.columns)] for kind, name in found.names]
    cells.append(["verdict", *(one.verdict or "-" for one in found.columns)])
    widths = [max(len(row[place]) for row in cells) for place in range(len(heads) + 1)]
    for row in cells:
        rest = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join([row[0].ljust(widths[0]), *rest]).rstrip())
    for one in found.columns:
        gone = "expired" if one.expired else f"bundle {(one.model_id or '')[:12]}"
        lines.append(f"{one.number}: {one.release}, {one.created:%Y-%m-%d %H:%M} UTC, {one.reason}, {gone}")
    if found.left_out:
        lines.append(f"{found.left_out:,} older entries are left out; --last N shows more")
    return "\n".join(lines)


def shown(value: float | None) -> str:
    """Return a count or a measure as people read it."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def trends_table(found: Trends) -> pa.Table:
    """Return one row an entry: its fields, `count_NAME` int64, `measure_NAME` float64, and of gates `limit_GATE`."""
    text, whole, flag = pa.string(), pa.int64(), pa.bool_()
    kinds = (whole, pa.timestamp("us", "UTC"), text, text, flag, flag, text, flag, text)
    columns = {
        name: pa.array([getattr(one, name) for one in found.columns], kind)
        for name, kind in zip(_FIELDS, kinds, strict=True)
    }
    for kind, name in found.names:
        values = [one.value(kind, name) for one in found.columns]
        columns[f"{kind}_{name}"] = pa.array(values, whole if kind == _COUNT else pa.float64())
    for gate in dict.fromkeys([*(gate.field for gate in GATES), *(g.gate for one in found.columns for g in one.gates)]):
        limits = [next((g.limit for g in one.gates if g.gate == gate), None) for one in found.columns]
        if any(limit is not None for limit in limits):
            columns[f"limit_{gate}"] = pa.array(limits, pa.float64())
    return pa.table(columns)


def trends_file(found: Trends, form: str) -> bytes:
    """Return the entries in one of FORMS."""
    if form == ".html":
        return render_trends(_page(found))
    table = trends_table(found)
    if form == ".parquet":
        return write_table(table)
    sink = io.BytesIO()
    csv.write_csv(table, sink)
    return sink.getvalue()


def _page(found: Trends) -> TrendsData:
    entries = [
        (f"{one.number}", one.release + (" (expired)" if one.expired else ""), f"{one.created:%Y-%m-%d %H:%M}",
         one.reason, (one.model_id or "-")[:12], one.bundle_changed, one.verdict or "-")
        for one in found.columns
    ]  # fmt: skip
    return TrendsData(
        title=f"Channel {found.channel}",
        about=f"{len(found.columns):,} entries of its log, {found.left_out:,} older ones left out; newest last.",
        entries=entries,
        curves=[_curve(found.columns, kind, name) for kind, name in found.names],
    )


def _curve(columns: Sequence[Column], kind: str, name: str) -> Curve:
    points = [
        Point(f"{one.number}, {one.created:%Y-%m-%d}", value, shown(value), one.bundle_changed)
        for one in columns
        for value in (one.value(kind, name),)
    ]
    return Curve(f"{name}" if kind == _MEASURE else f"{name} (count)", points)

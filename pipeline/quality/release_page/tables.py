"""The data of a report as tables: what its page shows, for other tools."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from ...report.night import Card, NightReport
from ...schema import MEASURES, VERDICTS

_TEXT, _NUMBER, _WHOLE = pa.string(), pa.float64(), pa.int64()


def report_tables(data: NightReport) -> dict[str, pa.Table]:
    """Return a report's tables by name, those that would be empty left out."""
    found = {
        "verdicts": _verdicts(data),
        "measures": _measures(data),
        "changes": _table(
            {"change": _TEXT, "photos": _WHOLE, "items": _WHOLE, "examples": pa.list_(_TEXT)},
            ((one.name, one.photos, one.items, _ids(one.cards)) for one in data.changes),
        ),
        "neighbours": _table(
            {"group": _TEXT, "item_id": _TEXT, "release": _TEXT, "rank": _WHOLE, "neighbour_id": _TEXT, "words": _TEXT},
            _neighbours(data),
        ),
        "codes": _table(
            {"codebook": _TEXT, "code": _WHOLE, "share": _NUMBER, "photos": _NUMBER, "leans": _TEXT, "times": _NUMBER},
            (
                (level.name, code.code, code.share, code.photos, code.leans, code.times)
                for level in data.levels
                for _, codes in level.groups
                for code in codes
            ),
        ),
        "shelves": _table(
            {"prefix": _TEXT, "items": _WHOLE, "words": _TEXT, "examples": pa.list_(_TEXT)},
            ((one.prefix, one.items, one.words, _ids(one.cards)) for one in data.shelves),
        ),
        "map": _table(
            {"item_id": _TEXT, "category": _TEXT, "x": _NUMBER, "y": _NUMBER},
            ((dot.item_id, dot.category, dot.x, dot.y) for dot in (data.plane.dots if data.plane else ())),
        ),
        "curves": _table(
            {"of": _TEXT, "name": _TEXT, "place": _WHOLE, "label": _TEXT, "value": _NUMBER},
            (
                (of, curve.name, place, point.label, point.value)
                for of, curves in (("releases", data.curves), ("training", data.training))
                for curve in curves
                for place, point in enumerate(curve.points)
            ),
        ),
        "stages": _table(
            {"stage": _TEXT, "seconds": _NUMBER, "photos_per_s": _NUMBER, "cost": _NUMBER},
            ((one.name, one.seconds, one.photos_per_s, one.cost) for one in data.stages),
        ),
        "quarantine": _table(
            {"stage": _TEXT, "reason": _TEXT, "photos": _WHOLE, "new": _WHOLE, "examples": pa.list_(_TEXT)},
            (
                (one.stage, one.reason, one.count, one.new, [card.item_id for card, _ in one.examples])
                for one in data.refused
            ),
        ),
    }
    return {name: table for name, table in found.items() if table.num_rows}


def _verdicts(data: NightReport) -> pa.Table:
    rows = [
        {"examples": _ids(line.examples)} | {name: getattr(line, name) for name in VERDICTS.names if name != "examples"}
        for line in data.verdicts
    ]
    return pa.Table.from_pylist(rows, schema=VERDICTS)


def _measures(data: NightReport) -> pa.Table:
    rows = [
        {"measure": line.name, "examples": _ids(line.examples)}
        | {name: getattr(line, name) for name in ("category", "value", "low", "high", "n", "before")}
        for line in data.measures
    ]
    return pa.Table.from_pylist(rows, schema=MEASURES.append(pa.field("before", _NUMBER)))


def _neighbours(data: NightReport) -> Iterator[tuple[str, str, str, int, str, str]]:
    for group in data.neighbourhoods:
        for row in group.rows:
            for release, cards in (("this", row.now), (data.beside or "", row.before or ())):
                for rank, card in enumerate(cards, 1):
                    yield group.title, row.query.item_id, release, rank, card.item_id, card.words


def _ids(cards: Sequence[Card]) -> list[str]:
    return [card.item_id for card in cards]


def _table(columns: dict[str, pa.DataType], rows: Iterator[tuple[object, ...]]) -> pa.Table:
    names = list(columns)
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], schema=pa.schema(columns.items()))

"""What a night's measures have in common: a name, a value with its interval, and the worst examples; as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from ..schema import MEASURES, table_schema


@dataclass(frozen=True, slots=True)
class Measured:
    """One value that a night has measured.

    name: of the measure, as gates and history call it. value: NaN where there was nothing to measure it on. low, high:
    the ends of its 95 % interval, None where it is counted and not sampled. category: of which it is, None for the
    whole catalogue. n: how many things it was measured on. examples: item_ids of the worst, the worst first.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    category: str | None = None
    n: int | None = None
    examples: Sequence[str] = ()


def whole_catalogue(found: Iterable[Measured]) -> dict[str, float]:
    """Return the values of the whole catalogue by name, those with an interval also as `<name>_low`, `<name>_high`."""
    values: dict[str, float] = {}
    for one in found:
        if one.category is None:
            ends = {"": one.value, "_low": one.low, "_high": one.high}
            values |= {one.name + end: value for end, value in ends.items() if value is not None}
    return values


def measures_table(found: Iterable[Measured]) -> pa.Table:
    """Return what was measured as the release's table `measures`, in the order given."""
    schema = table_schema(MEASURES)
    rows = [
        {
            "measure": one.name,
            "category": one.category,
            "value": float(one.value),
            "low": one.low,
            "high": one.high,
            "n": one.n,
            "examples": list(one.examples),
        }
        for one in found
    ]
    return pa.Table.from_pylist(rows, schema=schema)


def measured_of(table: pa.Table) -> list[Measured]:
    """Return what a release's table `measures` says."""
    return [
        Measured(
            name=row["measure"],
            value=row["value"],
            low=row["low"],
            high=row["high"],
            category=row["category"],
            n=row["n"],
            examples=tuple(row["examples"]),
        )
        for row in table.to_pylist()
    ]

"""The verdict of a release in words, its gates and its measures as the report shows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...evaluation.measured import Measured
from ...report.night import Card, MeasureLine, VerdictLine
from ...schema import VERDICTS
from .subject import Subject

_EXAMPLES = 3  # of a gate
_CLOSE = 0.02  # of the way from a limit, below which a gate is said to be close to it
_WORST = 5  # examples of a measure
_ENDS = ("_low", "_high")  # of a measure's interval, which manifests list as measures of their own


def verdict_lines(subject: Subject) -> list[VerdictLine]:
    """Return the gates, those that did not pass first."""
    rows = [{**row, "allowed": _allowed(row, subject.allowed)} for row in subject.told.verdicts.to_pylist()]
    rows.sort(key=lambda row: (row["passed"], row["allowed"] is not None))
    return [
        VerdictLine(
            **{name: row[name] for name in VERDICTS.names if name != "examples" and name in row},
            examples=subject.album.named(subject.sides, row["examples"][:_EXAMPLES], subject.category),
        )
        for row in rows
    ]


def _allowed(row: Mapping[str, Any], later: Mapping[str, str]) -> str | None:
    """Return why a gate was let pass: at once, or when the release had been refused and was published all the same."""
    told: str | None = row["allowed"]
    return told if row["passed"] or told is not None else later.get(row["check"])


def has_passed(lines: Sequence[VerdictLine]) -> bool | None:
    """Return whether every gate passed or was allowed, None where there are none."""
    return None if not lines else all(line.passed or line.allowed is not None for line in lines)


def sentence(lines: Sequence[VerdictLine]) -> str:
    """Return the verdict and why in a sentence or two."""
    on = [line for line in lines if line.limit is not None]
    stopped = [line for line in lines if not line.passed and line.allowed is None]
    allowed = [line for line in lines if line.allowed is not None]
    if not lines:
        return "No gates are recorded of this release."
    if stopped:
        told = f"Refused by {len(stopped)} of {len(on)} gates: {'; '.join(map(_why, stopped))}."
    elif allowed:
        told = f"Passed, with {len(allowed)} of {len(on)} gates let pass once."
    else:
        told = f"Passed: all {len(on)} gates kept their limits."
    told += "".join(f" {_named(line)} was let pass this once: {line.allowed}." for line in allowed)
    close = min((line for line in on if line.passed), key=_room, default=None)
    if close is not None and _room(close) < _CLOSE:
        told += f" Closest to its limit: {_why(close)}."
    return told


def _named(line: VerdictLine) -> str:
    return line.check if line.category is None else f"{line.check} of {line.category}"


def _why(line: VerdictLine) -> str:
    if line.value is None:
        return f"{_named(line)}: {line.note or 'there is no value'}"
    if line.parent is None:
        return f"{_named(line)} found {_number(line.value)}, its limit is {_number(line.limit)}"
    moved = line.value - line.parent
    told = f"{_named(line)} {'rose' if moved > 0 else 'fell'} by {_number(abs(moved))} to {_number(line.value)}"
    margin = "" if line.margin is None else f" and chance {_number(line.margin)}"
    return f"{told}, its limit is {_number(line.limit)}{margin}"


def _room(line: VerdictLine) -> float:
    """Return how far a value is from what would refuse it, as a share of the larger of the two; 1 where none can."""
    if line.value is None or line.limit is None:
        return 1.0
    found, limit = line.value, line.limit
    if line.parent is not None:
        found = abs(line.value - line.parent)
        limit += line.margin or 0.0
    largest = max(abs(found), abs(limit))
    return abs(found - limit) / largest if largest else 1.0


def _number(value: float | None) -> str:
    return "nothing" if value is None else f"{value:,.4g}"


def measure_lines(subject: Subject) -> list[MeasureLine]:
    """Return what was measured beside what the other release measured, the whole catalogue's first."""
    before, album = subject.values_before(), subject.album
    found = sorted(subject.told.measured, key=lambda one: one.category is not None)
    return [
        MeasureLine(
            name=one.name,
            category=one.category,
            value=one.value,
            low=one.low,
            high=one.high,
            before=before.get((one.name, one.category)),
            n=one.n,
            # Of categories by name alone: there are hundreds, and each picture is read from the store.
            examples=[Card(item_id) for item_id in one.examples[:_WORST]]
            if one.category is not None
            else album.named(subject.sides, one.examples[:_WORST], subject.category),
        )
        for one in found
    ]


def measured_in(measures: Mapping[str, float]) -> list[Measured]:
    """Return what a manifest or a night lists as measures by name, their intervals' ends with them."""
    found = []
    for name, value in measures.items():
        base = next((name.removesuffix(end) for end in _ENDS if name.endswith(end)), None)
        if base is None or base not in measures:
            low, high = (measures.get(name + end) for end in _ENDS)
            found.append(Measured(name, float(value), low, high))
    return found


def with_table(measures: Mapping[str, float], table: Iterable[Measured]) -> list[Measured]:
    """Return the table's measures, and of the others those that it does not have."""
    rows = list(table)
    named = {one.name for one in rows}
    return [*rows, *(one for one in measured_in(measures) if one.name not in named)]

"""What gates say of a release: each one's verdict, as a table, as plain values, and in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from ..schema import VERDICTS, table_schema

SHOWN = 3  # examples that a refusal names


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """One gate's verdict.

    name: as `--allow` and the config's section `gates` call it (`min_recall`, `max_drop.photo_recall`). value: NaN
    where there is none. limit: None where the gate is off (it then passes). category: of which it is, None for the
    whole catalogue. parent, margin: of a limit on the difference to the parent, what that measured and how much of the
    difference chance may explain. allowed: the reason that a person gave to let it pass once. note: what the rule was
    where nothing was compared, or why there is no value. examples: item_ids of the worst, the worst first.
    """

    name: str
    value: float
    limit: float | None
    passed: bool
    category: str | None = None
    parent: float | None = None
    margin: float | None = None
    allowed: str | None = None
    note: str | None = None
    examples: Sequence[str] = ()

    @property
    def stops(self) -> bool:
        """Return whether the release must not be published for it."""
        return not self.passed and self.allowed is None

    def plain(self) -> dict[str, Any]:
        """Return it as plain JSON values, a row of the table `verdicts`."""
        return {
            "check": self.name,
            "category": self.category,
            "value": _number(self.value),
            "limit": _number(self.limit),
            "parent": _number(self.parent),
            "margin": _number(self.margin),
            "passed": self.passed,
            "allowed": self.allowed,
            "note": self.note,
            "examples": list(self.examples),
        }

    def words(self) -> str:
        """Return one line for people: the gate, the value, its limit, what it is compared with, the worst items."""
        where = "" if self.category is None else f" of {self.category!r}"
        if math.isnan(self.value) and self.note is not None:
            return f"gates.{self.name}{where}: {self.note}"
        said = [f"gates.{self.name}{where}: {self.value:.6g}"]
        if self.limit is not None:
            said.append(f"limit {self.limit:g}")
        if self.parent is not None:
            fallen = self.parent - self.value
            said.append(f"parent {self.parent:.6g}")
            said.append(f"{'fell' if fallen > 0 else 'rose'} by {abs(fallen):.4g}")
        if self.margin is not None:
            said.append(f"by chance up to {self.margin:.4g}")
        if self.note is not None:
            said.append(self.note)
        worst = f"; the worst: {', '.join(self.examples[:SHOWN])}" if self.examples else ""
        return ", ".join(said) + worst


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a person lets pass once. gates: by name; reason: why, in that person's words."""

    gates: tuple[str, ...]
    reason: str


def with_allowed(verdicts: Iterable[GateVerdict], allowed: Iterable[Allowed]) -> tuple[GateVerdict, ...]:
    """Return the verdicts, those that do not pass and that a person allows with that person's reason.

    A gate that is allowed and passes keeps its verdict.
    """
    reasons = {gate: one.reason for one in allowed for gate in one.gates}
    return tuple(v if v.passed else replace(v, allowed=reasons.get(v.name)) for v in verdicts)


def allowed_in(verdicts: Iterable[GateVerdict]) -> dict[str, str]:
    """Return the reasons by gate of what was let pass."""
    return {verdict.name: verdict.allowed for verdict in verdicts if verdict.allowed is not None}


def one_a_gate(verdicts: Iterable[GateVerdict]) -> tuple[GateVerdict, ...]:
    """Return one verdict a gate: of one judged by category that which stops, else that of the whole catalogue."""
    found: dict[str, GateVerdict] = {}
    for verdict in verdicts:
        standing = found.setdefault(verdict.name, verdict)
        if (verdict.stops, not verdict.passed) > (standing.stops, not standing.passed):
            found[verdict.name] = verdict
    return tuple(found.values())


def refusal_text(verdicts: Iterable[GateVerdict], *, what: str, look_at: str, again: str) -> str:
    """Return what is said of a release that gates refuse, one gate a line.

    what: is refused; look_at: where its page is; again: the command that lets these pass once.
    """
    refused = [verdict for verdict in verdicts if verdict.stops]
    gates = list(dict.fromkeys(verdict.name for verdict in refused))
    lines = "\n".join(f"  {verdict.words()}" for verdict in refused)
    allow = " ".join(f"--allow {gate}" for gate in gates)
    return (
        f"{what}, {len(gates)} gate{'s' if len(gates) > 1 else ''} refused it:\n{lines}\nThe channel stays as it is; "
        f"look at {look_at}. Where it is right all the same, let it pass this once: {again} {allow} --reason TEXT. "
        "Where a limit is wrong, change it and start a run of another name"
    )


def verdicts_table(verdicts: Iterable[GateVerdict]) -> pa.Table:
    """Return the release's table `verdicts`, in the order given."""
    return pa.Table.from_pylist([verdict.plain() for verdict in verdicts], schema=table_schema(VERDICTS))


def verdict_of(plain: Mapping[str, Any]) -> GateVerdict:
    """Return the verdict that `GateVerdict.plain` wrote."""
    value = plain["value"]
    return GateVerdict(
        name=plain["check"],
        value=math.nan if value is None else float(value),
        limit=plain["limit"],
        passed=plain["passed"],
        category=plain["category"],
        parent=plain["parent"],
        margin=plain["margin"],
        allowed=plain["allowed"],
        note=plain["note"],
        examples=tuple(plain["examples"]),
    )


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)

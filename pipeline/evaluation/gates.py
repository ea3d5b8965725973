"""Gates: the limits that a release's measures must keep before it is published."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ..errors import InputError


class GatesConfig(BaseModel):
    """The limits; null switches a gate off.

    min_recall: of the index, as a share. max_quarantine: share of photos refused. max_not_finite: share of photos to
    which the model gives no finite latents; single ones are quarantined, many mean that the model is broken.
    max_removed: share of the parent's photos that are gone. min_items: items in the release.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    min_recall: float | None = Field(default=0.95, ge=0.0, le=1.0)
    max_quarantine: float | None = Field(default=0.2, ge=0.0, le=1.0)
    max_not_finite: float | None = Field(default=0.05, ge=0.0, le=1.0)
    max_removed: float | None = Field(default=0.5, ge=0.0, le=1.0)
    min_items: int | None = Field(default=1, ge=0)


@dataclass(frozen=True, slots=True)
class Gate:
    """field: of GatesConfig; measure: the value it looks at; side: is the limit the least or the most allowed."""

    field: str
    measure: str
    side: Literal["least", "most"]


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """One gate's verdict. name: the field of GatesConfig; limit: None where the gate is off (it then passes)."""

    name: str
    value: float
    limit: float | None
    passed: bool


GATES: tuple[Gate, ...] = (
    Gate("min_recall", "recall", "least"),
    Gate("max_quarantine", "quarantine_share", "most"),
    Gate("max_not_finite", "not_finite_share", "most"),
    Gate("max_removed", "removed_share", "most"),
    Gate("min_items", "items", "least"),
)


def check_gates(measures: Mapping[str, float], config: GatesConfig) -> list[GateVerdict]:
    """Return every gate's verdict, in the order of GATES; a value at its limit passes, NaN never does.

    Raises InputError when a gate that is on has no value to look at.
    """
    verdicts = []
    for gate in GATES:
        limit = getattr(config, gate.field)
        value = measures.get(gate.measure)
        if limit is None:
            verdicts.append(GateVerdict(gate.field, math.nan if value is None else float(value), None, passed=True))
            continue
        if value is None:
            raise InputError(
                f"gate {gate.field} looks at {gate.measure!r}, which was not measured (there are: "
                f"{', '.join(sorted(measures)) or 'none'}); set gates.{gate.field}=null to switch it off"
            )
        passed = value >= limit if gate.side == "least" else value <= limit
        verdicts.append(GateVerdict(gate.field, float(value), float(limit), passed=bool(passed)))
    return verdicts

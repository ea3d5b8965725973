"""Gates: the limits that a release's measures must keep before it is published."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ..errors import InputError
from .known import check_name
from .verdicts import GateVerdict


class Limit(BaseModel):
    """A limit with more to say than its number. by_category: it also holds for every category by itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    limit: float
    by_category: bool = False


AnyLimit = float | Limit | None


class Limits(BaseModel):
    """Limits on measures by their names; each a number, `{limit: 0.02, by_category: true}`, or null for none.

    min, max: of tonight's value. max_drop, max_rise: by how much it may stand below or above the parent's; refused is
    what goes further than that by more than chance explains (`margins`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    min: dict[str, AnyLimit] = {}
    max: dict[str, AnyLimit] = {}
    max_drop: dict[str, AnyLimit] = {}
    max_rise: dict[str, AnyLimit] = {}

    @model_serializer(mode="wrap")
    def _without_what_is_not_asked(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Keys and frozen configs of those that state no such limits stay as they were before there were any.
        later = {*KINDS, "promote"}
        return {name: value for name, value in dump(self).items() if name not in later or value}

    @model_validator(mode="after")
    def _name_measures(self) -> Limits:
        for kind in KINDS:
            for measure, limit in getattr(self, kind).items():
                check_name(measure)
                number = limit.limit if isinstance(limit, Limit) else limit
                if number is not None and number < 0 and kind.startswith("max_"):
                    raise ValueError(f"{kind}.{measure} is {number:g}; by how much it may change is 0 or more")
        return self


KINDS: tuple[Literal["min", "max", "max_drop", "max_rise"], ...] = ("min", "max", "max_drop", "max_rise")


class GatesConfig(Limits):
    """The limits; null switches a gate off.

    min_recall: of the index, as a share. max_quarantine: share of photos refused. max_not_finite: share of photos to
    which the model gives no finite latents; single ones are quarantined, many mean that the model is broken.
    max_removed: share of the parent's photos that are gone. min_items: items in the release. min, max, max_drop,
    max_rise: of any measure by its name, beside the defaults (`defaults.NIGHTLY`). promote: what must hold between the
    current release of a channel and one that is promoted to it.
    """

    min_recall: float | None = Field(default=0.95, ge=0.0, le=1.0)
    max_quarantine: float | None = Field(default=0.2, ge=0.0, le=1.0)
    max_not_finite: float | None = Field(default=0.05, ge=0.0, le=1.0)
    max_removed: float | None = Field(default=0.5, ge=0.0, le=1.0)
    min_items: int | None = Field(default=1, ge=0)
    promote: Limits = Limits()


@dataclass(frozen=True, slots=True)
class Gate:
    """field: of GatesConfig; measure: the value it looks at; side: is the limit the least or the most allowed."""

    field: str
    measure: str
    side: Literal["least", "most"]


GATES: tuple[Gate, ...] = (
    Gate("min_recall", "recall", "least"),
    Gate("max_quarantine", "quarantine_share", "most"),
    Gate("max_not_finite", "not_finite_share", "most"),
    Gate("max_removed", "removed_share", "most"),
    Gate("min_items", "items", "least"),
)


def check_gates(
    measures: Mapping[str, float], config: GatesConfig, examples: Mapping[str, Sequence[str]] | None = None
) -> list[GateVerdict]:
    """Return every gate's verdict, in the order of GATES; a value at its limit passes, NaN never does.

    examples: the worst items by measure. Raises InputError when a gate that is on has no value to look at.
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
        worst = tuple((examples or {}).get(gate.measure, ()))
        verdicts.append(GateVerdict(gate.field, float(value), float(limit), passed=bool(passed), examples=worst))
    return verdicts

"""Limits on measures by their names: of tonight's values, and of what they differ by from the parent's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

from .gates import KINDS, AnyLimit, Limit, Limits
from .known import bound_to_space, falls_with_size, occasional
from .margins import margin_above, margin_below, margin_of_fall, margin_of_rise, pooled
from .measured import Measured
from .verdicts import GateVerdict

LEAST = 30  # things that a category was measured on, for it to be judged by itself
POOLED = "(small categories together)"
NO_PARENT = "no parent to compare with"
NOT_TONIGHT = "not measured tonight: it wants a parent, one of this bundle, or more that is new"
OTHER_BUNDLE = "the parent is of another bundle, whose space this cannot be compared with"
BARE = "only its value is known, not on how much it was measured: limits by default do not compare it"
GROWN = "the catalogue has grown by more than a quarter, which alone lowers it: limits by default do not compare it"
_GROWTH = 1.25
_ROUNDING = 1e-12  # 0.98 - 0.96 > 0.02 in floats: a value at its limit passes


@dataclass(frozen=True, slots=True)
class Side:
    """A release as gates see it: what was measured, and the bundle of its space."""

    measured: Sequence[Measured]
    model_id: str

    def whole(self) -> dict[str, Measured]:
        """Return the measures of the whole catalogue by name."""
        return {one.name: one for one in self.measured if one.category is None}

    def of_categories(self, name: str) -> dict[str, Measured]:
        """Return a measure's values by category."""
        return {one.category: one for one in self.measured if one.name == name and one.category is not None}


def side_of(measures: Mapping[str, float], measured: Sequence[Measured], model_id: str) -> Side:
    """Return a release's side from its flat measures, where `<name>_low` and `<name>_high` are a value's interval, and
    from the rows of its table `measures`, which say more and win."""
    rows = {one.name for one in measured if one.category is None}
    ends = {name + end for name in measures for end in ("_low", "_high") if name + end in measures}
    more = [
        Measured(name, float(value), measures.get(f"{name}_low"), measures.get(f"{name}_high"))
        for name, value in measures.items()
        if name not in rows and name not in ends
    ]
    return Side([*measured, *more], model_id)


def judge(
    limits: Limits, now: Side, parent: Side | None, *, defaults: Limits | None = None, prefix: str = ""
) -> list[GateVerdict]:
    """Return the verdict of every limit, those of `defaults` too that `limits` does not state otherwise.

    A limit that was stated and whose measure was not taken refuses the release, unless it is one that some nights
    rightly lack (`known.occasional`); a default limit says nothing then, nor of differences between bare values, nor of
    what falls with size (`known.falls_with_size`) where the catalogue has grown by more than a quarter. A
    measure that had nothing to be measured on (n = 0, as the drift of added items where none were added) passes. Limits
    on differences pass without a parent, where the parent has not measured it, and between bundles those on what is
    bound to one space (`known.bound_to_space`). By category each is judged so that chance refuses none of them more
    often than it would a single one; those measured on fewer than LEAST things on either side are pooled, those that
    one side lacks are not compared. prefix: before the verdicts' names.
    """
    verdicts: list[GateVerdict] = []
    for kind in KINDS:
        stated, usual = getattr(limits, kind), {} if defaults is None else getattr(defaults, kind)
        for measure, limit in {**usual, **stated}.items():
            asked = _Asked(
                f"{prefix}{kind}.{measure}", kind, measure, _spelled_out(limit), measure in stated, now, parent
            )
            verdicts += asked.verdicts()
    return verdicts


def limit_names(limits: Limits, defaults: Limits, *, prefix: str = "") -> list[str]:
    """Return the names of the verdicts that `judge` may give."""
    both = ((kind, measure) for kind in KINDS for held in (defaults, limits) for measure in getattr(held, kind))
    return [f"{prefix}{kind}.{measure}" for kind, measure in dict.fromkeys(both)]


def _spelled_out(limit: AnyLimit) -> Limit | None:
    return Limit(limit=limit) if isinstance(limit, float | int) else limit


@dataclass(frozen=True, slots=True)
class _Asked:
    """One limit, and the two releases it looks at."""

    name: str
    kind: str
    measure: str
    limit: Limit | None
    stated: bool
    now: Side
    parent: Side | None

    def verdicts(self) -> Iterator[GateVerdict]:
        found = self.now.whole().get(self.measure)
        if self.limit is None:
            yield GateVerdict(self.name, math.nan if found is None else found.value, None, passed=True)
        elif found is None and self.stated and occasional(self.measure):
            yield GateVerdict(self.name, math.nan, self.limit.limit, passed=True, note=NOT_TONIGHT)
        elif found is None and self.stated:
            yield self._refused(self.limit.limit, self._not_measured())
        elif found is not None:
            earlier = {} if self.parent is None else self.parent.whole()
            yield self._verdict(self.limit.limit, found, earlier.get(self.measure))
            if self.limit.by_category:
                yield from self._by_category(self.limit.limit)

    def _grown(self) -> bool:
        now, before = (None if side is None else side.whole().get("items") for side in (self.now, self.parent))
        return now is not None and before is not None and now.value > _GROWTH * before.value

    @property
    def _relative(self) -> bool:
        return self.kind in ("max_drop", "max_rise")

    def _refused(self, limit: float, note: str) -> GateVerdict:
        return GateVerdict(self.name, math.nan, limit, passed=False, note=note)

    def _not_measured(self) -> str:
        names = sorted(self.now.whole())
        near = get_close_matches(self.measure, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"measured were: {', '.join(names)}"
        return f"{self.measure!r} was not measured; {hint} Null switches the gate off"

    def _by_category(self, limit: float) -> Iterator[GateVerdict]:
        tonight = self.now.of_categories(self.measure)
        if not tonight and self.stated:
            yield self._refused(limit, f"{self.measure!r} was not measured by category (is catalogue.category set?)")
        earlier: dict[str, Measured] = {}
        if self._relative and self.parent is not None:
            earlier = self.parent.of_categories(self.measure)
            tonight = {name: one for name, one in tonight.items() if name in earlier}
        small = [name for name, one in tonight.items() if _is_small(one) or _is_small(earlier.get(name, one))]
        pairs = [(one, earlier.get(name)) for name, one in tonight.items() if name not in small]
        together = [name for name in small if tonight[name].n and (not earlier or earlier[name].n)]
        if together:
            pool = pooled([tonight[name] for name in together], POOLED)
            pairs.append((pool, pooled([earlier[name] for name in together], POOLED) if earlier else None))
        for now, before in pairs:
            yield self._verdict(limit, now, before, comparisons=len(pairs))

    def _verdict(self, limit: float, now: Measured, before: Measured | None, *, comparisons: int = 1) -> GateVerdict:
        verdict = GateVerdict(
            self.name, now.value, limit, passed=True, category=now.category, examples=tuple(now.examples)
        )
        if math.isnan(now.value):
            nothing = now.n == 0
            note = "nothing to measure it on" if nothing else f"{self.measure!r} is no number"
            return replace(verdict, passed=nothing, note=note)
        if self._relative:
            return self._compared(verdict, limit, now, before, comparisons)
        upwards = self.kind == "max"
        over = now.value - limit if upwards else limit - now.value
        if now.category is None:
            return replace(verdict, passed=over <= _ROUNDING)
        margin = (margin_above if upwards else margin_below)(now, comparisons=comparisons)
        return replace(verdict, margin=margin, passed=over - margin <= _ROUNDING)

    def _compared(
        self, verdict: GateVerdict, limit: float, now: Measured, before: Measured | None, comparisons: int
    ) -> GateVerdict:
        if self.parent is None:
            return replace(verdict, note=NO_PARENT)
        if self.parent.model_id != self.now.model_id and bound_to_space(self.measure):
            return replace(verdict, note=OTHER_BUNDLE, parent=None if before is None else before.value)
        if before is None or math.isnan(before.value):
            return replace(verdict, note="the parent has no value of it")
        if not self.stated and (_is_bare(now) or _is_bare(before)):
            return replace(verdict, parent=before.value, note=BARE)
        if not self.stated and falls_with_size(self.measure) and self._grown():
            return replace(verdict, parent=before.value, note=GROWN)
        rises = self.kind == "max_rise"
        further = now.value - before.value if rises else before.value - now.value
        margin = (margin_of_rise if rises else margin_of_fall)(before, now, comparisons=comparisons)
        passed = further - margin <= limit + _ROUNDING
        return replace(verdict, parent=before.value, margin=margin, passed=passed)


def _is_bare(one: Measured) -> bool:
    return one.low is None and one.n is None


def _is_small(one: Measured) -> bool:
    return one.n is not None and one.n < LEAST

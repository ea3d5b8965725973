"""What the gates say of a release before it is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from ..encoding import NOT_FINITE
from ..evaluation import GATES, GatesConfig, GateVerdict, check_gates
from ..evaluation.defaults import nightly_defaults
from ..evaluation.judging import Side, judge, limit_names
from ..evaluation.margins import share_of
from ..evaluation.measured import Measured
from ..evaluation.verdicts import Allowed, with_allowed
from ..release import Sample
from ..tables import SID_MOVES

_EXAMPLES = 20


def gates_of(gates: GatesConfig, sample: Sample | None) -> GatesConfig:
    """Return the limits for a release; those on how many items there are say nothing of a sample."""
    return gates if sample is None else gates.model_copy(update={"min_items": None, "max_removed": None})


def gate_names(gates: GatesConfig) -> list[str]:
    """Return the names of all gates of a night, as `--allow` takes them."""
    return [*(gate.field for gate in GATES), *limit_names(gates, nightly_defaults(gates)), SID_MOVES]


def verdicts_on(
    measures: Mapping[str, float], now: Side, parent: Side | None, gates: GatesConfig, allowed: Iterable[Allowed] = ()
) -> tuple[GateVerdict, ...]:
    """Return the verdict of every gate; that no published semantic ID moves is no matter of limits.

    measures: flat, by name; now, parent: `side_of` these and of what tables say. Raises InputError as `check_gates`.
    """
    examples = {name: one.examples for name, one in now.whole().items()}
    verdicts = check_gates(measures, gates, examples)
    verdicts += judge(gates, now, parent, defaults=nightly_defaults(gates))
    if SID_MOVES in measures:
        verdicts.append(GateVerdict(SID_MOVES, measures[SID_MOVES], 0.0, passed=measures[SID_MOVES] == 0))
    return with_allowed(verdicts, allowed)


def counted_shares(counts: Mapping[str, int], quarantine: pa.Table, changes: pa.Table) -> list[Measured]:
    """Return the shares of `examining.measure` with how many photos each is of, its interval and examples.

    counts: of `examining.count`; quarantine, changes: the release's tables.
    """
    unused = counts["refused"] - counts["held"]
    asked, before = max(1, unused + counts["photos"]), counts["parent_photos"]
    gone = changes.filter(pc.equal(changes["change"], "removed"))
    broken = quarantine.filter(pc.equal(quarantine["reason"], NOT_FINITE))
    found = [
        share_of("quarantine_share", unused, asked, examples=_first(quarantine)),
        share_of("not_finite_share", counts["not_finite"], asked, examples=_first(broken)),
    ]
    return [*found, share_of("removed_share", counts["removed"], before, examples=_first(gone))] if before else found


def _first(table: pa.Table) -> tuple[str, ...]:
    return tuple(str(item) for item in table["item_id"].slice(0, _EXAMPLES).to_pylist())

"""What the gates say of a release before it is written, and what a person lets pass."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from difflib import get_close_matches

import pyarrow as pa
import pyarrow.compute as pc

from ..encoding import NOT_FINITE
from ..errors import ConfigError
from ..evaluation import GATES, GatesConfig, GateVerdict, check_gates
from ..evaluation.defaults import nightly_defaults
from ..evaluation.judging import Side, judge, limit_names, side_of
from ..evaluation.margins import share_of
from ..evaluation.measured import Measured, measured_of
from ..evaluation.verdicts import Allowed, with_allowed
from ..release import Manifest, Sample
from ..release.tables import read_table
from ..runs import Run
from ..storage import Store
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


def side_of_release(store: Store, manifest: Manifest) -> Side:
    """Return a release as gates see it."""
    rows = measured_of(read_table(store, manifest, "measures")) if "measures" in manifest.files else []
    counts = {name: float(value) for name, value in manifest.counts.items() if name == "items"}
    return side_of({**counts, **manifest.measures}, rows, manifest.model_id)


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


def checked_allowed(gates: Sequence[str] | None, reason: str | None, known: Sequence[str]) -> Allowed | None:
    """Return what a command line allows, None for nothing.

    known: the names of the gates that there are. Raises ConfigError for another name, for a gate without a reason, and
    for a reason without a gate.
    """
    if not gates and reason is None:
        return None
    if not gates:
        raise ConfigError(f"--reason {reason!r} without --allow says nothing; name the gate with --allow GATE")
    if reason is None or not reason.strip():
        raise ConfigError(f"--allow {gates[0]} wants a reason, which others will read: add --reason TEXT")
    for gate in gates:
        if gate not in known:
            near = get_close_matches(gate, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
            raise ConfigError(f"--allow {gate!r} names no gate; {hint}")
    return Allowed(tuple(dict.fromkeys(gates)), reason.strip())


def allowed_in_run(run: Run, attempt: int, asked: Allowed | None) -> tuple[Allowed, ...]:
    """Return what this and earlier attempts of a run were told to let pass, the newest last.

    It belongs to the run and lies in its folder, so that a retry need not say it again; a retry may add to it.
    """
    folder = f"{run.folder}allowed/"
    if asked is not None:
        run.freeze(f"allowed/{attempt:06d}.json", json.dumps(asdict(asked)).encode())
    found = (json.loads(run.store.get(entry.name)) for entry in sorted(run.store.list(folder), key=lambda e: e.name))
    return tuple(Allowed(tuple(each["gates"]), each["reason"]) for each in found)

"""What the gates say of a release before it is written, and of one before it is promoted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ..evaluation import GatesConfig, GateVerdict, check_gates
from ..evaluation.defaults import nightly_defaults
from ..evaluation.judging import Side, judge, side_of
from ..evaluation.margins import share_of
from ..evaluation.measured import Measured, measured_of
from ..evaluation.verdicts import Allowed, with_allowed
from ..release import Manifest, Sample
from ..release.tables import read_table
from ..storage import Store
from ..tables import SID_MOVES

_EXAMPLES = 20
_HOW_MANY = ("items", "removed_share")  # say nothing of a sample


@dataclass(frozen=True, slots=True)
class Tonight:
    """What a release is found to be. measures: flat, by name; measured: the same and more, with intervals and examples.
    sample: which sample of its catalogue it is of, None for all of it."""

    measures: Mapping[str, float]
    measured: Sequence[Measured]
    model_id: str
    sample: Sample | None = None


def gates_of(gates: GatesConfig, sample: Sample | None) -> GatesConfig:
    """Return the limits for a release; those on how many items there are say nothing of a sample."""
    return gates if sample is None else gates.model_copy(update={"min_items": None, "max_removed": None})


def verdicts_on(
    tonight: Tonight, parent: Side | None, gates: GatesConfig, allowed: Iterable[Allowed] = ()
) -> tuple[GateVerdict, ...]:
    """Return the verdict of every gate; that no published semantic ID moves is no matter of limits.

    Raises InputError as `check_gates`, ConfigError when what is allowed is no gate.
    """
    limits = gates_of(gates, tonight.sample)
    now = side_of(tonight.measures, tonight.measured, tonight.model_id)
    examples = {one.name: tuple(one.examples) for one in now.measured if one.category is None}
    verdicts = check_gates(tonight.measures, limits, examples)
    verdicts += judge(limits, now, parent, defaults=nightly_defaults(limits))
    if SID_MOVES in tonight.measures:
        moved = tonight.measures[SID_MOVES]
        verdicts.append(GateVerdict(SID_MOVES, moved, 0.0, passed=moved == 0))
    return with_allowed(verdicts, allowed)


def side_of_release(store: Store, manifest: Manifest | None) -> Side | None:
    """Return a release as gates see it; None for no release."""
    if manifest is None:
        return None
    rows = measured_of(read_table(store, manifest, "measures")) if "measures" in manifest.files else []
    counts = {name: float(value) for name, value in manifest.counts.items() if name == "items"}
    return side_of({**counts, **manifest.measures}, rows, manifest.model_id)


def counted_shares(
    counts: Mapping[str, int], quarantine: pa.Table, changes: pa.Table, reassigned: Sequence[str] | None
) -> list[Measured]:
    """Return the shares that gates look at with how many photos each is of, its interval and examples.

    counts: of `examining.count`; quarantine, changes: the release's tables; reassigned: as `reassigned_photos`.
    """
    unused = counts["refused"] - counts["held"]
    asked = max(1, unused + counts["photos"])
    gone = changes.filter(pc.equal(changes["change"], "removed"))
    broken = quarantine.filter(pc.equal(quarantine["reason"], "not_finite"))
    found = [
        share_of("quarantine_share", unused, asked, examples=_first(quarantine)),
        share_of("not_finite_share", counts["not_finite"], asked, examples=_first(broken)),
    ]
    if counts["parent_photos"]:
        found.append(share_of("removed_share", counts["removed"], counts["parent_photos"], examples=_first(gone)))
    if reassigned is not None:
        found.append(share_of("reassigned_share", len(reassigned), counts["photos"], examples=reassigned[:_EXAMPLES]))
    return found


def reassigned_photos(store: Store, items: pa.Table, changes: pa.Table, parent: Manifest | None) -> list[str] | None:
    """Return the items, one for each photo, that were there already and now have a photo which was another item's.

    Such a photo is told by the digest of its bytes; a few are merged products, many are keys given to other products.
    None without a parent.
    """
    if parent is None:
        return None
    altered = changes.filter(pc.is_in(changes["change"], value_set=pa.array(["added", "changed"])))
    now = items.select(["item_id", "uri", "digest"]).filter(
        pc.is_in(items["item_id"], value_set=pc.unique(altered["item_id"]))
    )
    if not now.num_rows:
        return []
    before = read_table(store, parent, "items", columns=["item_id", "digest"])
    now = now.filter(pc.is_in(now["item_id"], value_set=before["item_id"]))
    now = now.filter(pc.is_in(now["digest"], value_set=before["digest"]))
    own = pc.is_in(_pairs(now), value_set=_pairs(before))
    return [str(item) for item in now.filter(pc.invert(own))["item_id"].to_pylist()]


def _pairs(table: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(table["digest"], table["item_id"], "\n")


def _first(table: pa.Table) -> tuple[str, ...]:
    return tuple(str(item) for item in table["item_id"].slice(0, _EXAMPLES).to_pylist())

"""What a release is found to be before it is written: its tables, its counts and what its gates look at."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ..catalogue import named_in
from ..encoding import NOT_FINITE
from ..errors import GateRefused, InputError, IntegrityError
from ..evaluation import GatesConfig, GateVerdict
from ..evaluation.nightly.lines import Nightly
from ..index import BuiltIndex, LatentArrays
from ..models import bundle_files
from ..ordering import ranks, run_starts, take_rows
from ..parts import PartFile
from ..planning import Plan
from ..release import FileEntry, Manifest
from ..schema import quarantine_schema
from ..storage import Store
from ..tables import FurtherTables


@dataclass(frozen=True, slots=True)
class Findings:
    """What a release is found to be before it is written: its tables, latents, index, measures and verdicts.

    latents: one row a row of items, in their order. counts, measures: by name. nightly: the measures with categories
    and examples. further: its tables beside these.
    """

    items: pa.Table
    quarantine: pa.Table
    changes: pa.Table
    latents: LatentArrays
    built: BuiltIndex
    counts: dict[str, int]
    measures: dict[str, float]
    nightly: Nightly
    verdicts: tuple[GateVerdict, ...]
    further: FurtherTables


def model_files(store: Store, model_id: str, parent: Manifest | None) -> dict[str, FileEntry]:
    """Return the manifest's entries of the bundle's files; a parent of the same model must list the same bytes."""
    found = bundle_files(store, model_id)
    if parent is None or parent.model_id != model_id:
        return found
    for now, entry in ((found["encoder"], parent.encoder), (found["bundle_config"], parent.bundle_config)):
        if entry is not None and now != entry:
            raise IntegrityError(
                f"{entry.name} on {store.url} has {now.bytes:,} bytes and the sha256 {now.sha256}, the parent release "
                f"says {entry.bytes:,} bytes and {entry.sha256}: it was changed after it was written; restore it, or "
                "train another model (train.seed)"
            )
    return found


def check_encoded(items: pa.Table, refused: pa.Table, gates: GatesConfig, *, allowed: Container[str] = ()) -> None:
    """Refuse what no release can be made of, before an index is built for it.

    items: the living photos; refused: the others, with their reasons; allowed: gates that a person lets pass. Raises
    GateRefused when the model gives more photos no finite latents than `gates.max_not_finite` allows, InputError when
    no photo is left.
    """
    photos, broken = items.num_rows + refused.num_rows, _not_finite(refused)
    over = gates.max_not_finite is not None and broken > gates.max_not_finite * photos
    if over and "max_not_finite" not in allowed:
        raise GateRefused(
            f"the model gives {broken:,} of {photos:,} photos latents that are not finite numbers, and "
            f"gates.max_not_finite is {gates.max_not_finite:g}: the model is broken, not the photos. Train again with "
            "a smaller train.learning_rate; the channel stays as it is. Where it is right all the same: the same "
            "command with --allow max_not_finite --reason TEXT"
        )
    if not items.num_rows:
        reasons = {entry["values"]: entry["counts"] for entry in pc.value_counts(refused["reason"]).to_pylist()}
        first = refused.slice(0, 3).select(["item_id", "uri", "reason", "detail"]).to_pylist()
        raise InputError(f"none of {photos:,} photos can be used: {reasons}; the first: {first}")


def _not_finite(refused: pa.Table) -> int:
    return int(pc.sum(pc.equal(refused["reason"], NOT_FINITE)).as_py() or 0)


def named_parts(items: pa.Table, known: dict[str, PartFile]) -> tuple[PartFile, ...]:
    """Return the latents parts that items names, in name order."""
    names = ranks(items["latents_part"])[1]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise IntegrityError(f"items names {len(unknown)} parts that nobody wrote, first {unknown[0]!r}; report this")
    return tuple(known[name] for name in names)


def with_first_seen(refused: pa.Table, parent: pa.Table | None, run: str) -> pa.Table:
    """Return the quarantine table: the run that first refused each photo is kept while it is refused."""
    if parent is not None and parent.num_rows:
        seen = parent.select(["item_id", "uri", "first_seen"])
        refused = refused.join(seen, keys=["item_id", "uri"], join_type="left outer")
        first = pc.fill_null(refused["first_seen"], run)
        refused = refused.drop_columns(["first_seen"]).append_column("first_seen", first)
    else:
        refused = refused.append_column("first_seen", pa.repeat(pa.scalar(run), refused.num_rows))
    schema = quarantine_schema()
    order = pc.sort_indices(refused, [("item_id", "ascending"), ("uri", "ascending")])
    return take_rows(refused.select(schema.names), order).combine_chunks().cast(schema)


def count(items: pa.Table, quarantine: pa.Table, changes: pa.Table, plan: Plan) -> dict[str, int]:
    """Return a release's counts: photos, items, refused and photos by change.

    held: refused and living, see `catalogue.compare`; not_finite: refused since the model gives no finite latents.
    """
    by_change = {entry["values"]: entry["counts"] for entry in pc.value_counts(changes["change"]).to_pylist()}
    return {
        "photos": items.num_rows,
        "items": int(run_starts(items["item_id"]).sum()),
        "refused": quarantine.num_rows,
        "held": int(named_in(quarantine, items).sum()),
        "not_finite": _not_finite(quarantine),
        "parent_photos": plan.summary.counts["parent_photos"],
        **{name: by_change.get(name, 0) for name in ("added", "changed", "removed", "relabelled", "quarantined")},
    }


def refused_by_reason(quarantine: pa.Table) -> dict[tuple[str, str], int]:
    """Return how many photos were refused by (stage, reason)."""
    counted = quarantine.group_by(["stage", "reason"]).aggregate([([], "count_all")]).to_pylist()
    return {(row["stage"], row["reason"]): row["count_all"] for row in counted}


def measure(built: BuiltIndex, counts: dict[str, int]) -> dict[str, float]:
    """Return what follows from counts and from the index alone, by name; shares are of all photos asked for."""
    unused = counts["refused"] - counts["held"]
    asked = max(1, unused + counts["photos"])
    return {
        "recall": built.recall,
        "quarantine_share": unused / asked,
        "not_finite_share": counts["not_finite"] / asked,
        "removed_share": counts["removed"] / max(1, counts["parent_photos"]),
        "items": float(counts["items"]),
    }

"""What changed since the other release, with examples; photos in quarantine; the plan for tomorrow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...catalogue.difference import named_in
from ...ordering import take_rows
from ...refusals import KEPT, REASONS
from ...report.night import Card, ChangeGroup, Refusals, Task
from .sides import Side
from .subject import Subject, sampled

SORTS = ("added", "changed", "relabelled", "removed", "quarantined")
RETURNED = "returned"  # lives now, and the other release had it in quarantine
_SHOWN = 6
_REFUSED = 3


def change_groups(subject: Subject) -> list[ChangeGroup]:
    """Return every sort of change with its counts and a few seeded examples."""
    found = []
    for stream, name in enumerate((*SORTS, RETURNED)):
        table = returned(subject) if name == RETURNED else changed(subject, name)
        items = pc.unique(table["item_id"].combine_chunks()).sort()
        chosen = [items[place].as_py() for place in sampled(subject.draw(1, stream), len(items), _SHOWN)]
        # What is gone is shown as the other release had it.
        sides = subject.sides if name not in ("removed", "quarantined") else subject.sides[::-1]
        cards = subject.album.named(sides, chosen, subject.category)
        if name == "quarantined":
            cards = _refused_cards(subject.told.quarantine, cards)
        found.append(ChangeGroup(name, table.num_rows, len(items), cards))
    return found


def changed(subject: Subject, name: str) -> pa.Table:
    """Return the photos of one sort of change."""
    return subject.changes.filter(pc.equal(subject.changes["change"], name))


def returned(subject: Subject) -> pa.Table:
    """Return item_id and uri of the photos that live and were in the other release's quarantine."""
    keys = ["item_id", "uri"]
    if subject.told_before is None:
        return subject.changes.select(keys).slice(0, 0)
    added = changed(subject, "added").select(keys)
    return added.filter(pa.array(named_in(added, subject.told_before.quarantine)))


def _refused_cards(quarantine: pa.Table, cards: Sequence[Card]) -> list[Card]:
    """Return cards whose words are why a photo of theirs was refused."""
    why: dict[str, str] = {}
    rows = quarantine.filter(
        pc.is_in(quarantine["item_id"], value_set=pa.array([card.item_id for card in cards], pa.string()))
    )
    for row in rows.to_pylist():
        why.setdefault(row["item_id"], row["reason"])
    return [Card(card.item_id, why.get(card.item_id, card.words), card.pixels) for card in cards]


def refusals(subject: Subject) -> list[Refusals]:
    """Return the photos in quarantine by stage and reason, the most frequent first."""
    quarantine = subject.told.quarantine
    known = None if subject.told_before is None else subject.told_before.quarantine
    counted = quarantine.group_by(["stage", "reason"]).aggregate([([], "count_all")]).to_pylist()
    found: list[Refusals] = []
    for entry in sorted(counted, key=lambda entry: (-entry["count_all"], entry["stage"], entry["reason"])):
        same = pc.and_(pc.equal(quarantine["stage"], entry["stage"]), pc.equal(quarantine["reason"], entry["reason"]))
        rows = quarantine.filter(same)
        chosen = take_rows(rows, np.array(sampled(subject.draw(2, len(found)), rows.num_rows, _REFUSED), np.int64))
        examples = [(_last_seen(subject, row["item_id"], row["uri"]), row["detail"]) for row in chosen.to_pylist()]
        new = rows.num_rows if known is None else int((~named_in(rows, known)).sum())
        reason = REASONS.get(entry["reason"])
        means = "" if reason is None else reason.means
        found.append(Refusals(entry["stage"], entry["reason"], means, entry["count_all"], new, examples))
    return found


def _last_seen(subject: Subject, item_id: str, uri: str) -> Card:
    """Return a refused photo as the other release had it, where it lived there."""
    before = subject.before
    number = None if before is None else before.number(item_id)
    if before is None or number is None:
        return Card(item_id, uri)
    rows = before.lookup(before.items.rows_of(number), ("item_id", "uri", "pixels_part", "pixels_row"))
    own = rows.filter(pc.equal(rows["uri"], uri))
    return Card(item_id, uri, subject.album.read(own)[0] if own.num_rows else None)


def tomorrow(subject: Subject) -> list[Task]:
    """Return what the next night does with the photos that this one could not use."""
    reasons = subject.told.quarantine["reason"]
    kept = pa.array(sorted(KEPT))
    waiting = int(pc.sum(pc.is_in(reasons, value_set=kept)).as_py() or 0)
    asked = len(reasons) - waiting
    held = subject.told.counts.get("held", 0)
    return [
        Task("asked for again", asked, "photos in quarantine for a reason that may pass, whatever their version"),
        Task("held", held, "photos that did not answer tonight and stay as they were; they are asked for again"),
        Task("not asked for again", waiting, "photos whose file itself is at fault, until the file is another"),
        Task("compared", None, _standing(subject.now)),
    ]


def _standing(side: Side) -> str:
    return (
        f"the catalogue is compared with this release, its {side.items.num_rows:,} photos of {len(side.items):,} items "
        "are taken over where they are unchanged"
    )

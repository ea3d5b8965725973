"""Why an item has the neighbours it has: photos that decided, latents that counted, and what another release says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from ..errors import ConfigError, UnknownItem
from ..index.latents import LatentArrays
from ..index.opened import OpenedRelease, StoredPhoto
from ..index.sids import SemanticId
from ..index.terms import latent_terms
from ..release.absent import Refusal

_LATENTS = 5  # latents named of a pair


@dataclass(frozen=True, slots=True)
class LatentTerm:
    """A latent by its number, and what it contributes to a score."""

    latent: int
    term: float


@dataclass(frozen=True, slots=True)
class Near:
    """A neighbour in one release. rank: from 1; score: of the deciding pair, `photo` of the item and `other` of the
    neighbour. latents: the largest terms of that score, `rest` the sum of all others; empty and None for a metric that
    is no sum over latents."""

    item_id: str
    rank: int
    score: float
    photo: StoredPhoto
    other: StoredPhoto
    latents: tuple[LatentTerm, ...] = ()
    rest: float | None = None


@dataclass(frozen=True, slots=True)
class Beside:
    """A neighbour of one release or both. now, before: None where it is none of the k nearest there.

    why: of one that is new or gone, whether the other release holds it at all.
    """

    item_id: str
    status: Literal["kept", "new", "gone"]
    now: Near | None
    before: Near | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Explained:
    """All that is told of an item. against: the other release, None where there is none; note: what to know of it.

    neighbours: those of tonight by rank, then those that are gone; all are `new` and say nothing where there is no
    other release. sid: None in a release without semantic IDs. refused: newest first.
    """

    item_id: str
    release: str
    against: str | None
    note: str
    metric: str
    attributes: Mapping[str, Any]
    photos: tuple[StoredPhoto, ...]
    neighbours: tuple[Beside, ...]
    sid: SemanticId | None
    refused: tuple[Refusal, ...]

    def details(self) -> dict[str, Any]:
        """Return all of it as plain values for JSON."""
        found = asdict(self)
        if self.sid is not None:
            found["sid"]["token"] = self.sid.token
        return found


def explain(
    now: OpenedRelease, item_id: str, before: OpenedRelease | None = None, *, k: int = 10, absent: str = ""
) -> Explained:
    """Return what two releases say of an item; before: the other release, absent: why there is none.

    Scores are of the metric of their release. Raises UnknownItem, which says why `now` does not hold the item, and
    ConfigError for a k below 1. A `before` that does not hold the item is no error: the note says why.
    """
    if k < 1:
        raise ConfigError(f"k is {k}; ask for at least 1 neighbour")
    item = now.find(item_id)
    key = now.items.item_id(item)
    near, note, old = _nearest(now, item, k), absent, dict[str, Near]()
    compared = before is not None
    if before is not None:
        try:
            old = _nearest(before, before.find(key), k)
            note = _differing(now, before)
        except UnknownItem as error:
            note, compared = f"{before.manifest.release_id} has no neighbours to compare with: {error}", False
    return Explained(
        item_id=key,
        release=now.manifest.release_id,
        against=before.manifest.release_id if before is not None else None,
        note=note,
        metric=now.manifest.metric,
        attributes=now.items.attributes_of(item),
        photos=tuple(now.photos(key)),
        neighbours=_beside(near, old, now, before if compared else None),
        sid=now.sids().of(item) if "semantic_ids" in now.manifest.files else None,
        refused=tuple(now.refusals(key)),
    )


def _differing(now: OpenedRelease, before: OpenedRelease) -> str:
    """Return what keeps the scores of two releases from being compared, "" where nothing does."""
    told = []
    if now.manifest.model_id != before.manifest.model_id:
        told.append("another model made its latents")
    if now.manifest.metric != before.manifest.metric:
        told.append(f"its metric is {before.manifest.metric}")
    if not told:
        return ""
    return f"scores of {before.manifest.release_id} do not compare with tonight's: {' and '.join(told)}"


def _nearest(opened: OpenedRelease, item: int, k: int) -> dict[str, Near]:
    """Return the k neighbours of an item by item_id, nearest first, with the pair of photos that decided each."""
    queries = opened.vectors([item])
    (answer,) = opened.answers(queries, np.zeros(len(queries), np.int64), k, None, [item])
    own = opened.photos(opened.items.item_id(item))
    found = {}
    for rank, (number, score) in enumerate(zip(answer.groups.tolist(), answer.scores.tolist(), strict=True), 1):
        key = opened.items.item_id(number)
        found[key] = _decided(opened, queries, own, number, Near(key, rank, score, own[0], own[0]))
    return found


def _decided(opened: OpenedRelease, queries: LatentArrays, own: Sequence[StoredPhoto], number: int, near: Near) -> Near:
    """Return a neighbour with its best pair of photos, the first of several, and that pair's latents."""
    theirs = opened.vectors([number])
    metric = opened.index.metric
    scores = metric.exact(queries, theirs)
    left, right = (int(place) for place in np.unravel_index(int(np.argmax(scores)), scores.shape))
    score, others = float(scores[left, right]), opened.photos(near.item_id)
    pair = Near(near.item_id, near.rank, score, own[left], others[right])
    terms = latent_terms(metric, queries.take([left]), theirs.take([right]))
    if terms is None:
        return pair
    largest = np.argsort(-np.abs(terms), kind="stable")[:_LATENTS]
    named = tuple(LatentTerm(int(latent), float(terms[latent])) for latent in largest)
    rest = float(np.delete(terms, largest).sum())
    return Near(near.item_id, near.rank, score, pair.photo, pair.other, named, rest)


def _beside(
    near: Mapping[str, Near], old: Mapping[str, Near], now: OpenedRelease, before: OpenedRelease | None
) -> tuple[Beside, ...]:
    lines = []
    for key, one in near.items():
        if key in old:
            lines.append(Beside(key, "kept", one, old[key]))
        else:
            lines.append(Beside(key, "new", one, None, _whether(before, key, "it was there, further away")))
    gone = [key for key in old if key not in near]
    lines += [Beside(key, "gone", None, old[key], _whether(now, key, "it is here, further away")) for key in gone]
    return tuple(lines)


def _whether(other: OpenedRelease | None, key: str, held: str) -> str:
    if other is None:
        return ""
    return held if other.holds(key) else f"{other.manifest.release_id} does not hold it"


def explained_text(found: Explained) -> str:
    """Return an explanation as lines for people."""
    lines = [f"{found.item_id} in {found.release}" + (f", beside {found.against}" if found.against else "")]
    lines += [f"  {name}: {value}" for name, value in found.attributes.items() if value is not None]
    if found.sid is not None:
        lines.append(f"  semantic ID {found.sid.token} of epoch {found.sid.epoch}")
    lines += [f"  photo {photo.view}: {photo.uri}, token {photo.token}, {kept_text(photo)}" for photo in found.photos]
    lines.append(f"neighbours by {found.metric}, larger is nearer; of each the pair of photos that decided")
    if found.note:
        lines.append(f"  {found.note}")
    for line in found.neighbours:
        lines += _neighbour_lines(line, compared=found.against is not None)
    if not found.neighbours:
        lines.append("  none")
    lines.append("in quarantine: " + ("never, as far back as releases are kept" if not found.refused else ""))
    lines += [f"  {row.release}: {row.uri}: {row.stage}, {row.reason} ({row.detail})" for row in found.refused]
    return "\n".join(line.rstrip() for line in lines)


def kept_text(photo: StoredPhoto) -> str:
    """Return where a photo's pixels are kept, in words."""
    if photo.pixels_part is None:
        return "pixels not kept"
    return f"pixels in row {photo.pixels_row} of {photo.pixels_part}"


def latents_text(near: Near) -> str:
    """Return the terms of a pair's score as one line, "" where the metric has none."""
    if near.rest is None:
        return ""
    named = ", ".join(f"{term.latent}: {term.term:+.4f}" for term in near.latents)
    return f"latents {named}; all others {near.rest:+.4f}"


def _neighbour_lines(line: Beside, *, compared: bool) -> list[str]:
    near = line.now or line.before
    if near is None:  # a line stands for one of the two
        return []
    places = " ".join(
        f"{name} {'-' if at is None else f'#{at.rank} {at.score:.4f}'}"
        for name, at in (("tonight", line.now), ("before", line.before))
    )
    heading = f"{line.status:<5} {line.item_id}  {places}" if compared else f"{line.item_id}  #{near.rank}"
    heading += "" if compared else f" {near.score:.4f}"
    told = [f"  {heading}" + (f"  ({line.why})" if line.why else "")]
    told.append(f"        {near.photo.uri} and {near.other.uri}")
    return [*told, *(f"        {text}" for text in (latents_text(near),) if text)]

"""From a release and the one beside it to all that a report says, each section from a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from ...errors import CodebooksError, NotReconstructing
from ...models.reconstruct import reconstruct
from ...report.night import Card, MeasureLine, NightReport, Stage, VerdictLine
from .atlas import code_levels
from .changes import change_groups, refusals, tomorrow
from .neighbours import neighbourhoods
from .plane import plane
from .shelves import shelves
from .sides import PLACES
from .subject import Subject, sampled
from .verdict import has_passed, measure_lines, sentence, verdict_lines

Section = TypeVar("Section")
_PAIRS = 8
_STAGES = ("plan", "ray", "pixels", "train", "encode", "compact", "index", "evaluate", "report", "publish")
_HUBS = ("hub", "k_occurrence")  # in the names of measures about how often items are neighbours of others


def night_report(subject: Subject) -> NightReport:
    """Return what a report says. A section that cannot be made takes nothing from the others; it is named with why."""
    left_out = list(subject.left_out)
    if subject.alone:
        left_out.append(("The other release", subject.alone))

    def made(name: str, make: Callable[[Subject], Section], otherwise: Section) -> Section:
        try:
            return make(subject)
        except CodebooksError as error:
            left_out.append((name, str(error)))
            return otherwise

    verdicts: list[VerdictLine] = made("Gates", verdict_lines, [])
    measures: list[MeasureLine] = made("Measures", measure_lines, [])
    report = NightReport(
        title=subject.title,
        sentence=sentence(verdicts),
        passed=has_passed(verdicts),
        beside=None if subject.before is None else subject.before.name,
        facts=subject.told.facts,
        verdicts=verdicts,
        changes=made("What changed", change_groups, []),
        measures=measures,
        neighbourhoods=made("Neighbours", neighbourhoods, []),
        reconstructions=made("Reconstructions", reconstructions, []),
        levels=made("Codebooks", code_levels, []),
        shelves=made("Semantic IDs", shelves, []),
        plane=made("Map", plane, None),
        hubs=hub_lines(measures),
        curves=subject.curves,
        training=subject.training,
        stages=stages(subject),
        price=subject.price,
        refused=made("Quarantine", refusals, []),
        tomorrow=tomorrow(subject),
    )
    return replace(report, left_out=left_out)


def hub_lines(measures: Sequence[MeasureLine]) -> list[MeasureLine]:
    """Return the measures about hubs whose examples no earlier one shows."""
    found: list[MeasureLine] = []
    for line in measures:
        about = line.category is None and line.examples and any(word in line.name for word in _HUBS)
        if about and _ids(line) not in map(_ids, found):
            found.append(line)
    return found


def _ids(line: MeasureLine) -> list[str]:
    return [card.item_id for card in line.examples]


def reconstructions(subject: Subject) -> list[tuple[Card, Card]]:
    """Return (original, what the decoder makes of it) of some items; raises NotReconstructing without a decoder."""
    bundle, now = subject.bundle, subject.now
    if bundle is None:
        return []
    shown = now.shown()
    numbers = [int(shown[place]) for place in sampled(subject.draw(6), len(shown), _PAIRS)]
    read = subject.whole_album.read(now.lookup(now.first_rows(numbers), PLACES))
    pairs = [(number, pixels) for number, pixels in zip(numbers, read, strict=True) if pixels is not None]
    if not pairs:
        raise NotReconstructing("the pixels of no photo are kept any more, so there is nothing to decode beside")
    told = None if not bundle.labels else [now.attribute(number, subject.category) or None for number, _ in pairs]
    made = reconstruct(bundle.model, np.stack([pixels for _, pixels in pairs]), told)
    found = []
    for (number, pixels), drawn in zip(pairs, made, strict=True):
        error = float(np.mean((pixels.astype(np.float64) - drawn) ** 2)) / 255**2
        name = now.items.item_id(number)
        found.append((Card(name, "original", pixels), Card(name, f"decoded, mean squared error {error:.4f}", drawn)))
    return found


def stages(subject: Subject) -> list[Stage]:
    """Return the seconds of the run's stages, in their order, and what they cost at the given price."""
    price = subject.price

    def cost(seconds: float) -> float | None:
        return None if price is None else seconds / 3600 * price

    names = [*(name for name in _STAGES if name in subject.seconds), *sorted(set(subject.seconds) - set(_STAGES))]
    seconds = {name: subject.seconds[name] for name in names}
    return [Stage(name, took, subject.photos_per_s.get(name), cost(took)) for name, took in seconds.items()]

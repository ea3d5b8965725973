"""What the report of a release says, section by section, as plain values; a picture is pixels until it is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .trends import Curve

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Card:
    """An item or a photo. words: a line below its name; pixels: uint8 RGB [h, w, 3], None where none are kept.

    mark: what sets it apart among the others: the same category as the query, or a neighbour that the other release
    has not among its own.
    """

    item_id: str
    words: str = ""
    pixels: Pixels | None = None
    same: bool | None = None
    mark: Literal["", "new", "gone"] = ""


@dataclass(frozen=True, slots=True)
class VerdictLine:
    """A gate's verdict. limit: None where it is off; parent, margin: where the limit is relative to the parent's value;
    allowed: why it was let pass this once, None where it was not; note: what else there is to know of it."""

    check: str
    category: str | None
    value: float | None
    limit: float | None
    parent: float | None
    margin: float | None
    passed: bool
    allowed: str | None = None
    note: str | None = None
    examples: Sequence[Card] = ()


@dataclass(frozen=True, slots=True)
class MeasureLine:
    """A measure of the whole catalogue or of a category. low, high: of its interval; before: of the other release."""

    name: str
    category: str | None
    value: float
    low: float | None
    high: float | None
    before: float | None
    n: int | None
    examples: Sequence[Card] = ()


@dataclass(frozen=True, slots=True)
class ChangeGroup:
    """What became of some photos since the other release. items: how many items they are of."""

    name: str
    photos: int
    items: int
    cards: Sequence[Card] = ()


@dataclass(frozen=True, slots=True)
class Compared:
    """An item's neighbours, nearest first, beside those of the other release; before: None where that has it not."""

    query: Card
    now: Sequence[Card]
    before: Sequence[Card] | None
    words: str = ""

    @property
    def alike(self) -> bool:
        """Whether both releases name the same neighbours in the same order."""
        return self.before is not None and [card.item_id for card in self.now] == [card.item_id for card in self.before]


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """Some items and their neighbours. about: how these items were chosen."""

    title: str
    about: str
    rows: Sequence[Compared]


@dataclass(frozen=True, slots=True)
class CodeCard:
    """A code of a codebook. share: of all cells seen that hold it; photos: share of the photos that have it; leans: the
    category that it is most particular to, and how many times as often it is there as in all; decoded: what the decoder
    draws of it; cells: pieces of photos that hold it, put together."""

    code: int
    share: float
    photos: float
    leans: str | None = None
    times: float | None = None
    decoded: Pixels | None = None
    cells: Pixels | None = None


@dataclass(frozen=True, slots=True)
class CodeLevel:
    """A codebook, as some photos use it. shares: of each code that is used, the largest first; groups: (title, codes).

    perplexity: 2 to the entropy of the shares: how many codes would be used as much if all were used alike.
    """

    name: str
    size: int
    used: int
    perplexity: float
    photos: int
    shares: Sequence[float]
    groups: Sequence[tuple[str, Sequence[CodeCard]]]


@dataclass(frozen=True, slots=True)
class PictureShelf:
    """The items whose semantic IDs begin alike. words: what they are, by category."""

    prefix: str
    items: int
    words: str
    cards: Sequence[Card]


@dataclass(frozen=True, slots=True)
class Dot:
    """An item on the map, x and y in 0..1, y downwards; stop: whether the keyboard stops at it."""

    item_id: str
    category: str
    x: float
    y: float
    stop: bool
    pixels: Pixels | None = None


@dataclass(frozen=True, slots=True)
class Plane:
    """The catalogue in two dimensions. explained: share of the latents' variance that these hold; of: how many items
    the dots are drawn from."""

    dots: Sequence[Dot]
    explained: float
    of: int


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the run. cost: at the price of an hour that was given, None without one."""

    name: str
    seconds: float
    photos_per_s: float | None = None
    cost: float | None = None


@dataclass(frozen=True, slots=True)
class Refusals:
    """Photos in quarantine for one reason. new: those that were not before; examples: a card and why it was refused."""

    stage: str
    reason: str
    means: str
    count: int
    new: int
    examples: Sequence[tuple[Card, str]]


@dataclass(frozen=True, slots=True)
class Task:
    """What the next night will do."""

    name: str
    count: int | None
    words: str


@dataclass(frozen=True, slots=True)
class NightReport:
    """All that the report of a release says; an empty section is left out, and `left_out` says of which why.

    sentence: the verdict in words; passed: None for a release without verdicts. beside: the other release. measures of
    the whole catalogue come before those of categories. curves, training: (a heading, curves). hours: the price of an
    hour that costs are counted by.
    """

    title: str
    sentence: str
    passed: bool | None
    beside: str | None
    facts: Sequence[tuple[str, str]] = ()
    verdicts: Sequence[VerdictLine] = ()
    changes: Sequence[ChangeGroup] = ()
    measures: Sequence[MeasureLine] = ()
    neighbourhoods: Sequence[Neighbourhood] = ()
    reconstructions: Sequence[tuple[Card, Card]] = ()
    levels: Sequence[CodeLevel] = ()
    shelves: Sequence[PictureShelf] = ()
    plane: Plane | None = None
    hubs: Sequence[MeasureLine] = ()
    curves: Sequence[Curve] = ()
    training: Sequence[Curve] = ()
    stages: Sequence[Stage] = ()
    price: float | None = None
    refused: Sequence[Refusals] = ()
    tomorrow: Sequence[Task] = ()
    left_out: Sequence[tuple[str, str]] = ()

    @property
    def allowed(self) -> int:
        """How many gates were let pass this once."""
        return sum(not line.passed and line.allowed is not None for line in self.verdicts)

    @property
    def curve_groups(self) -> tuple[list[Curve], list[Curve]]:
        """The curves that change: counts and what gates look at, and all others; ten where no gate is named."""
        moving = [curve for curve in self.curves if curve.moves]
        # `max_drop.photo_recall` looks at photo_recall, `max_quarantine` at quarantine_share.
        looked = tuple(line.check.rpartition(".")[2] for line in self.verdicts)
        stems = tuple(check.partition("_")[2] for check in looked if check.startswith(("min_", "max_")))
        first = [c for c in moving if c.name in looked or c.name.startswith(stems) or c.name.endswith("(count)")]
        if not self.verdicts:
            first = moving[:10]
        return first, [curve for curve in moving if curve not in first]

    @property
    def worst(self) -> list[tuple[str, Sequence[Card]]]:
        """The examples of measures of the whole catalogue, of those with the same ones together, hubs left out."""
        found: dict[tuple[str, ...], tuple[list[str], Sequence[Card]]] = {}
        shown = {_ids(line.examples) for line in self.hubs}
        for line in self.measures:
            if line.category is None and line.examples and _ids(line.examples) not in shown:
                found.setdefault(_ids(line.examples), ([], line.examples))[0].append(line.name)
        return [(", ".join(names), cards) for names, cards in found.values()]


def _ids(cards: Sequence[Card]) -> tuple[str, ...]:
    return tuple(card.item_id for card in cards)


def plain(value: Any) -> Any:
    """Return a report as plain values for JSON, the same without its pixels; numbers that are not finite are null."""
    if is_dataclass(value) and not isinstance(value, type):
        pairs = ((each.name, getattr(value, each.name)) for each in fields(value))
        return {name: plain(held) for name, held in pairs if name not in ("pixels", "decoded", "cells")}
    if isinstance(value, Mapping):
        return {str(name): plain(held) for name, held in value.items()}
    if isinstance(value, list | tuple):
        return [plain(held) for held in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value

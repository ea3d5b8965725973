"""What a report is made from: a release, the one beside it, and what is known of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ...evaluation.measured import Measured
from ...models import Bundle
from ...report.trends import Curve
from ...schema import QUARANTINE, VERDICTS
from ...storage import Store
from .sides import Album, Side


@dataclass(frozen=True, slots=True)
class Told:
    """What a release says of itself beside its items. facts: (name, value) for people; counts: by name.

    quarantine, verdicts: of the schemas of these names. ids: item_id and codes of the semantic IDs, None without any.
    """

    facts: Sequence[tuple[str, str]]
    counts: Mapping[str, int]
    measured: Sequence[Measured]
    verdicts: pa.Table = field(default_factory=VERDICTS.empty_table)
    quarantine: pa.Table = field(default_factory=QUARANTINE.empty_table)
    ids: pa.Table | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """A release and the one beside it.

    changes: of schema.CHANGES between the two; alone: why there is no other, "" where there is one. album: pixels
    for the page; whole_album: as large as the model sees them. category: the column by which items are told apart, None
    without one. seconds, photos_per_s: by stage of the run. allowed: by gate why a channel took the
    release all the same. price: of an hour.
    """

    title: str
    store: Store
    now: Side
    told: Told
    before: Side | None
    told_before: Told | None
    changes: pa.Table
    album: Album
    whole_album: Album
    alone: str = ""
    bundle: Bundle | None = None
    category: str | None = None
    seed: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    photos_per_s: Mapping[str, float] = field(default_factory=dict)
    allowed: Mapping[str, str] = field(default_factory=dict)
    price: float | None = None
    curves: Sequence[Curve] = ()
    training: Sequence[Curve] = ()
    left_out: Sequence[tuple[str, str]] = ()

    @property
    def sides(self) -> tuple[Side | None, Side | None]:
        """The two releases, the one that the report is about first."""
        return self.now, self.before

    def draw(self, *stream: int) -> np.random.Generator:
        """Return the generator of one section, so that no section changes another's examples."""
        return np.random.default_rng([self.seed, *stream])

    def values_before(self) -> dict[tuple[str, str | None], float]:
        """Return what the other release measured, by name and category."""
        found: Sequence[Measured] = () if self.told_before is None else self.told_before.measured
        return {(one.name, one.category): one.value for one in found}


def sampled(generator: np.random.Generator, count: int, most: int) -> list[int]:
    """Return up to `most` of 0..count - 1, drawn by the generator, in order."""
    chosen: Any = generator.choice(count, size=min(most, count), replace=False)
    return sorted(int(place) for place in chosen)

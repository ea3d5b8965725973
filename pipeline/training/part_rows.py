"""Which rows of which parts a training is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..keys import digest_of, key_of


@dataclass(frozen=True, slots=True)
class FeatureRows:
    """The latents part of a teacher (full name on the store) and which of its rows are photos' features, int32 [n]."""

    part: str
    rows: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class PartRows:
    """A part of pixels or latents (full name on the store) and which of its rows to take, int32 [n].

    Of pixels they are ascending. category: the condition row of each (`models.conditions.condition_of`), or None where
    none is known. held_out: whether each is for validation only; None: none is. features: where a teacher's features of
    the same photos lie, in the same order; None: there are none.
    """

    part: str
    rows: NDArray[np.int32]
    category: NDArray[np.int32] | None = None
    held_out: NDArray[np.bool_] | None = None
    features: FeatureRows | None = None

    @property
    def place(self) -> tuple[str, str]:
        """Return what parts are ordered by: their names; the features of one may lie in several others."""
        return self.part, "" if self.features is None else self.features.part

    def side(self, *, held_out: bool) -> PartRows:
        """Return the held-out rows alone, or the others alone, as rows that are not held out."""
        at = (np.zeros(len(self.rows), np.bool_) if self.held_out is None else self.held_out) == held_out
        return PartRows(
            self.part,
            self.rows[at],
            None if self.category is None else self.category[at],
            features=None if self.features is None else FeatureRows(self.features.part, self.features.rows[at]),
        )


def inputs_digest(parts: Sequence[PartRows]) -> str:
    """Return a digest of which rows of which parts are trained on, of their categories and of which are held out."""

    def text(values: NDArray[np.generic] | None, kind: str) -> str:
        return "" if values is None else digest_of(values.astype(kind).tobytes())

    def said(part: PartRows) -> list[str]:
        own = [part.part, text(part.rows, "<i4"), text(part.category, "<i4"), text(part.held_out, "u1")]
        return own if part.features is None else [*own, part.features.part, text(part.features.rows, "<i4")]

    return key_of([said(part) for part in parts])

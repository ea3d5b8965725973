"""Which rows of which parts a training is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..keys import digest_of, key_of


@dataclass(frozen=True, slots=True)
class PartRows:
    """A part of pixels or latents (full name on the store) and which of its rows to take, int32 [n].

    Of pixels they are ascending. category: the condition row of each (`models.conditions.condition_of`), or None where
    none is known. held_out: whether each is for validation only; None: none is.
    """

    part: str
    rows: NDArray[np.int32]
    category: NDArray[np.int32] | None = None
    held_out: NDArray[np.bool_] | None = None


def inputs_digest(parts: Sequence[PartRows]) -> str:
    """Return a digest of which rows of which parts are trained on, of their categories and of which are held out."""

    def text(values: NDArray[np.generic] | None, kind: str) -> str:
        return "" if values is None else digest_of(values.astype(kind).tobytes())

    return key_of(
        [[part.part, text(part.rows, "<i4"), text(part.category, "<i4"), text(part.held_out, "u1")] for part in parts]
    )

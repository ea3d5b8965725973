"""Photos that have pixels and no latents: which, and why, stands in the metadata of the latents part that lacks them.

A latents part of whose photos all have latents says nothing of it, so its bytes are as they always were.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

NOT_FINITE = "not_finite"
_KEY = b"unfit"
_STAGE = "encode"


@dataclass(frozen=True, slots=True)
class Unfit:
    """A photo without latents. pixels_row: its row in the pixels part; reason, detail: as in schema.REFUSAL."""

    pixels_row: int
    reason: str
    detail: str

    @property
    def refusal(self) -> dict[str, str]:
        """The photo's columns of schema.REFUSAL."""
        return {"stage": _STAGE, "reason": self.reason, "detail": self.detail}


def finite_rows(arrays: Sequence[npt.NDArray[np.float32] | None]) -> npt.NDArray[np.bool_]:
    """Return which rows are finite in all arrays, each [n, d] or None."""
    flags = [np.isfinite(values).all(axis=1) for values in arrays if values is not None]
    return np.asarray(np.logical_and.reduce(flags), np.bool_)


def not_finite(pixels_row: int) -> Unfit:
    """Return what is said of a photo to which the model gives no numbers."""
    return Unfit(
        pixels_row,
        NOT_FINITE,
        "the model's latents of this photo are not finite numbers; a photo of one colour or a training that diverged "
        "can do that: look at the photo, or train again with a smaller train.learning_rate",
    )


def with_unfit(latents: pa.Table, unfit: Sequence[Unfit]) -> pa.Table:
    """Return a latents table whose metadata names the photos that it lacks."""
    if not unfit:
        return without_unfit(latents)
    rows = [[one.pixels_row, one.reason, one.detail] for one in sorted(unfit, key=lambda one: one.pixels_row)]
    return latents.replace_schema_metadata({**(latents.schema.metadata or {}), _KEY: json.dumps(rows).encode()})


def without_unfit(latents: pa.Table) -> pa.Table:
    """Return a latents table whose metadata names no photos that it lacks."""
    kept = {name: value for name, value in (latents.schema.metadata or {}).items() if name != _KEY}
    return latents.replace_schema_metadata(kept)


def read_unfit(latents: pa.Schema) -> list[Unfit]:
    """Return the photos that a latents part lacks, by its schema, in the order of their pixels rows."""
    text = (latents.metadata or {}).get(_KEY)
    return [] if text is None else [Unfit(*one) for one in json.loads(text)]

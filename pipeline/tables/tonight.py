"""What the tables of a night's release are made from."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from ..index import LatentArrays, SearchIndex
from ..index.space import Space
from ..release import Manifest, Sample


@dataclass(frozen=True, slots=True)
class Night:
    """What a night has found. latents, index: of the rows of items; changes: against the parent; category: a column.

    space: the rotation that the latents have been through, None where they are in the model's own axes.
    """

    run: str
    model_id: str
    metric: str
    items: pa.Table
    latents: LatentArrays
    index: SearchIndex
    changes: pa.Table
    parent: Manifest | None
    category: str | None = None
    sample: Sample | None = None
    space: Space | None = None

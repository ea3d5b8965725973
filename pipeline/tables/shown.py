"""What an export holds of a release: the items that it shows, without those that are delisted."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..index.latents import Float32
from ..index.sids import SidTable
from ..release import Manifest


class Exported(Protocol):
    """What an export reads of an open release; `reader.Release` is one."""

    @property
    def manifest(self) -> Manifest: ...
    def item_ids(self) -> list[str]: ...
    def attributes(self, item_id: Any) -> dict[str, Any]: ...
    def sids(self) -> SidTable: ...
    def table(self, role: str) -> pa.Table: ...


def shown_vectors(release: Exported) -> pa.Table:
    """Return the table `vectors` of the items that the release shows, in the order of item_id."""
    table, shown = release.table("vectors"), release.item_ids()
    if len(shown) == table.num_rows:
        return table
    return table.filter(pc.is_in(table["item_id"], value_set=pa.array(shown, table.schema.field("item_id").type)))


def vector_matrix(table: pa.Table) -> Float32:
    """Return the vectors of a table `vectors`, float32 [items, d]."""
    column = table["vector"]
    flat = [chunk.flatten().to_numpy() for chunk in column.chunks]
    return np.concatenate([np.empty(0, np.float32), *flat]).reshape(-1, column.type.list_size)

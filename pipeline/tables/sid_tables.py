"""The tables of semantic IDs, both ways, in the order of the IDs; each of their files is made when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..index.latents import Rows
from ..index.vector_lists import as_lists
from ..ordering import take_column
from ..release import ReleaseFile
from ..release.tables import ranged_files
from ..schema import SEMANTIC_IDS, SID_ITEMS, table_schema
from .quantizer import Codes
from .slots import Given


@dataclass(frozen=True)
class SidTables:
    """What n items have. item_ids: text [n]; nearest uint16 [n, levels]; since: asked for rows of items, text; norms
    float32 [n], what the codes leave of the vectors; sizes: the codes of every level."""

    item_ids: pa.ChunkedArray
    given: Given
    nearest: Codes
    since: Callable[[Rows], pa.ChunkedArray]
    norms: np.ndarray
    sizes: tuple[int, ...]

    @cached_property
    def order(self) -> Rows:
        """The items in the order of their IDs, int64 [n]."""
        return np.lexsort([self.given.suffixes, *self.given.codes.T[::-1]])

    def shown(self) -> pa.Table:
        """Return item_id and codes of all."""
        kind = table_schema(SEMANTIC_IDS).field("codes").type
        names = ["item_id", "codes"]
        return pa.table([take_column(self.item_ids, self.order), as_lists(self.given.codes[self.order], kind)], names)

    def files(self) -> Iterator[ReleaseFile]:
        """Yield the files of the table `semantic_ids`."""
        return ranged_files(len(self.order), self.rows)

    def rows(self, start: int, stop: int) -> pa.Table:
        """Return some rows of the table `semantic_ids`."""
        order = self.order[start:stop]
        codes, suffixes = self.given.codes[order], self.given.suffixes[order]
        schema = table_schema(SEMANTIC_IDS)
        starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(np.int32)
        columns = {
            "item_id": take_column(self.item_ids, order),
            "codes": as_lists(codes, schema.field("codes").type),
            "suffix": pa.array(suffixes),
            "nearest_codes": as_lists(self.nearest[order], schema.field("nearest_codes").type),
            "since": self.since(order),
            "offset_codes": as_lists(codes.astype(np.int32) + starts, schema.field("offset_codes").type),
            "token": tokens(codes, suffixes),
            "residual_norm": pa.array(self.norms[order]),
        }
        return pa.table(columns, schema)

    def files_of_items(self) -> Iterator[ReleaseFile]:
        """Yield the files of the table `sid_items`: the items of each sequence of codes."""
        schema, codes = table_schema(SID_ITEMS), self.given.codes[self.order]
        starts = np.ones(len(codes), np.bool_)
        starts[1:] = (codes[1:] != codes[:-1]).any(axis=1)
        edges, different = np.append(np.flatnonzero(starts), len(codes)), codes[starts]

        def rows(start: int, stop: int) -> pa.Table:
            inside = edges[start : stop + 1]
            values = take_column(self.item_ids, self.order[inside[0] : inside[-1]]).combine_chunks()
            offsets = pa.array((inside - inside[0]).astype(np.int32))
            lists = pa.ListArray.from_arrays(offsets, values, type=schema.field("item_ids").type)
            return pa.table([as_lists(different[start:stop], schema.field("codes").type), lists], schema=schema)

        yield from ranged_files(len(different), rows)


def tokens(codes: Codes, suffixes: np.ndarray) -> pa.Array:
    """Return codes as text, one word a level and one for the suffix: `<a_12><b_3><c_9><d_0>`."""
    words = [
        pc.binary_join_element_wise(f"<{chr(ord('a') + number)}_", pc.cast(pa.array(column), pa.string()), ">", "")
        for number, column in enumerate([*codes.T, suffixes])
    ]
    return pc.binary_join_element_wise(*words, "")

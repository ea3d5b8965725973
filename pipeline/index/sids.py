"""Semantic IDs as a reader asks for them: of an item, of all items behind a prefix, and whole for other tools."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import ConfigError, IntegrityError
from ..ordering import as_numpy
from .latents import Rows
from .vector_lists import list_rows

FACT = "semantic_ids"  # of a manifest's inputs: epoch, codebooks (sha256), levels
_READ = ["item_id", "codes", "suffix"]


@dataclass(frozen=True, slots=True)
class SemanticId:
    """An item's semantic ID. codes: one a level; suffix: tells items of the same codes apart; epoch: of the codebooks,
    codes of two epochs do not compare."""

    codes: tuple[int, ...]
    suffix: int
    epoch: int

    @property
    def words(self) -> list[str]:
        """The ID as words, one a level and one for the suffix: `<a_12>`, `<b_3>`, `<c_9>`, `<d_0>`."""
        return [f"<{chr(ord('a') + level)}_{code}>" for level, code in enumerate((*self.codes, self.suffix))]

    @property
    def token(self) -> str:
        """The words as one text: `<a_12><b_3><c_9><d_0>`."""
        return "".join(self.words)


class SidTable:
    """The semantic IDs of a release's items; immutable, safe to use from several threads and in forked children.

    Items are numbered in the order of item_id, as in `ItemTable`.
    """

    def __init__(self, paths: Iterable[str], facts: Mapping[str, Any], item_ids: Sequence[str]) -> None:
        """paths: of the files of `semantic_ids`; facts: what the manifest says of them; item_ids: of all items.

        Raises IntegrityError when the items are others.
        """
        files = [pq.read_table(pa.memory_map(path), columns=_READ) for path in paths]
        table = pa.concat_tables(files)
        self.sizes: tuple[int, ...] = tuple(facts["levels"])
        self.epoch = int(facts["epoch"])
        self.codes = list_rows(table["codes"], len(self.sizes))
        self.suffixes = table["suffix"].to_numpy()
        self._item_ids = pa.array(item_ids, table.schema.field("item_id").type)
        numbers = pc.index_in(table["item_id"], value_set=self._item_ids)
        self._items: Rows = as_numpy(numbers, missing=-1).astype(np.int64)
        self._rows = np.argsort(self._items, kind="stable")
        if not np.array_equal(self._items[self._rows], np.arange(len(item_ids))):
            raise IntegrityError(
                f"semantic_ids names {len(table):,} items, which are not the {len(item_ids):,} of the release; roll "
                "the channel back"
            )

    def of(self, item: int) -> SemanticId:
        """Return the semantic ID of an item, by its number."""
        row = int(self._rows[item])
        return SemanticId(tuple(self.codes[row].tolist()), int(self.suffixes[row]), self.epoch)

    def items(self, prefix: Sequence[int]) -> Rows:
        """Return the numbers of the items whose codes begin with a prefix, in the order of codes and suffix.

        Raises ConfigError for what is no prefix of codes.
        """
        low, high = 0, len(self.codes)
        for level, code in enumerate(self._checked(prefix)):
            column = self.codes[low:high, level]
            low, high = (low + int(np.searchsorted(column, code, side=side)) for side in ("left", "right"))
        return self._items[low:high]

    def numbers(self, item_ids: Sequence[str]) -> Rows:
        """Return the numbers of items. Raises ConfigError for one that has no semantic ID here."""
        found = pc.index_in(pa.array(item_ids, self._item_ids.type), value_set=self._item_ids)
        if found.null_count:
            unknown = item_ids[int(np.flatnonzero(found.is_null().to_numpy(zero_copy_only=False))[0])]
            raise ConfigError(f"item {unknown!r} has no semantic ID in this release; name items of `item_ids()`")
        return as_numpy(found).astype(np.int64)

    def matrix(self, items: Rows | None = None) -> np.ndarray:
        """Return codes as int64 [levels, items]; items: their numbers, or all in the order of item_id."""
        rows = self._rows if items is None else self._rows[items]
        return np.ascontiguousarray(self.codes[rows].T.astype(np.int64))

    def ordered(self, items: Rows | None = None) -> np.ndarray:
        """Return codes and suffix as int64 [items, levels + 1], rows ascending, no two the same; items: as above."""
        rows = np.arange(len(self.codes)) if items is None else np.sort(self._rows[items])
        return np.column_stack([self.codes[rows].astype(np.int64), self.suffixes[rows]])

    def words(self, item_ids: Sequence[str]) -> str:
        """Return JSON {item_id: [words of its levels and suffix]}, in the order of item_ids. Errors as `numbers`."""
        numbers = self.numbers(item_ids).tolist()
        found = {item_id: self.of(item).words for item_id, item in zip(item_ids, numbers, strict=True)}
        return json.dumps(found, ensure_ascii=False)

    def _checked(self, prefix: Any) -> list[int]:
        """Return a prefix as whole numbers."""
        wrong = isinstance(prefix, str | bytes) or not isinstance(prefix, Sequence | np.ndarray)
        codes = [] if wrong else list(prefix)
        if wrong or len(codes) > len(self.sizes):
            raise ConfigError(f"{prefix!r:.80} is no prefix of codes; give up to {len(self.sizes)} whole numbers")
        for level, (code, size) in enumerate(zip(codes, self.sizes, strict=False)):
            whole = isinstance(code, int | np.integer) and not isinstance(code, bool)
            if not whole or not 0 <= code < size:
                raise ConfigError(f"the code {code!r:.40} of level {level + 1} is not one of 0 to {size - 1}")
        return [int(code) for code in codes]

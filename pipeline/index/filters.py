"""The rows that a search may return."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .faiss_module import load_faiss
from .latents import Rows

FEW = 1 / 16  # below this share of allowed rows, only they are visited, one by one


class RowFilter:
    """The rows a search may return, as FAISS tests them; build one and use it for many searches.

    Held is what the selector points into: few rows as a list, many as a bitmap, never more than half a byte a row.
    """

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        """mask: bool [n], true where a row may be returned."""
        self.size = len(mask)
        self._count = int(np.count_nonzero(mask))
        few = self._count < self.size * FEW
        self._list: Rows | None = np.flatnonzero(mask) if few else None
        self._bits = np.empty(0, np.uint8) if few else np.packbits(mask, bitorder="little")

    @classmethod
    def of_rows(cls, rows: Rows, size: int) -> RowFilter:
        """Return the filter that allows these row numbers of an index of `size` rows."""
        mask = np.zeros(size, np.bool_)
        mask[rows] = True
        return cls(mask)

    def __len__(self) -> int:
        """Return the number of allowed rows."""
        return self._count

    @property
    def nbytes(self) -> int:
        """The memory that it holds."""
        return int(self._bits.nbytes if self._list is None else self._list.nbytes)

    def rows(self) -> Rows:
        """Return the allowed row numbers, int64, ascending."""
        if self._list is not None:
            return self._list
        return np.flatnonzero(np.unpackbits(self._bits, count=self.size, bitorder="little"))

    def selector(self) -> Any:
        """Return the FAISS selector; it points into this object's arrays."""
        faiss = load_faiss()
        return faiss.IDSelectorBitmap(self._bits) if self._list is None else faiss.IDSelectorArray(self._list)

"""Arrow columns of lists that all have one length, as matrices and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import IntegrityError


def list_rows(column: pa.ChunkedArray, width: int) -> NDArray[Any]:
    """Return a column of lists as a matrix [rows, width]. Raises IntegrityError where a list has another length."""
    values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks if len(chunk)]
    flat = np.concatenate(values) if values else np.empty(0, column.type.value_type.to_pandas_dtype())
    if len(flat) != len(column) * width:
        raise IntegrityError(f"{len(column):,} lists hold {len(flat):,} values, expected {width} each")
    return flat.reshape(len(column), width)


def as_lists(matrix: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """Return a matrix as lists of a type, one a row."""
    rows, width = matrix.shape
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * np.int32(width))
    return pa.ListArray.from_arrays(offsets, pa.array(matrix.reshape(-1)), type=kind)

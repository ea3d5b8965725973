"""Which rows of a table fit a `where`: equality, a list means any, {min, max}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import ConfigError

_BOUNDS = {"min": pc.greater_equal, "max": pc.less_equal}


def matching_rows(table: pa.Table, where: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Return bool [rows]: which rows fit every condition of `where`; nulls never fit.

    A condition is a value (equality), a list, tuple or set (any of them), or a dict of `min` and/or `max` (both
    inclusive). Raises ConfigError for an attribute that the table does not have, naming those it has, or a value that
    its type cannot be compared with.
    """
    mask = np.ones(table.num_rows, np.bool_)
    for name, condition in where.items():
        if name not in table.column_names:
            known = ", ".join(table.column_names) or "none"
            raise ConfigError(f"where: there is no attribute {name!r}; this release has: {known}")
        mask &= _fits(name, table.column(name), condition)
    return mask


def _fits(name: str, column: pa.ChunkedArray, condition: Any) -> NDArray[np.bool_]:
    try:
        if isinstance(condition, Mapping):
            fits = _between(name, column, condition)
        elif isinstance(condition, Sequence | set | frozenset) and not isinstance(condition, str | bytes):
            values = [_known(name, value) for value in condition]
            fits = pc.is_in(column, value_set=pa.array(values, column.type))
        else:
            fits = pc.equal(column, pa.scalar(_known(name, condition)))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, TypeError, OverflowError, UnicodeError) as error:
        raise ConfigError(
            f"where: attribute {name!r} is {column.type} and cannot be compared with {condition!r} ({error})"
        ) from error
    filled: NDArray[np.bool_] = pc.fill_null(fits, fill_value=False).to_numpy()
    return filled


def _between(name: str, column: pa.ChunkedArray, bounds: Mapping[Any, Any]) -> pa.ChunkedArray:
    if not bounds or set(bounds) - set(_BOUNDS):
        raise ConfigError(f"where: {name!r} has the bounds {dict(bounds)!r}; give `min`, `max` or both")
    fits = pc.is_valid(column)
    for side, limit in bounds.items():
        fits = pc.and_kleene(fits, _BOUNDS[side](column, pa.scalar(_known(name, limit))))
    return fits


def _known(name: str, value: Any) -> Any:
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
        raise ConfigError(f"where: {name!r} is asked to be {value!r}, which never matches; leave the condition out")
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, bytes):
        raise ConfigError(
            f"where: attribute {name!r} is compared with the bytes {value!r:.80}; decode them to text first"
        )
    plain = isinstance(value, np.generic) and not isinstance(value, np.datetime64 | np.timedelta64)
    return value.item() if plain else value

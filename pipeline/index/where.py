"""Which rows of a table fit a `where`: equality, a list means any, {min, max}."""

from __future__ import annotations

import datetime as dt
import decimal
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import ConfigError

_BOUNDS = {"min": pc.greater_equal, "max": pc.less_equal}
# What Arrow and Python say of a value that a type cannot be compared with.
_UNFIT = (pa.ArrowException, TypeError, ValueError, OverflowError, ArithmeticError)


def matching_rows(table: pa.Table, where: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Return bool [rows]: which rows fit every condition of `where`; nulls never fit.

    table: columns as `column_types.stored_column` makes them. A condition is a value (equality), a list, tuple or set
    (any of them), or a dict of `min` and/or `max` (both inclusive). Numbers compare by value, whatever their types;
    dates, times and decimals may be given as ISO text; a moment with a time zone needs one too. Raises ConfigError for
    an attribute that the table does not have, naming those it has, or a value that its type cannot be compared with.
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
            fits = _any_of(column, [_known(name, value) for value in condition])
        else:
            fits = _any_of(column, [_known(name, condition)])
    except _UNFIT as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"where: attribute {name!r} is {column.type} and cannot be compared with {condition!r} ({error})"
        ) from error
    filled: NDArray[np.bool_] = pc.fill_null(fits, fill_value=False).to_numpy()
    return filled


def _any_of(column: pa.ChunkedArray, values: list[Any]) -> Any:
    cells = [exact for value in values if (exact := _exact(_comparable(value, column.type), column.type)) is not None]
    if len(cells) == 1:
        return pc.equal(column, cells[0])
    return pc.is_in(column, value_set=pa.array(cells, column.type))


def _between(name: str, column: pa.ChunkedArray, bounds: Mapping[Any, Any]) -> pa.ChunkedArray:
    if not bounds or set(bounds) - set(_BOUNDS):
        raise ConfigError(f"where: {name!r} has the bounds {dict(bounds)!r}; give `min`, `max` or both")
    fits = pc.is_valid(column)
    for side, limit in bounds.items():
        known = _known(name, limit)
        whole = pa.types.is_integer(column.type)
        cell = _whole_bound(known, column.type, side) if whole else _comparable(known, column.type)
        fits = pc.and_kleene(fits, cell if isinstance(cell, bool) else _BOUNDS[side](column, cell))
    return fits


def _known(name: str, value: Any) -> Any:
    if value is None or value != value:
        raise ConfigError(f"where: {name!r} is asked to be {value!r}, which never matches; leave the condition out")
    # NumPy's moments in nanoseconds would come out as numbers.
    return value.item() if isinstance(value, np.generic) and not isinstance(value, np.datetime64) else value


def _exact(cell: pa.Scalar, kind: Any) -> pa.Scalar | None:
    """Return a cell in the type of a column, None when no value of that type equals it."""
    try:
        return cell if cell.type == kind else cell.cast(kind)
    except pa.ArrowInvalid:
        return None


def _comparable(value: Any, kind: Any) -> pa.Scalar:
    """Return a value of `where` as a cell that Arrow compares with a column of this type. Raises TypeError and more."""
    if isinstance(value, bool) or pa.types.is_boolean(kind):
        if not (isinstance(value, bool) and pa.types.is_boolean(kind)):
            raise TypeError("only true and false compare with booleans")
        return pa.scalar(value)
    make = next((make for holds, make in _CELLS if holds(kind)), None)
    return pa.scalar(value) if make is None else make(value, kind)


def _text_cell(value: Any, kind: Any) -> pa.Scalar:
    return pa.scalar(str(value) if isinstance(value, uuid.UUID) else value, kind)


def _whole_cell(value: Any, kind: Any) -> pa.Scalar:
    if not isinstance(value, int | float | decimal.Decimal):
        raise TypeError("give a number")
    held = _held(kind)
    whole = isinstance(value, int) or (math.isfinite(value) and value == math.floor(value))
    # What no row can equal stays a double, which is no value of the column's type.
    return pa.scalar(int(value), kind) if whole and int(value) in held else pa.scalar(math.inf)


def _whole_bound(value: Any, kind: Any, side: str) -> pa.Scalar | bool:
    """Return a bound of whole numbers in the column's type, or whether every row is inside: doubles hold 53 bits."""
    if isinstance(value, bool) or not isinstance(value, int | float | decimal.Decimal):
        raise TypeError("give a number")
    held = _held(kind)
    if isinstance(value, float) and math.isinf(value):
        return (value < 0) == (side == "min")
    whole = math.ceil(value) if side == "min" else math.floor(value)
    if whole in held:
        return pa.scalar(whole, kind)
    return (whole < 0) == (side == "min")


def _held(kind: Any) -> range:
    unsigned = pa.types.is_unsigned_integer(kind)
    return range(2**kind.bit_width) if unsigned else range(-(2 ** (kind.bit_width - 1)), 2 ** (kind.bit_width - 1))


def _float_cell(value: Any, kind: Any) -> pa.Scalar:
    if not isinstance(value, int | float | decimal.Decimal):
        raise TypeError("give a number")
    # In the column's own precision: a single 0.1 is the 0.1 that is asked for.
    with np.errstate(over="ignore"):
        return pa.scalar(kind.to_pandas_dtype()(float(value)), kind)


def _decimal_cell(value: Any, kind: Any) -> pa.Scalar:
    if isinstance(value, float) and math.isinf(value):
        return pa.scalar(value)
    return pa.scalar(decimal.Decimal(repr(value) if isinstance(value, float) else value))


def _date_cell(value: Any, kind: Any) -> pa.Scalar:
    return pa.scalar(_of_text(value, dt.datetime.fromisoformat) if isinstance(value, str) else value)


def _moment_cell(value: Any, kind: Any) -> pa.Scalar:
    value = _of_text(value, dt.datetime.fromisoformat)
    if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        value = dt.datetime.combine(value, dt.time())
    cell = pa.scalar(value)
    if pa.types.is_timestamp(cell.type) and bool(cell.type.tz) != bool(kind.tz):
        raise TypeError("give a time zone" if kind.tz else "the column has no time zone: give none")
    return cell


def _time_cell(value: Any, kind: Any) -> pa.Scalar:
    return pa.scalar(_of_text(value, dt.time.fromisoformat))


def _of_text(value: Any, parse: Callable[[str], Any]) -> Any:
    return parse(value) if isinstance(value, str) else value


_CELLS: tuple[tuple[Callable[[Any], bool], Callable[[Any, Any], pa.Scalar]], ...] = (
    (pa.types.is_string, _text_cell),
    (pa.types.is_integer, _whole_cell),
    (pa.types.is_floating, _float_cell),
    (pa.types.is_decimal, _decimal_cell),
    (pa.types.is_date, _date_cell),
    (pa.types.is_timestamp, _moment_cell),
    (pa.types.is_time, _time_cell),
)

"""Which Arrow types may stand for what in a catalogue, and as what releases store them.

One table for plan, diff, changes and readers: what `family_of` finds for a role is carried all the way, what it does
not find is refused where the catalogue is read.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Role = Literal["key", "image", "category", "attribute", "version"]

_PLAIN: frozenset[Role] = frozenset({"category", "attribute", "version"})
# A moment as a category: a reader that is told one back as Python's own type could not spell it as the table does.
_MOMENT: frozenset[Role] = frozenset({"attribute", "version"})
_KEY_TOO: frozenset[Role] = _PLAIN | {"key"}
_ANY: frozenset[Role] = _KEY_TOO | {"image"}
_IMAGE: frozenset[Role] = frozenset({"image"})

_UNITS_PER_S = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_UNITS = tuple(_UNITS_PER_S)
_EPOCH = dt.date(1970, 1, 1)
_FIRST_DAY = (dt.date.min - _EPOCH).days
_LAST_DAY = (dt.date.max - _EPOCH).days
_DAY_S = 86_400
_EXTENSIONS = {"arrow.uuid", "arrow.json", "arrow.bool8"}


@dataclass(frozen=True, slots=True)
class Family:
    """One row of the table.

    name: in words. holds: whether a type, unpacked of dictionaries and the like, belongs here. stored: the type that
    releases hold its values as, of all roles but key and version, which become text. roles: what it may stand for.
    """

    name: str
    holds: Callable[[Any], bool]
    stored: Callable[[Any], Any]
    roles: frozenset[Role]


def is_text(kind: Any) -> bool:
    """Return whether an Arrow type is text in one of its layouts."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_bytes(kind: Any) -> bool:
    """Return whether an Arrow type is bytes in one of its layouts."""
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def is_list(kind: Any) -> bool:
    """Return whether an Arrow type is a list in one of its layouts."""
    return bool(
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    )


def holds_photo_bytes(kind: Any) -> bool:
    """Return whether an Arrow type is the struct {bytes, path} that Hugging Face `datasets` writes photos as.

    Without bytes in any row their type may be null; the paths name the photos then.
    """
    if not pa.types.is_struct(kind):
        return False
    held = {field.name: unpacked_type(field.type) for field in kind}
    data, path = held.get("bytes"), held.get("path")
    return data is not None and (is_bytes(data) or (pa.types.is_null(data) and path is not None and is_text(path)))


def _is_text_list(kind: Any) -> bool:
    if not is_list(kind):
        return False
    member = unpacked_type(kind.value_type)
    return is_text(member) or pa.types.is_null(member)


def _is_decimal(kind: Any) -> bool:
    # No file format holds a negative scale, and Parquet cannot write one.
    return bool(pa.types.is_decimal(kind) and kind.scale >= 0)


def _stored_decimal(kind: Any) -> Any:
    return kind if kind.bit_width >= 128 else pa.decimal128(kind.precision, kind.scale)


def _is_extension(name: str) -> Callable[[Any], bool]:
    return lambda kind: isinstance(kind, pa.BaseExtensionType) and kind.extension_name == name


def _is_timestamp(kind: Any) -> bool:
    return bool(pa.types.is_timestamp(kind) and (not kind.tz or _is_time_zone(kind.tz)))


def _is_time_zone(name: str) -> bool:
    try:
        pa.scalar(0, pa.timestamp("us", name)).as_py()
    except (pa.ArrowException, ValueError, KeyError, OSError):
        return False
    return True


# What cannot be compared, joined or written as it comes is stored as the nearest type that can and holds every value
# of it: Parquet has no seconds, and Arrow compares neither half floats nor the narrow decimals.
FAMILIES: tuple[Family, ...] = (
    Family("text", is_text, lambda _: pa.string(), _ANY),
    Family("nothing but nulls", pa.types.is_null, lambda kind: kind, _ANY),
    Family("booleans", pa.types.is_boolean, lambda kind: kind, _PLAIN),
    Family("whole numbers", pa.types.is_integer, lambda kind: kind, _KEY_TOO),
    Family("half floats", pa.types.is_float16, lambda _: pa.float32(), _PLAIN),
    Family("floats", pa.types.is_floating, lambda kind: kind, _PLAIN),
    Family("whole decimals", lambda kind: _is_decimal(kind) and kind.scale == 0, _stored_decimal, _KEY_TOO),
    Family("decimals", _is_decimal, _stored_decimal, _PLAIN),
    Family("dates", pa.types.is_date, lambda _: pa.date32(), _PLAIN),
    Family("times of day", pa.types.is_time, lambda kind: pa.time32("ms") if kind.bit_width == 32 else kind, _MOMENT),
    Family("moments", _is_timestamp, lambda kind: pa.timestamp(_finer(kind.unit, "ms"), kind.tz), _MOMENT),
    Family("durations", pa.types.is_duration, lambda kind: kind, _MOMENT),
    Family("UUIDs", _is_extension("arrow.uuid"), lambda _: pa.string(), _KEY_TOO),
    Family("JSON texts", _is_extension("arrow.json"), lambda _: pa.string(), _PLAIN),
    Family("booleans in bytes", _is_extension("arrow.bool8"), lambda _: pa.bool_(), _PLAIN),
    Family("bytes", is_bytes, lambda kind: kind, _IMAGE),
    Family("lists of texts", _is_text_list, lambda kind: kind, _IMAGE),
    Family("photos with their path", holds_photo_bytes, lambda kind: kind, _IMAGE),
)


def family_of(kind: Any, role: Role) -> Family | None:
    """Return the row of the table for a type in a role, None where it must be refused."""
    kind = unpacked_type(kind)
    found = next((family for family in FAMILIES if family.holds(kind)), None)
    return found if found is not None and role in found.roles else None


def allowed(role: Role) -> str:
    """Return what a role may hold, in words."""
    return ", ".join(family.name for family in FAMILIES if role in family.roles)


def unpacked_type(kind: Any) -> Any:
    """Return the type of a column's values: dictionaries and run-end encoding only say how they lie in memory."""
    while pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        kind = kind.value_type
    return kind


def unpacked(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column without dictionaries and run-end encoding around its values."""
    while pa.types.is_dictionary(column.type) or pa.types.is_run_end_encoded(column.type):
        kind = column.type.value_type
        decode = pc.run_end_decode if pa.types.is_run_end_encoded(column.type) else pa.DictionaryArray.dictionary_decode
        column = pa.chunked_array([decode(chunk) for chunk in column.chunks], kind)
    return column


def stored_column(column: pa.ChunkedArray, role: Role = "attribute") -> pa.ChunkedArray:
    """Return a plain column as releases store it, with the same values; one without a row in the table as it is.

    A column of type null stays: other batches may know its type. A category of floats is stored as doubles, so that
    Python's number and the table's are one text.
    """
    family = family_of(column.type, "attribute")
    column = unpacked(column)
    if family is None:
        return column
    kind = family.stored(column.type)
    if role == "category" and pa.types.is_floating(kind):
        kind = pa.float64()
    return column if column.type == kind else _cast(column, kind)


def text_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a plain column as text (keys, versions): whole numbers in their shortest form, moments as they come."""
    return _cast(unpacked(column), pa.string())


def _cast(column: pa.ChunkedArray, kind: Any) -> pa.ChunkedArray:
    if isinstance(column.type, pa.BaseExtensionType):
        name, column = column.type.extension_name, column.cast(column.type.storage_type)
        if name == "arrow.uuid":
            texts = [None if value is None else str(uuid.UUID(bytes=value)) for value in column.to_pylist()]
            return pa.chunked_array([pa.array(texts, pa.string())])
        if name == "arrow.bool8":
            column = column.cast(pa.bool_())
    return column.cast(kind)


def photo_bytes(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the bytes of embedded photos: the column, or the field `bytes` of its structs."""
    column = unpacked(column)
    if not pa.types.is_struct(column.type):
        return column
    data = _photo_field(column, "bytes")
    return data.cast(pa.binary()) if pa.types.is_null(data.type) else data


def photo_paths(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the field `path` of structs of photos as text, null in those that hold bytes."""
    column = unpacked(column)
    path = _photo_field(column, "path")
    if not is_text(path.type):
        return pa.chunked_array([pa.nulls(len(column), pa.string())])
    return pc.if_else(pc.is_valid(photo_bytes(column)), pa.scalar(None, pa.string()), path.cast(pa.string()))


def _photo_field(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    if column.type.get_field_index(name) < 0:
        return pa.chunked_array([pa.nulls(len(column))])
    return unpacked(pc.struct_field(column, name))


def text_lists(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of lists of texts, in any layout, as `list<string>`."""
    column = unpacked(column)
    if pa.types.is_list(column.type) and pa.types.is_string(column.type.value_type):
        return column
    # By way of Python: Arrow's own casts between layouts of lists lose nulls or the values' encoding.
    return pa.chunked_array(
        [pa.array(chunk.to_pylist(), pa.list_(pa.string())) for chunk in column.chunks], pa.list_(pa.string())
    )


def unusable_values(column: pa.ChunkedArray) -> tuple[np.ndarray, str] | None:
    """Return (bool [n], why) where a stored column holds values that Python or a later step cannot, None without any.

    Such are texts that are no UTF-8 (Parquet and JSON lines do not check), and dates and times outside of the calendar.
    """
    kind = column.type
    if pa.types.is_string(kind):
        bad = _not_utf8(column)
        return (
            None
            if bad is None
            else (bad, "is no UTF-8 text; write the file in UTF-8, or set catalogue.encoding for JSON lines")
        )
    limits = _limits(kind)
    if limits is None or not len(column):
        return None
    numbers = column.cast(pa.int32() if kind.bit_width == 32 else pa.int64())
    found = pc.min_max(numbers)
    if found["min"].as_py() is None or (found["min"].as_py() >= limits[0] and found["max"].as_py() <= limits[1]):
        return None
    outside = pc.or_(pc.less(numbers, limits[0]), pc.greater(numbers, limits[1]))
    said = "a time of day (00:00 to 24:00)" if pa.types.is_time(kind) else "within the years 1 to 9999"
    return pc.fill_null(outside, False).to_numpy(), f"is not {said}; mend it or make it null"


def _limits(kind: Any) -> tuple[int, int] | None:
    if pa.types.is_date32(kind):
        return _FIRST_DAY, _LAST_DAY
    if pa.types.is_time(kind):
        return 0, _DAY_S * _UNITS_PER_S[kind.unit] - 1
    if pa.types.is_timestamp(kind):
        day = _DAY_S * _UNITS_PER_S[kind.unit]  # a day is spared at both ends, for the time zones
        return max((_FIRST_DAY + 1) * day, -(2**63)), min((_LAST_DAY - 1) * day, 2**63 - 1)
    if pa.types.is_duration(kind):
        longest = min((_LAST_DAY - _FIRST_DAY) * _DAY_S * _UNITS_PER_S[kind.unit], 2**63 - 1)
        return -longest, longest
    return None


def _not_utf8(column: pa.ChunkedArray) -> np.ndarray | None:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return np.array([not _is_utf8(value) for chunk in column.chunks for value in chunk.cast(pa.binary())], np.bool_)
    return None


def _is_utf8(value: Any) -> bool:
    try:
        bytes(value.as_buffer() or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def shown_cell(cell: pa.Scalar) -> str:
    """Return a cell for an error, whatever it holds: text as Python writes it, what is no text as its bytes."""
    if pa.types.is_string(cell.type):
        data = bytes(cell.as_buffer() or b"")
        return repr(data.decode(errors="backslashreplace")[:100]) if _is_utf8(cell) else repr(data[:100])
    return f"{cell.type} {getattr(cell, 'value', cell)}"


def value_of(cell: pa.Scalar) -> Any:
    """Return a cell as Python's own value; nanoseconds are cut to the microseconds that Python's types hold."""
    kind = cell.type
    timed = pa.types.is_timestamp(kind) or pa.types.is_time64(kind) or pa.types.is_duration(kind)
    if not timed or kind.unit != "ns" or not cell.is_valid:
        return cell.as_py()
    micros = cell.value // 1000
    if pa.types.is_timestamp(kind):
        return pa.scalar(micros, pa.timestamp("us", kind.tz)).as_py()
    return pa.scalar(micros, pa.time64("us") if pa.types.is_time(kind) else pa.duration("us")).as_py()


def same_kind(left: pa.ChunkedArray, right: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Return two plain columns in one type, in which equal values compare as equal; text where there is no other."""
    left, right = stored_column(left), stored_column(right)
    kind = _common(left.type, right.type)
    if kind is not None:
        try:
            return left.cast(kind), right.cast(kind)
        except pa.ArrowInvalid:  # a value that the finer unit cannot hold
            pass
    return left.cast(pa.string()), right.cast(pa.string())


def _common(left: Any, right: Any) -> Any:
    if left == right:
        return None if pa.types.is_null(left) else left
    if pa.types.is_timestamp(left) and pa.types.is_timestamp(right) and bool(left.tz) == bool(right.tz):
        # Two time zones show one moment in two ways, which is a difference to whoever reads it.
        return pa.timestamp(_finer(left.unit, right.unit), left.tz) if left.tz == right.tz else None
    if pa.types.is_duration(left) and pa.types.is_duration(right):
        return pa.duration(_finer(left.unit, right.unit))
    if pa.types.is_time(left) and pa.types.is_time(right):
        return pa.time64(_finer(_finer(left.unit, right.unit), "us"))
    if pa.types.is_decimal(left) and pa.types.is_decimal(right):
        return pa.decimal256(76, max(left.scale, right.scale))
    return None


def _finer(left: str, right: str) -> str:
    return max(left, right, key=_UNITS.index)

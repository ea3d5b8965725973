"""Values of JSON as Arrow columns, each held exactly or refused with the place it stands in."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import pyarrow as pa

from ..errors import InputError
from ..storage.names import is_utf8

Place = Callable[[int], str]  # from a value's number to where it stands, in words

_INT64 = range(-(2**63), 2**63)
EXACT = 2**53  # whole numbers up to here are doubles too
_NESTED = pa.struct([])


def parse_object(text: bytes, where: str, wanted: frozenset[str] | None = None) -> dict[str, Any]:
    """Return the fields of one JSON object.

    wanted: fields that must be there once at most; None: all of them. Raises InputError beginning with `where`.
    """
    try:
        pairs = json.loads(text.decode(), object_pairs_hook=_Pairs, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is no UTF-8 ({error}); write the file in UTF-8") from error
    except RecursionError as error:
        raise InputError(f"{where} is nested too deeply; write one flat object") from error
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {error}; write one whole object {{...}} there") from error
    if not isinstance(pairs, _Pairs):
        raise InputError(f"{where} must hold a JSON object {{...}}, not {type(pairs).__name__}")
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields and (wanted is None or name in wanted):
            raise InputError(f"{where} names the field {name!r} twice; keep one of them")
        fields[name] = value
    return fields


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it stands: its fields in order, doubled ones too."""


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:40]} is larger than any double")
    return value


def columns_of(rows: Sequence[dict[str, Any]], names: Iterable[str], where: Place) -> pa.Table:
    """Return fields of JSON objects as columns, nulls where an object lacks one. Raises InputError as `column_of`."""
    names = list(names)
    for name in names:
        if not is_utf8(name):
            raise InputError(f"{where(0)}: the field name {name!r} holds half a character; rename it")
    arrays = [column_of([row.get(name) for row in rows], name, where) for name in names]
    return pa.table(arrays, names=names) if names else pa.table({"": pa.nulls(len(rows))}).select([])


def column_of(values: Sequence[Any], name: str, where: Place) -> pa.Array:
    """Return the values of one field as a column: text, truth values, whole numbers, doubles or lists of text.

    What is nested otherwise becomes nulls of a struct, a type that no attribute may have. Raises InputError naming the
    place of a value of another type than those before it, and of one that no column can hold: half a character
    (`\\ud800`), a whole number beyond 64 bits, one beyond 2^53 among numbers with a fraction.
    """
    kinds: dict[str, int] = {}
    for number, value in enumerate(values):
        if value is not None:
            kinds.setdefault(_kind_of(value), number)
    if not kinds:
        return pa.nulls(len(values))
    if {*kinds} == {"whole numbers", "numbers"}:
        _refuse_inexact(values, name, where)
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    if len(kinds) > 1:
        _refuse_mixed(values, kinds, name, where)
    kind = next(iter(kinds))
    if kind == "whole numbers":
        _refuse_first(values, lambda value: value not in _INT64, name, where, "is beyond 64 bits; write it as text")
        return pa.array(values, pa.int64())
    if kind == "texts":
        _refuse_first(values, lambda value: not is_utf8(value), name, where, "holds half a character; write it whole")
        return pa.array(values, pa.string())
    if kind == "lists of texts":
        _refuse_first(
            values,
            lambda members: not all(member is None or is_utf8(member) for member in members),
            name,
            where,
            "holds half a character; write it whole",
        )
        return pa.array(values, pa.list_(pa.string()))
    if kind == "objects":
        return pa.nulls(len(values), _NESTED)
    return pa.array(values, pa.bool_() if kind == "truth values" else pa.float64())


def _kind_of(value: Any) -> str:
    if isinstance(value, str):
        return "texts"
    if isinstance(value, bool):
        return "truth values"
    if isinstance(value, int):
        return "whole numbers"
    if isinstance(value, float):
        return "numbers"
    if isinstance(value, list) and not isinstance(value, _Pairs) and all(isinstance(of, str | None) for of in value):
        return "lists of texts"
    return "objects"


def _refuse_mixed(values: Sequence[Any], kinds: dict[str, int], name: str, where: Place) -> NoReturn:
    (first, before), (second, place) = list(kinds.items())[:2]
    raise InputError(
        f"{where(place)}: the field {name!r} holds {_shown(values[place])}, of {second}, and {_shown(values[before])}, "
        f"of {first}, in {where(before)}; give it one type, or leave it out of catalogue.attributes"
    )


def _refuse_inexact(values: Sequence[Any], name: str, where: Place) -> None:
    _refuse_first(
        values,
        lambda value: isinstance(value, int) and abs(value) > EXACT,
        name,
        where,
        "cannot be held exactly beside numbers with a fraction; write them as text",
    )


def _refuse_first(values: Sequence[Any], bad: Callable[[Any], bool], name: str, where: Place, why: str) -> None:
    place = next((number for number, value in enumerate(values) if value is not None and bad(value)), None)
    if place is not None:
        raise InputError(f"{where(place)}: the field {name!r} holds {_shown(values[place])}, which {why}")


def _shown(value: Any) -> str:
    if isinstance(value, int) and abs(value) >= 10**40:  # Python refuses to print very long ones
        return "a number of more than 40 digits"
    return ascii(value)[:100]

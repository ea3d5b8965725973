"""Reading a table of events: which customer had which item, checked row by row, in batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..column_types import allowed, family_of, shown_cell, text_column, unpacked, unusable_values
from ..damaged import damaged_as
from ..errors import ConfigError, InputError, NotFound
from ..ordering import as_numpy
from ..storage import Files
from .config import RecommendConfig

_BATCH = 1 << 17  # rows read at a time


@dataclass(frozen=True, slots=True)
class EventFile:
    """One Parquet file of events. token: changes when the file does; rows: by its footer."""

    uri: str
    token: str
    rows: int


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns that are read; None: the table has none."""

    customer: str
    item: str
    weight: str | None
    time: str | None

    def names(self) -> list[str]:
        """Return those that are read, each once."""
        names = (self.customer, self.item, self.weight, self.time)
        return list(dict.fromkeys(name for name in names if name is not None))


class EventTable:
    """A Parquet file of events, or all *.parquet files below a folder in the order of their names."""

    def __init__(self, files: Files, uri: str, config: RecommendConfig) -> None:
        """Look at the footers.

        Raises NotFound when there is no such file, InputError for what is no Parquet file, ConfigError for a column
        that is not there or of a type that cannot stand for what it is to mean.
        """
        self._files, self.uri = files, uri
        self.files: list[EventFile] = []
        self.columns = Columns(config.customer, config.item, config.weight, config.time)
        for place, token in _found(files, uri):
            schema, rows = self._footer(place)
            if not self.files:
                self.columns = _chosen(schema, config)
            _check_columns(schema, self.columns, place)
            self.files.append(EventFile(place, token, rows))

    @property
    def rows(self) -> int:
        """The number of events."""
        return sum(file.rows for file in self.files)

    def customers(self) -> Iterator[pa.ChunkedArray]:
        """Yield the customers of all events as text, batch by batch. Raises InputError for a row without one."""
        for place, first, batch in self._batches([self.columns.customer]):
            yield _keys(batch, self.columns.customer, place, first)

    def batches(self) -> Iterator[pa.Table]:
        """Yield all events batch by batch: customer, item (text), weight (float64, > 0), time_us (int64).

        time_us: the moment in microseconds since 1970, 0 without a column of times. Raises InputError, naming file, row
        and value, for a missing customer, item, weight or time, and a weight that is not above zero and finite.
        """
        names = self.columns
        for place, first, batch in self._batches(names.names()):
            yield pa.table(
                {
                    "customer": _keys(batch, names.customer, place, first),
                    "item": _keys(batch, names.item, place, first),
                    "weight": _weights(batch, names.weight, place, first),
                    "time_us": _times(batch, names.time, place, first),
                }
            )

    def _batches(self, names: list[str]) -> Iterator[tuple[str, int, pa.Table]]:
        for file in self.files:
            first = 0
            with _readable(file.uri), self._files.open(file.uri) as handle, _parquet(handle) as table:
                for batch in table.iter_batches(_BATCH, columns=names, use_threads=False):
                    yield file.uri, first, pa.Table.from_batches([batch])
                    first += batch.num_rows

    def _footer(self, place: str) -> tuple[pa.Schema, int]:
        with _readable(place), self._files.open(place) as handle, _parquet(handle) as table:
            return table.schema_arrow, table.metadata.num_rows


def _parquet(handle: Any) -> pq.ParquetFile:
    return pq.ParquetFile(handle, pre_buffer=False)


def _readable(place: str) -> AbstractContextManager[None]:
    return damaged_as(
        lambda words: InputError(f"{place} cannot be read as Parquet to its end ({words}); write the events as Parquet")
    )


def _found(files: Files, uri: str) -> list[tuple[str, str]]:
    """Return (URI, token) of a file, or of the Parquet files of a folder."""
    try:
        return [(uri, files.stat(uri).token)]
    except NotFound:
        pass
    try:
        found = [(place, entry.token) for place, entry in files.list(uri) if place.endswith(".parquet")]
    except NotFound:
        found = []
    if not found:
        raise NotFound(f"{uri} is neither a file nor a folder with *.parquet files; name the table of events")
    return found


def _chosen(schema: pa.Schema, config: RecommendConfig) -> Columns:
    def known(name: str | None, usual: str) -> str | None:
        return usual if name is None and usual in schema.names else name

    return Columns(config.customer, config.item, known(config.weight, "weight"), known(config.time, "time"))


def _check_columns(schema: pa.Schema, columns: Columns, place: str) -> None:
    for option in ("customer", "item", "weight", "time"):
        name = getattr(columns, option)
        if name is None:
            continue
        if name not in schema.names:
            raise ConfigError(
                f"{place} has no column {name!r}; it has {', '.join(schema.names) or 'none'}: name the right one with "
                f"--{option}"
            )
        if schema.names.count(name) > 1:
            raise ConfigError(f"{place} has {schema.names.count(name)} columns named {name!r}; leave one of them")
        kind = unpacked(pa.chunked_array([], schema.field(name).type)).type
        if option in ("customer", "item") and family_of(kind, "key") is None:
            raise ConfigError(
                f"{place}: the column {name!r} holds {kind}, which is no key; it may hold {allowed('key')}"
            )
        number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        if option == "weight" and not number:
            raise ConfigError(f"{place}: the column {name!r} holds {kind}, but a weight is a number")
        if option == "time" and not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
            raise ConfigError(
                f"{place}: the column {name!r} holds {kind}, but a time is a timestamp or a date; convert it"
            )


def _keys(batch: pa.Table, name: str, place: str, first: int) -> pa.ChunkedArray:
    column = text_column(batch.column(name))
    _refuse(pc.is_null(column), batch, name, place, first, "leave events out whose customer or item is not known")
    if unusable := unusable_values(column):
        _refuse(pa.array(unusable[0]), batch, name, place, first, f"it {unusable[1]}")
    return column.cast(pa.large_string())


def _weights(batch: pa.Table, name: str | None, place: str, first: int) -> Any:
    if name is None:
        return np.ones(batch.num_rows)
    column = unpacked(batch.column(name)).cast(pa.float64())
    weights = as_numpy(column, missing=float("nan"))
    good = np.isfinite(weights) & (weights > 0)
    _refuse(pa.array(~good), batch, name, place, first, "a weight is a number above 0; leave out events that count 0")
    return weights


def _times(batch: pa.Table, name: str | None, place: str, first: int) -> Any:
    if name is None:
        return np.zeros(batch.num_rows, np.int64)
    column = unpacked(batch.column(name))
    _refuse(pc.is_null(column), batch, name, place, first, "leave events out whose time is not known")
    kind = pa.timestamp("us", getattr(column.type, "tz", None))
    try:
        return pc.cast(column, options=pc.CastOptions(target_type=kind, allow_time_truncate=True)).cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{place}: {name} holds a time that no microseconds since 1970 can tell, behind row {first:,} ({error}); "
            "mend it or leave the event out"
        ) from error


def _refuse(bad: Any, batch: pa.Table, name: str, place: str, first: int, remedy: str) -> None:
    """Raise InputError for the first row where `bad` is true."""
    rows = np.flatnonzero(as_numpy(bad))
    if not len(rows):
        return
    cell = unpacked(batch.column(name))[int(rows[0])]
    shown = shown_cell(cell) if pa.types.is_string(cell.type) and cell.is_valid else repr(cell.as_py())
    more = f" ({len(rows):,} such rows among the {batch.num_rows:,} from there on)" if len(rows) > 1 else ""
    raise InputError(f"{place}: {name} of row {first + int(rows[0]):,} is {shown}{more}; {remedy}")

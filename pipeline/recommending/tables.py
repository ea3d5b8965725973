"""The tables that are written: Parquet files of bounded length, and a JSON document, written last, that lists them."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import ConfigError, InputError, IntegrityError, NotFound
from ..keys import DIGEST, SHORT, digest_of
from ..release.beside import SUMMARY, sealed, unsealed
from ..release.tables import write_table
from ..storage import Store
from .config import RecommendConfig

FILE_ROWS = 1 << 20  # of one file: what is held until it is written
_GROUP_ROWS = 1 << 16

Table = Literal["customer_items", "customer_customers", "item_items"]


class TableFile(BaseModel):
    """One file of a table. name: beside the summary; sha256: of its bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    table: Table
    name: str
    bytes: int = Field(ge=0)
    rows: int = Field(ge=0)
    sha256: str = Field(pattern=DIGEST)


class Counts(BaseModel):
    """What became of the events.

    events: rows; repeated: of them beyond the first of the same customer and item. unknown_events: of items that the
    release does not hold; unknown_items: how many such items, counted up to 100,000; unknown_first: some of them.
    customers: with an item of the release; customers_without: with none, who stand in no table. trimmed: customers of
    whom not all items ask. alone: customers whom no other is like.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    events: int
    repeated: int
    unknown_events: int
    unknown_items: int
    unknown_first: tuple[str, ...]
    customers: int
    customers_without: int
    trimmed: int
    alone: int


class Summary(BaseModel):
    """What a folder of recommendations holds. key: of what was asked; metric: of the scores in item_items."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    key: str = Field(pattern=DIGEST)
    release_id: str
    model_id: str
    metric: str
    events: str
    settings: RecommendConfig
    counts: Counts
    files: tuple[TableFile, ...]


class TableWriter:
    """Rows of one table on their way into files of at most FILE_ROWS rows, named by their number and content."""

    def __init__(self, store: Store, folder: str, table: Table, schema: pa.Schema) -> None:
        self._store, self._folder, self._table, self._schema = store, folder, table, schema
        self._held: list[pa.Table] = []
        self._rows = 0
        self.files: list[TableFile] = []

    def add(self, rows: pa.Table) -> None:
        """Add the next rows, in order."""
        self._held.append(rows.cast(self._schema))
        self._rows += rows.num_rows
        while self._rows >= FILE_ROWS:
            whole = pa.concat_tables(self._held)
            self._write(whole.slice(0, FILE_ROWS))
            self._held, self._rows = [whole.slice(FILE_ROWS)], self._rows - FILE_ROWS

    def close(self) -> list[TableFile]:
        """Write what is left, an empty table too, and return all files."""
        if self._rows or not self.files:
            self._write(pa.concat_tables([self._schema.empty_table(), *self._held]))
        return self.files

    def _write(self, rows: pa.Table) -> None:
        data = write_table(rows, group_rows=_GROUP_ROWS)
        digest = digest_of(data)
        name = f"{self._table}-{len(self.files):05d}-{digest[:SHORT]}.parquet"
        self._store.put_if_absent(self._folder + name, data)
        self.files.append(TableFile(table=self._table, name=name, bytes=len(data), rows=rows.num_rows, sha256=digest))


def read_summary(store: Store, folder: str) -> Summary | None:
    """Return what a folder holds, None for nothing finished. Raises IntegrityError for what is no summary."""
    try:
        data = store.get(folder + SUMMARY)
    except NotFound:
        return None
    try:
        return Summary.model_validate_json(unsealed(data, folder + SUMMARY))
    except ValidationError as error:
        raise IntegrityError(
            f"{folder}{SUMMARY} on {store.url} is no summary of recommendations ({error.error_count()} errors); "
            "name another folder"
        ) from error
    except ValueError as error:
        raise IntegrityError(f"on {store.url}: {error}; it was changed, name another folder") from error


def check_same(found: Summary, key: str, place: str) -> Summary:
    """Return what a folder holds where it answers the same question. Raises ConfigError."""
    if found.key != key:
        raise ConfigError(
            f"{place} holds recommendations of {found.release_id} from {found.events} already, asked otherwise; a "
            "folder is written once: name another one with --out"
        )
    return found


def write_summary(store: Store, folder: str, summary: Summary) -> Summary:
    """Write the summary, last of all; where another process was first with the same question, return its answer."""
    if store.put_if_absent(folder + SUMMARY, sealed(summary.model_dump_json(indent=1).encode())):
        return summary
    found = read_summary(store, folder)
    if found is None:
        raise InputError(f"{folder}{SUMMARY} on {store.url} was there and is gone; run again")
    return check_same(found, summary.key, folder or store.url)

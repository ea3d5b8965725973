"""The columns of every table on the store, held to what Spark reads of Parquet without a setting.

Spark's ParquetToSparkSchemaConverter: unsigned numbers since 3.2 (SPARK-34817: 8 bits as short, 16 as int, 32 as long;
SPARK-34786: 64 as decimal), lists of the three-level form, moments of milli- and microseconds; no time of day, no
nanoseconds unless `spark.sql.legacy.parquet.nanosAsLong`, no half floats, no bare fixed-length bytes.
"""

from __future__ import annotations

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import schema
from pipeline.release.tables import write_table

SPARK: dict[str, tuple[str, ...]] = {
    "BOOLEAN": (r"None",),
    "INT32": (r"None", r"Int\(.*\)", r"Date", r"Decimal\(.*\)"),
    "INT64": (r"None", r"Int\(.*\)", r"Timestamp\(.*(milliseconds|microseconds).*\)", r"Decimal\(.*\)"),
    "FLOAT": (r"None",),
    "DOUBLE": (r"None",),
    "BYTE_ARRAY": (r"None", r"String", r"Decimal\(.*\)"),
    "FIXED_LEN_BYTE_ARRAY": (r"Decimal\(.*\)",),
}
TABLES = {
    **{name: found for name, found in vars(schema).items() if isinstance(found, pa.Schema)},
    "vectors": schema.vectors_schema(64),
    "latents": schema.latents_schema(64, log_var=True, num_codes=16),
}


def unread(fields: pa.Schema) -> list[str]:
    """Return the columns that Spark refuses in a table as a release writes it."""
    file = pq.ParquetFile(pa.BufferReader(write_table(fields.empty_table())))
    found = []
    for number in range(len(file.schema)):
        column = file.schema.column(number)
        logical = str(column.logical_type)
        if not any(re.fullmatch(allowed, logical) for allowed in SPARK.get(column.physical_type, ())):
            found.append(f"{column.path}: {column.physical_type} {logical}")
        if column.max_repetition_level and not re.search(r"\.list\.element", column.path):
            found.append(f"{column.path}: a list of another form")
    return found


@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_table_has_types_that_spark_reads(name: str) -> None:
    assert unread(TABLES[name]) == []


def test_what_spark_does_not_read_is_found() -> None:
    kinds = {
        "time": pa.time64("us"), "nanoseconds": pa.timestamp("ns", "UTC"), "half": pa.float16(), "fixed": pa.binary(16),
    }  # fmt: skip
    for name, kind in kinds.items():
        assert len(unread(pa.schema([pa.field(name, kind)]))) == 1, name
    fine = [pa.uint16(), pa.list_(pa.uint16()), pa.list_(pa.float32(), 3), pa.timestamp("us", "UTC"), pa.date32(),
            pa.string(), pa.bool_(), pa.decimal128(20, 2)]  # fmt: skip
    assert unread(pa.schema([pa.field(str(kind), kind) for kind in fine])) == []


def test_codes_are_unsigned_numbers_of_16_bits_as_they_always_were() -> None:
    """Spark reads them as int since 3.2, so that the digests of earlier releases need not change."""
    file = pq.ParquetFile(pa.BufferReader(write_table(schema.table_schema(schema.SEMANTIC_IDS).empty_table())))
    column = next(
        file.schema.column(number) for number in range(20) if file.schema.column(number).path.startswith("codes")
    )
    assert (column.physical_type, json.loads(column.logical_type.to_json())) == (
        "INT32", {"Type": "Int", "bitWidth": 16, "isSigned": False},
    )  # fmt: skip

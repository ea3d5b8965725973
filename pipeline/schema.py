"""Arrow schemas of every table on the store, each with a version (in the metadata under `schema`).

Item attributes (category, brand, ...) follow the fixed columns of `photos`, `plan` and `items` under their own names.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

PIXELS_VERSION = 1
LATENTS_VERSION = 1
ITEMS_VERSION = 1
QUARANTINE_VERSION = 1
CHANGES_VERSION = 1
PLAN_VERSION = 1
OUTLIERS_VERSION = 1
TABLES_VERSION = 1

# What a catalogue source yields, one row a photo. A photo's bytes lie at `uri`; where they are embedded in a table or
# a tar file, `source` is that file's URI and `offset` the row number (Parquet, JSON lines: base 0) or the first byte's
# position (tar), `length` the number of bytes (tar). `token` is null until `catalogue.tokens` has resolved it.
# `signed_uri` is the address to fetch from where that holds more than `uri`: a credential, kept in a run's plan only.
PHOTOS = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("view", pa.int32(), nullable=False),
        pa.field("token", pa.string()),
        pa.field("source", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
        pa.field("signed_uri", pa.string()),
    ]
)

# What a shard's photos carry beside PHOTOS when the model is told their categories; null: the photo has none.
CATEGORY = pa.field("category", pa.string())

# A photo that could not be used. `stage`: plan | fetch | decode | encode; `reason`: a fixed word; `detail`: a sentence.
REFUSAL = pa.schema([pa.field("stage", pa.string()), pa.field("reason", pa.string()), pa.field("detail", pa.string())])

# One row a photo that was asked for. A refused photo has null `digest` and `pixels`, and a stage and reason.
_PIXELS = [
    pa.field("item_id", pa.string(), nullable=False),
    pa.field("uri", pa.string(), nullable=False),
    pa.field("token", pa.string(), nullable=False),
    pa.field("digest", pa.string()),  # sha256 of the photo's bytes as fetched
]

# A part's full name on the store. In memory one word a part: its 145 letters, twice a photo, were half of all that is
# held of a photo. In Parquet plain text (which its own encoding keeps once a row group), so that any reader takes it.
_PART_NAME = pa.dictionary(pa.int32(), pa.string())
PART_NAMES = ("latents_part", "pixels_part", "index_segment")

# What a plan adds to PHOTOS. `status`: added | changed | same | refused. A `same` row names where its pixels and
# latents already lie; `shard` is null where nothing has to be computed; `retried` marks a photo whose fetch was
# refused in the parent release and is tried again.
_PLAN = [
    pa.field("status", pa.string(), nullable=False),
    pa.field("shard", pa.int32()),
    pa.field("retried", pa.bool_(), nullable=False),
    pa.field("digest", pa.string()),
    pa.field("latents_part", _PART_NAME),
    pa.field("latents_row", pa.int32()),
    pa.field("pixels_part", _PART_NAME),
    pa.field("pixels_row", pa.int32()),
    *REFUSAL,
]

ITEMS = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("view", pa.int32(), nullable=False),
        pa.field("token", pa.string(), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
        pa.field("latents_part", _PART_NAME, nullable=False),
        pa.field("latents_row", pa.int32(), nullable=False),
        pa.field("pixels_part", _PART_NAME),  # null once the pixels have expired
        pa.field("pixels_row", pa.int32()),
    ]
)

# What items has besides where the index is made of segments: the segment's name on the store, and the row in it.
SEGMENT_PLACE = pa.schema(
    [
        pa.field("index_segment", _PART_NAME, nullable=False),
        pa.field("index_row", pa.int32(), nullable=False),
    ]
)

QUARANTINE = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("token", pa.string()),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("first_seen", pa.string(), nullable=False),  # the run that first refused it
    ]
)

# `change`: added | changed | removed | relabelled | quarantined.
CHANGES = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("change", pa.string(), nullable=False),
    ]
)

# How likely a prior finds each photo of a release, the least likely first; joins items and quarantine on (item_id,
# uri).
OUTLIERS = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("category", pa.string()),  # null: the photo has none, or none is known of any
        pa.field("nats", pa.float64(), nullable=False),  # -log p of all the photo's codes
        pa.field("nats_per_code", pa.float64(), nullable=False),
        pa.field("outlier_score", pa.float32()),  # null where the photos' nats have no spread to measure by
    ]
)

_ITEM_ID = pa.field("item_id", pa.string(), nullable=False)
_CODES = pa.list_(pa.field("item", pa.uint16(), nullable=False))

# A slot: the codes that an item's vector has, those that it was given (others where a full bucket moved it), and the
# suffix that tells it from the other items of these codes. `since`: the run that gave the slot to the item.
_SLOT = [
    _ITEM_ID,
    pa.field("codes", _CODES, nullable=False),
    pa.field("suffix", pa.int32(), nullable=False),
    pa.field("nearest_codes", _CODES, nullable=False),
    pa.field("since", pa.string(), nullable=False),
]
SEMANTIC_IDS = pa.schema(
    [
        *_SLOT,
        pa.field("offset_codes", pa.list_(pa.field("item", pa.int32(), nullable=False)), nullable=False),
        pa.field("token", pa.string(), nullable=False),
        pa.field("residual_norm", pa.float32(), nullable=False),
    ]
)
# Slots that nobody has any more; given only to the item that had it. `retired`: the run that found it without its item.
SID_RETIRED = pa.schema([*_SLOT, pa.field("retired", pa.string(), nullable=False)])
# The way back: the items of each sequence of codes, in the order of their suffixes.
SID_ITEMS = pa.schema(
    [
        pa.field("codes", _CODES, nullable=False),
        pa.field("item_ids", pa.list_(pa.field("item", pa.string(), nullable=False)), nullable=False),
    ]
)
# Which code of a level took the place of which when the codebooks changed; null where there are fewer of the others.
# `items`: those that had the one and have the other; `share`: of those that had the old one.
SID_MAP = pa.schema(
    [
        pa.field("level", pa.int32(), nullable=False),
        pa.field("old", pa.int32()),
        pa.field("new", pa.int32()),
        pa.field("items", pa.int64(), nullable=False),
        pa.field("share", pa.float64(), nullable=False),
    ]
)
NEIGHBOURS = pa.schema(
    [
        _ITEM_ID,
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("neighbour_id", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
    ]
)

# A code of the release's VQ model. `level`: of several codebooks the one; "" of only one. `uses`: how often photos have
# it; `photos`: how many have it; `groups`: the number of its group of like codes; `nearest`: others, nearest first.
CODEBOOK = pa.schema(
    [
        pa.field("level", pa.string(), nullable=False),
        pa.field("code", pa.int32(), nullable=False),
        pa.field("uses", pa.int64(), nullable=False),
        pa.field("photos", pa.int64(), nullable=False),
        pa.field("groups", pa.int32(), nullable=False),
        pa.field("nearest", pa.list_(pa.field("item", pa.int32(), nullable=False)), nullable=False),
        pa.field("vector", pa.list_(pa.field("item", pa.float32(), nullable=False)), nullable=False),
    ]
)

# What a night has measured, a value a row; `category`: null for the whole catalogue; `examples`: item_ids, worst first.
MEASURES = pa.schema(
    [
        pa.field("measure", pa.string(), nullable=False),
        pa.field("category", pa.string()),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("n", pa.int64()),
        pa.field("examples", pa.list_(pa.field("item", pa.string(), nullable=False)), nullable=False),
    ]
)

# One row a gate. `limit`: null where it is off; `parent`, `margin`: of a limit that is relative to the parent;
# `allowed`: the reason that a person gave to let it pass once; `note`: why nothing was compared, or there is no value.
VERDICTS = pa.schema(
    [
        pa.field("check", pa.string(), nullable=False),
        pa.field("category", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("limit", pa.float64()),
        pa.field("parent", pa.float64()),
        pa.field("margin", pa.float64()),
        pa.field("passed", pa.bool_(), nullable=False),
        pa.field("allowed", pa.string()),
        pa.field("note", pa.string()),
        pa.field("examples", pa.list_(pa.field("item", pa.string(), nullable=False)), nullable=False),
    ]
)

# Names that an attribute column must not have.
RESERVED = frozenset(
    {
        *PHOTOS.names,
        *ITEMS.names,
        *SEGMENT_PLACE.names,
        *(field.name for field in _PLAN),
        "score",
        "change",
        "first_seen",
    }
)


def plan_schema(attributes: Sequence[pa.Field]) -> pa.Schema:
    """Return the schema of `plan.parquet` for these attribute columns."""
    return _versioned(pa.schema([*PHOTOS, *_PLAN, *attributes]), PLAN_VERSION)


def items_schema(attributes: Sequence[pa.Field]) -> pa.Schema:
    """Return the schema of a release's items table for these attribute columns."""
    return _versioned(pa.schema([*ITEMS, *attributes]), ITEMS_VERSION)


def quarantine_schema() -> pa.Schema:
    """Return the schema of a release's quarantine table."""
    return _versioned(QUARANTINE, QUARANTINE_VERSION)


def changes_schema() -> pa.Schema:
    """Return the schema of a release's table of changes against its parent."""
    return _versioned(CHANGES, CHANGES_VERSION)


def vectors_schema(dim: int) -> pa.Schema:
    """Return the schema of a release's table of one vector an item."""
    return table_schema(pa.schema([_ITEM_ID, pa.field("vector", pa.list_(pa.float32(), dim), nullable=False)]))


def table_schema(fields: pa.Schema) -> pa.Schema:
    """Return the schema of one of a release's further tables, such as SEMANTIC_IDS."""
    return _versioned(fields, TABLES_VERSION)


def outliers_schema() -> pa.Schema:
    """Return the schema of a prior's table of outliers."""
    return _versioned(OUTLIERS, OUTLIERS_VERSION)


def pixels_column(number: int) -> str:
    """Return the name of the column that holds the pixels of the `number`th of a part's transforms."""
    return f"pixels_{number}" if number else "pixels"


def pixels_schema(*sizes: int) -> pa.Schema:
    """Return the schema of a pixels part of photos of so many sizes, or of one that stores no pixels.

    `pixels` holds uint8 RGB, row-major [size, size, 3], and `pixels_1`, ... those of further sizes.
    """
    pixels = [pa.field(pixels_column(number), pa.binary(size * size * 3)) for number, size in enumerate(sizes)]
    return _versioned(pa.schema([*_PIXELS, *pixels, *REFUSAL]), PIXELS_VERSION)


def latents_schema(dim: int, *, log_var: bool, num_codes: int = 0) -> pa.Schema:
    """Return the schema of a latents part: one row a usable photo, in the order of its pixels part.

    mean and log_var are float32 [dim]; codes (VQ models) are int32 [num_codes], row-major [h * w].
    """
    fields = [
        *_PIXELS[:3],
        pa.field("digest", pa.string(), nullable=False),
        pa.field("pixels_row", pa.int32(), nullable=False),  # this photo's row in the pixels part of the same shard
        pa.field("mean", pa.list_(pa.float32(), dim), nullable=False),
    ]
    if log_var:
        fields.append(pa.field("log_var", pa.list_(pa.float32(), dim), nullable=False))
    if num_codes:
        fields.append(pa.field("codes", pa.list_(pa.int32(), num_codes), nullable=False))
    return _versioned(pa.schema(fields), LATENTS_VERSION)


def with_segments(items: pa.Table, segments: pa.DictionaryArray, rows: pa.Array) -> pa.Table:
    """Return an items table with the place of each row in the index: the segment's name, and the row in it."""
    for field, values in zip(SEGMENT_PLACE, (segments, rows), strict=True):
        items = items.append_column(field, values)
    return items


def stored_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema that a table in memory has in Parquet: part names as plain text."""
    return _with_part_names(schema, pa.string())


def part_name_column(name: str | None, rows: int) -> pa.Array:
    """Return a column of one part's name, or of nulls."""
    if name is None:
        return pa.nulls(rows, _PART_NAME)
    return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), rows), pa.array([name], pa.string()))


def held_table(table: pa.Table) -> pa.Table:
    """Return a stored table as it is held in memory: part names as dictionaries."""
    schema = _with_part_names(table.schema, _PART_NAME)
    return table if schema.equals(table.schema) else table.cast(schema)


def attribute_fields(table: pa.Schema) -> list[pa.Field]:
    """Return the attribute columns of a photos, plan or items schema, in order."""
    return [field for field in table if field.name not in RESERVED]


def _with_part_names(schema: pa.Schema, kind: pa.DataType) -> pa.Schema:
    fields = [field.with_type(kind) if field.name in PART_NAMES else field for field in schema]
    return pa.schema(fields, metadata=schema.metadata)


def _versioned(fields: pa.Schema, version: int) -> pa.Schema:
    return fields.with_metadata({b"schema": str(version).encode()})

"""A shard between its two stages: pixels that are there to be encoded, and how they travel from process to process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel

from ..parts import FoundPart, PartFile
from ..schema import CATEGORY, pixels_column
from .decoding import Pixels
from .shards import ShardResult, Unanswered
from .unfit import Unfit

_NUMBER, _FEATURES = "_row", "_features"
_META = b"opened"


@dataclass(frozen=True, slots=True)
class Opened:
    """A shard whose pixels part is written and whose latents are not.

    result: what became of it so far. photos: item_id, uri, token, digest of the n photos to encode. pixels: uint8 RGB
    [m, size, size, 3] of each size the model takes, in which the photos lie at `places` [n]. rows: theirs in the pixels
    part [n]. categories: theirs where the model is told them. unfit: photos that get no latents. usable: photos that
    the latents part holds or refuses. features: in place of pixels, of which there are none then, what the model's
    teacher has said of photos before, float32 [m, D].
    """

    result: ShardResult
    latents_name: str
    latents_key: str
    photos: pa.Table
    pixels: list[Pixels]
    places: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    categories: list[str | None] | None
    unfit: tuple[Unfit, ...]
    usable: int
    features: npt.NDArray[np.float32] | None = None

    def pack(self) -> pa.Array:
        """Return it as an array of one value, large_binary [1]: no block of one row is ever cut or mixed."""
        columns = {name: self.photos[name] for name in self.photos.column_names}
        columns[_NUMBER] = pa.array(self.rows, pa.int64())
        if self.categories is not None:
            columns[CATEGORY.name] = pa.array(self.categories, CATEGORY.type)
        for number, pixels in enumerate(self.pixels):
            kept = np.ascontiguousarray(pixels[self.places])
            kind = pa.binary(int(np.prod(pixels.shape[1:])))
            columns[pixels_column(number)] = pa.Array.from_buffers(kind, len(kept), [None, pa.py_buffer(kept)])
        if self.features is not None:
            kept = np.ascontiguousarray(self.features[self.places], np.float32)
            columns[_FEATURES] = pa.FixedSizeListArray.from_arrays(pa.array(kept.reshape(-1)), kept.shape[1])
        said = {
            "result": text_of(self.result),
            "latents_name": self.latents_name,
            "latents_key": self.latents_key,
            "unfit": [[one.pixels_row, one.reason, one.detail] for one in self.unfit],
            "usable": self.usable,
            "sides": [pixels.shape[1] for pixels in self.pixels],
        }
        return pack_table(pa.table(columns).replace_schema_metadata({_META: json.dumps(said).encode()}))

    @staticmethod
    def unpack(packed: pa.Scalar) -> Opened:
        """Return what `pack` packed; its pixels lie where the value does, without a copy."""
        table = unpack_table(packed)
        said = json.loads(table.schema.metadata[_META])
        pixels = [_pixels(table[pixels_column(number)], side) for number, side in enumerate(said["sides"])]
        features = None
        if _FEATURES in table.column_names:
            column = table[_FEATURES].combine_chunks()
            features = np.asarray(column.flatten()).reshape(len(column), column.type.list_size)
        categories = table[CATEGORY.name].to_pylist() if CATEGORY.name in table.column_names else None
        return Opened(
            result=result_of(said["result"]),
            latents_name=said["latents_name"],
            latents_key=said["latents_key"],
            photos=table.select(["item_id", "uri", "token", "digest"]),
            pixels=pixels,
            places=np.arange(table.num_rows, dtype=np.int64),
            rows=np.asarray(table[_NUMBER].to_numpy(), np.int64),
            categories=categories,
            unfit=tuple(Unfit(*one) for one in said["unfit"]),
            usable=said["usable"],
            features=features,
        )


def pack_table(table: pa.Table) -> pa.Array:
    """Return a table as an array of one value, large_binary [1]."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    data = sink.getvalue()
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(np.array([0, data.size], np.int64)), data])


def unpack_table(packed: pa.Scalar) -> pa.Table:
    """Return the table that `pack_table` packed, where the value lies."""
    return pa.ipc.open_stream(packed.as_buffer()).read_all().combine_chunks()


def text_of(result: ShardResult) -> str:
    """Return a result as JSON."""
    fields = {name: getattr(result, name) for name in ShardResult.__slots__}
    return json.dumps({n: v.model_dump() if isinstance(v, BaseModel) else v for n, v in fields.items()})


def result_of(text: str) -> ShardResult:
    """Return the result that `text_of` wrote."""
    fields: dict[str, Any] = json.loads(text)
    for name in ("pixels", "latents"):
        if (found := fields[name]) is not None:
            fields[name] = (PartFile if "sha256" in found else FoundPart).model_validate(found)
    fields["said"] = tuple(fields["said"])
    fields["unanswered"] = tuple(Unanswered(*photo) for photo in fields["unanswered"])
    return ShardResult(**fields)


def _pixels(column: pa.ChunkedArray, side: int) -> Pixels:
    if not len(column):
        return np.empty((0, side, side, 3), np.uint8)
    chunk = column.chunk(0)
    width = side * side * 3
    flat = np.frombuffer(chunk.buffers()[1], np.uint8, len(chunk) * width, chunk.offset * width)
    return flat.reshape(len(chunk), side, side, 3)

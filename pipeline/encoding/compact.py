"""Rewriting latents parts of which few rows still live, and merging parts when a release names too many.

Nothing is computed again: the latents of living rows are copied into new parts, and items names the new places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..catalogue.ordering import Positions, as_numpy, ranks, take_rows
from ..errors import IntegrityError
from ..parts import PartFile, latents_part_name, part_key, read_part, write_part
from ..schema import CATEGORY, LATENTS_VERSION
from ..storage import Store
from .shards import PART_BYTES
from .unfit import without_unfit

_COMPACTED = "compacted"  # stands in the key for the pixels part, of which a rewritten part has many


@dataclass(frozen=True, slots=True)
class _Living:
    """A latents part that items names: its file, and the rows of items that live in it."""

    part: PartFile
    rows: Positions


def compact(
    store: Store,
    items: pa.Table,
    parts: Mapping[str, PartFile],
    *,
    model_id: str,
    precision: str,
    below: float,
    max_parts: int,
    category: str | None = None,
) -> tuple[pa.Table, dict[str, PartFile]]:
    """Return items with rewritten places and the new parts by name; the same items when there is nothing to rewrite.

    parts: every part that items names. A part is rewritten when the share of its rows that live is under `below`; when
    more than max_parts would still be named, the smallest are merged until half as many are, so that this does not
    happen every night. category: the column of items that a conditional model was told. Raises IntegrityError when a
    part holds other photos than items says.
    """
    living = _living(items, parts)
    chosen = _choose(living, below=below, max_parts=max_parts)
    made: dict[str, PartFile] = {}
    codes, names = ranks(items["latents_part"])
    places = as_numpy(items["latents_row"]).copy()
    for group in _groups(chosen):
        rows = np.sort(np.concatenate([member.rows for member in group]))
        table = _copied(store, items, rows, group)
        photos = take_rows(items.select(["item_id", "uri", "token"]), rows)
        labels = None if category is None else _labels(items, category, rows)
        key = part_key(LATENTS_VERSION, model_id, precision, photos, pixels_part=_COMPACTED, labels=labels)
        part = write_part(store, latents_part_name(model_id, key), table, key)
        made[part.name] = part
        codes[rows] = len(names)
        names.append(part.name)
        places[rows] = np.arange(len(rows))
    if not made:
        return items, {}
    named = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(names, pa.string())).cast(pa.string())
    for name, column in (("latents_part", named), ("latents_row", pa.array(places, pa.int32()))):
        index = items.schema.get_field_index(name)
        items = items.set_column(index, items.schema.field(index), column)
    return items, made


def _living(items: pa.Table, parts: Mapping[str, PartFile]) -> list[_Living]:
    codes, names = ranks(items["latents_part"])
    order = np.argsort(codes, kind="stable")
    found, first = np.unique(codes[order], return_index=True)
    bounds = np.append(first, len(order)).tolist()
    spans = zip(found.tolist(), bounds[:-1], bounds[1:], strict=True)
    return [_Living(parts[names[code]], order[start:end].astype(np.int64)) for code, start, end in spans]


def _choose(living: Sequence[_Living], *, below: float, max_parts: int) -> list[_Living]:
    """Return the parts to rewrite, in name order."""
    chosen = {member.part.name: member for member in living if len(member.rows) < below * member.part.rows}
    left = sorted((m for m in living if m.part.name not in chosen), key=lambda m: (len(m.rows), m.part.name))
    if len(left) + len(chosen) > max_parts:
        spare = len(left) + len(chosen) - max(1, max_parts // 2)
        chosen |= {member.part.name: member for member in left[:spare]}
    return [chosen[name] for name in sorted(chosen)]


def _groups(chosen: Sequence[_Living]) -> list[list[_Living]]:
    """Return the parts cut into groups whose living rows fit one part; each old part is in exactly one."""
    groups: list[list[_Living]] = []
    size = 0
    for member in chosen:
        # Files are compressed: four times their size is a safe guess of what their living rows take.
        share = 4 * member.part.bytes * len(member.rows) // max(1, member.part.rows)
        if not groups or size + share > PART_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(member)
        size += share
    return groups


def _copied(store: Store, items: pa.Table, rows: Positions, group: Sequence[_Living]) -> pa.Table:
    """Return the latents of these rows of items, in their order, read from the old parts."""
    places = as_numpy(items["latents_row"]).astype(np.int64)
    tables, order = [], []
    for member in group:
        tables.append(take_rows(read_part(store, member.part.name), places[member.rows]))
        order.append(member.rows)
    copied = take_rows(
        without_unfit(pa.concat_tables(tables)), np.argsort(np.concatenate(order), kind="stable").astype(np.int64)
    )
    wanted = take_rows(items.select(["item_id", "uri", "token"]), rows)
    for name in wanted.column_names:
        if not copied[name].combine_chunks().equals(wanted[name].combine_chunks()):
            raise IntegrityError(f"the parts of {group[0].part.name} hold other photos than items says; run a new run")
    pixels = pa.array(_pixels_rows(items, rows), pa.int32())
    return copied.set_column(copied.schema.get_field_index("pixels_row"), copied.schema.field("pixels_row"), pixels)


def _labels(items: pa.Table, category: str, rows: Positions) -> list[str | None]:
    # In the key as in that of a fresh part: the same photos under other categories have other latents.
    return list(take_rows(items.select([category]), rows)[category].cast(CATEGORY.type).to_pylist())


def _pixels_rows(items: pa.Table, rows: Positions) -> npt.NDArray[np.int32]:
    """Return the rows in the pixels parts that items names, -1 where those have expired."""
    return as_numpy(items["pixels_row"], missing=-1).astype(np.int32)[rows]

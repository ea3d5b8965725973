"""Rewriting latents parts of which few rows still live, and merging parts when a release names too many.

Nothing is computed again: the latents of living rows are copied into new parts, and items names the new places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..errors import IntegrityError
from ..ordering import Positions, as_numpy, ranks, take_rows
from ..parts import FoundPart, PartFile, hashed_part, latents_part_name, part_key, read_part, write_part
from ..schema import CATEGORY, LATENTS_VERSION
from ..storage import Store
from .shards import PART_BYTES, in_threads
from .unfit import without_unfit

_FULL = PART_BYTES // 2  # two parts below it fit into one
_EMPTY = 4096  # bytes of a part without rows, about
_COMPACTED = "compacted"  # stands in the key for the pixels part, of which a rewritten part has many


@dataclass(frozen=True, slots=True)
class _Living:
    """A latents part that items names: its file, and the rows of items that live in it, ascending."""

    part: FoundPart
    rows: Positions

    @property
    def size(self) -> int:
        """Return what the living rows take, in bytes, at most."""
        # Files are compressed: four times their size, without what any file has, is a safe guess.
        return 4 * max(0, self.part.bytes - _EMPTY) * len(self.rows) // max(1, self.part.rows)


def compact(
    store: Store,
    items: pa.Table,
    parts: Mapping[str, FoundPart],
    *,
    model_id: str,
    precision: str,
    below: float,
    max_parts: int,
    category: str | None = None,
) -> tuple[pa.Table, dict[str, PartFile]]:
    """Return items with rewritten places and the new parts by name; the same items when there is nothing to rewrite.

    parts: every part that items names. A part is rewritten when the share of its rows that live is under `below`; when
    more than max_parts would still be named, small ones are merged, as `_choose` says. What it costs grows with the
    rows that are rewritten, and a night after one that rewrote finds nothing to do. category: the column of items that
    a conditional model was told. Raises IntegrityError when a part holds other photos than items says.
    """
    codes, names = ranks(items["latents_part"])
    chosen = _choose(_living(codes, names, parts), below=below, max_parts=max_parts)
    if not chosen:
        return items, {}
    made: dict[str, PartFile] = {}
    places = as_numpy(items["latents_row"]).copy()
    told = [] if category is None else [category]
    wanted = items.select(list(dict.fromkeys(["item_id", "uri", "token", "latents_row", "pixels_row", *told])))
    for group in _groups(chosen):
        rows = np.sort(np.concatenate([member.rows for member in group]))
        photos = take_rows(wanted, rows)
        table = _copied(store, photos, places, rows, group)
        labels = None if category is None else _labels(photos, category)
        key = part_key(LATENTS_VERSION, model_id, precision, photos, pixels_part=_COMPACTED, labels=labels)
        part = write_part(store, latents_part_name(model_id, key), table, key)
        made[part.name] = part
        codes[rows] = len(names)
        names.append(part.name)
        places[rows] = np.arange(len(rows))
    named = pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(names, pa.string()))
    for name, column in (("latents_part", named), ("latents_row", pa.array(places, pa.int32()))):
        index = items.schema.get_field_index(name)
        items = items.set_column(index, items.schema.field(index), column)
    return items, made


def hash_parts(store: Store, items: pa.Table, parts: Mapping[str, FoundPart]) -> dict[str, PartFile]:
    """Return the parts that items names, by name, each with its digest; those that only were found are read for it.

    Raises IntegrityError when one has been deleted or changed since.
    """
    named = [parts[name] for name in ranks(items["latents_part"])[1] if name in parts]
    return {part.name: part for part in in_threads(lambda part: hashed_part(store, part), named)}


def _living(codes: Positions, names: Sequence[str], parts: Mapping[str, FoundPart]) -> list[_Living]:
    order = np.argsort(codes, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=len(names)))]).tolist()
    spans = zip(names, bounds[:-1], bounds[1:], strict=True)
    return [_Living(parts[name], order[start:end].astype(np.int64)) for name, start, end in spans]


def _choose(living: Sequence[_Living], *, below: float, max_parts: int) -> list[_Living]:
    """Return the parts to rewrite, in name order.

    To save parts only small ones are merged, the smallest first, until half of max_parts are named: a full part would
    only become another full part, night after night. Where the full ones alone are more than that, half of max_parts
    small ones may gather beside them before they are merged, so that each photo is copied about once.
    """
    chosen = {member.part.name: member for member in living if len(member.rows) < below * member.part.rows}
    left = [member for member in living if member.part.name not in chosen]
    small = sorted((m for m in left if m.size < _FULL), key=lambda m: (len(m.rows), m.part.name))
    half, full = max(1, max_parts // 2), len(left) - len(small)
    if len(small) + len(chosen) > max(max_parts - full, half):
        chosen |= {member.part.name: member for member in small[: max(2, len(living) - max(half, full))]}
    return [chosen[name] for name in sorted(chosen)]


def _groups(chosen: Sequence[_Living]) -> list[list[_Living]]:
    """Return the parts cut into groups whose living rows fit one part; each old part is in exactly one.

    The smallest come first, so that every group but the last makes a part that counts as full.
    """
    groups: list[list[_Living]] = []
    size = 0
    for member in sorted(chosen, key=lambda one: one.size):
        if not groups or size + member.size > PART_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(member)
        size += member.size
    return groups


def _copied(
    store: Store, photos: pa.Table, places: npt.NDArray[np.int32], rows: Positions, group: Sequence[_Living]
) -> pa.Table:
    """Return the latents of these rows of items, in their order, read from the old parts.

    photos: those rows of items; places: the latents_row of every row of items.
    """
    tables = [take_rows(read_part(store, member.part.name), places[member.rows].astype(np.int64)) for member in group]
    order = np.argsort(np.concatenate([member.rows for member in group]), kind="stable").astype(np.int64)
    copied = take_rows(without_unfit(pa.concat_tables(tables)), order)
    for name in ("item_id", "uri", "token"):
        if not copied[name].combine_chunks().equals(photos[name].combine_chunks()):
            raise IntegrityError(f"the parts of {group[0].part.name} hold other photos than items says; run a new run")
    # -1 where the pixels have expired
    pixels = pa.array(as_numpy(photos["pixels_row"], missing=-1).astype(np.int32), pa.int32())
    return copied.set_column(copied.schema.get_field_index("pixels_row"), copied.schema.field("pixels_row"), pixels)


def _labels(photos: pa.Table, category: str) -> list[str | None]:
    # In the key as in that of a fresh part: the same photos under other categories have other latents.
    return list(photos[category].cast(CATEGORY.type).to_pylist())

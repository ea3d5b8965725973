"""The codebook of a release's VQ model as a table: how often each code is used, its group, and the codes next to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isqrt

import numpy as np
import pyarrow as pa

from ..errors import IntegrityError
from ..index.gather import part_rows
from ..index.latents import Float32, Rows
from ..ordering import ranks
from ..parts import read_part
from ..schema import CODEBOOK, table_schema
from ..storage import Store
from .config import CodebookTableConfig
from .quantizer import k_means

NEAREST = 8  # codes listed beside a code
_READERS = 8  # parts whose codes are in memory at a time
_PAIRS = 1 << 23  # float64 distances held at a time


@dataclass(frozen=True, slots=True)
class CodeLevel:
    """A codebook of a VQ model. name: of the level, "" of only one; vectors: float32 [codes, d] in their order; cells:
    which of a photo's codes are of this level, int64."""

    name: str
    vectors: Float32
    cells: Rows


@dataclass(frozen=True, slots=True)
class CodebookFound:
    """The table `codebook` and the measures of its groups."""

    table: pa.Table
    measures: dict[str, float]


def code_groups(vectors: Float32, groups: int | None, *, seed: int) -> Rows:
    """Return the group of every code, int64 [codes]: seeded k-means of their vectors [codes, d].

    groups: how many; None: the square root of the number of codes. Fewer where there are fewer different vectors.
    Groups are numbered by their first code, so that equal groups have equal numbers.
    """
    wanted = isqrt(len(vectors)) if groups is None else groups
    different = len(np.unique(vectors + np.float32(0.0), axis=0))
    generator = np.random.default_rng(seed)
    centres = k_means(vectors.astype(np.float32), min(wanted, different), generator, level=1)
    nearest = np.concatenate([block.argmin(axis=1) for block in _distances(vectors, centres)])
    _, first, numbers = np.unique(nearest, return_index=True, return_inverse=True)
    return first.argsort().argsort()[numbers].astype(np.int64)


def near_codes(vectors: Float32) -> Rows:
    """Return the other codes nearest to every code, nearest first, int64 [codes, up to NEAREST]."""
    count = min(NEAREST, len(vectors) - 1)
    found, start = [], 0
    for block in _distances(vectors, vectors):
        own = np.arange(len(block))
        block[own, own + start] = np.inf
        found.append(block.argsort(axis=1, kind="stable")[:, :count])
        start += len(block)
    return np.concatenate(found)


def codebook_table(
    store: Store, items: pa.Table, levels: Sequence[CodeLevel], asked: CodebookTableConfig, category: str | None
) -> CodebookFound:
    """Return the table `codebook` of a release's photos: level, code, uses, photos, groups, nearest, vector.

    items: one row a photo. category: the column that the groups are measured by; without one there are no measures:
    code_group_purity, the share of uses whose photo is of the commonest category of its code's group, and
    code_group_chance, the same without groups. One pass over the codes, part by part. Raises IntegrityError for codes
    that the model has not.
    """
    grouped = [code_groups(level.vectors, asked.groups, seed=asked.seed) for level in levels]
    known = category is not None and category in items.column_names
    named = ranks(items[category].cast(pa.string()))[0] if known else np.full(items.num_rows, -1, np.int64)
    categories = int(named.max(initial=-1)) + 1
    uses = [np.zeros(len(level.vectors), np.int64) for level in levels]
    photos = [np.zeros(len(level.vectors), np.int64) for level in levels]
    counts = [np.zeros((int(groups.max()) + 1, categories), np.int64) for groups in grouped]
    for rows, codes in _codes_of(store, items):
        for number, level in enumerate(levels):
            mine = codes[:, level.cells].astype(np.int64)
            if len(mine) and (mine.min() < 0 or mine.max() >= len(level.vectors)):
                raise IntegrityError(f"latents hold the code {int(mine.max())}; the model has {len(level.vectors)}")
            uses[number] += np.bincount(mine.reshape(-1), minlength=len(level.vectors))
            photos[number] += _photos_with(mine, len(level.vectors))
            told = named[rows] >= 0
            pairs = grouped[number][mine[told]] * categories + named[rows][told][:, None]
            counts[number] += np.bincount(pairs.reshape(-1), minlength=counts[number].size).reshape(
                counts[number].shape
            )
    tables = [_rows(level, uses[number], photos[number], grouped[number]) for number, level in enumerate(levels)]
    measures: dict[str, float] = {}
    for level, counted in zip(levels, counts, strict=True):
        if counted.sum():
            end = f"_{level.name}" if level.name else ""
            measures[f"code_group_purity{end}"] = float(counted.max(axis=1).sum() / counted.sum())
            measures[f"code_group_chance{end}"] = float(counted.sum(axis=0).max() / counted.sum())
    return CodebookFound(pa.concat_tables(tables), measures)


def _codes_of(store: Store, items: pa.Table) -> Iterator[tuple[Rows, np.ndarray]]:
    """Yield (rows of items, their codes int32 [n, cells]), a latents part at a time."""
    numbers, names = ranks(items["latents_part"])
    order = np.argsort(numbers, kind="stable")
    ends = np.cumsum(np.bincount(numbers, minlength=len(names))) if names else np.empty(0, np.int64)
    pieces = list(zip(names, np.split(order, ends[:-1]), strict=True)) if names else []
    places = items["latents_row"].to_numpy().astype(np.int64)

    def read(piece: tuple[str, Rows]) -> tuple[Rows, np.ndarray]:
        part, rows = piece
        codes = part_rows(read_part(store, part, ["codes"]), "codes")
        if places[rows].max() >= len(codes):
            raise IntegrityError(f"{part} has {len(codes)} rows, but items names its row {places[rows].max()}")
        return rows, codes[places[rows]]

    with ThreadPoolExecutor(_READERS, thread_name_prefix="codes") as pool:
        for start in range(0, len(pieces), _READERS):
            yield from pool.map(read, pieces[start : start + _READERS])


def _photos_with(codes: Rows, size: int) -> Rows:
    """Return how many photos, rows of codes [n, cells], have each code at least once, int64 [size]."""
    ordered = np.sort(codes, axis=1)
    first = np.ones(ordered.shape, np.bool_)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return np.bincount(ordered[first], minlength=size)


def _rows(level: CodeLevel, uses: Rows, photos: Rows, groups: Rows) -> pa.Table:
    size = len(level.vectors)
    columns = {
        "level": [level.name] * size,
        "code": np.arange(size, dtype=np.int32),
        "uses": uses,
        "photos": photos,
        "groups": groups.astype(np.int32),
        "nearest": near_codes(level.vectors).astype(np.int32).tolist(),
        "vector": level.vectors.tolist(),
    }
    schema = table_schema(CODEBOOK)
    return pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def _distances(vectors: Float32, others: Float32) -> Iterator[np.ndarray]:
    """Yield squared distances float64 [some vectors, others] less what is the same for all of a row."""
    wide = others.astype(np.float64)
    lengths = np.sum(wide * wide, axis=1)
    step = max(1, _PAIRS // len(others))
    for start in range(0, len(vectors), step):
        yield lengths - 2.0 * (vectors[start : start + step].astype(np.float64) @ wide.T)

"""The codebook of a release's VQ model as a table: how often each code is used, its group, and the codes next to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import isqrt

import numpy as np
import pyarrow as pa

from ..errors import IntegrityError
from ..index.gather import part_rows
from ..index.latents import Float32, Rows
from ..index.segments import TASK_BYTES
from ..mapping import Scratch, mapped_in_turn
from ..ordering import as_numpy, ranks
from ..parts import read_part
from ..schema import CODEBOOK, table_schema
from ..storage import Store
from .config import CodebookTableConfig
from .quantizer import k_means

NEAREST = 8  # codes listed beside a code
_READERS = 8  # parts whose codes are in memory at a time
_PAIRS = 1 << 23  # float64 distances held at a time
_TASK_PHOTOS = 1 << 18  # photos whose codes a task counts, about
_PHOTO_BYTES = 1 << 11  # and what it holds of each of some of them


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
    store: Store,
    items: pa.Table,
    levels: Sequence[CodeLevel],
    asked: CodebookTableConfig,
    category: str | None,
    *,
    run: str,
) -> CodebookFound:
    """Return the table `codebook` of a release's photos: level, code, uses, photos, groups, nearest, vector.

    items: one row a photo. category: the column that the groups are measured by; without one there are no measures:
    code_group_purity, the share of uses whose photo is of the commonest category of its code's group, and
    code_group_chance, the same without groups. One pass over the codes, part by part, by Ray tasks of the run where
    there are many photos. Raises IntegrityError for codes that the model has not.
    """
    grouped = tuple(code_groups(level.vectors, asked.groups, seed=asked.seed) for level in levels)
    known = category is not None and category in items.column_names
    named = ranks(items[category].cast(pa.string()))[0] if known else np.full(items.num_rows, -1, np.int64)
    shared = _Asked(store, tuple(levels), grouped, int(named.max(initial=-1)) + 1)
    found = _none(shared)
    parts = _Parts.of(items)
    scratch = Scratch.of_run(store, run, len(parts.tasks))
    for counts in mapped_in_turn(
        _counted,
        shared,
        (parts.photos(task, named) for task in parts.tasks),
        scratch=scratch,
        task_bytes=TASK_BYTES + _PHOTO_BYTES * _TASK_PHOTOS,
        while_doing="counting the codes of photos",
    ):
        found.add(counts)
    tables = [_rows(level, found.uses[at], found.photos[at], grouped[at]) for at, level in enumerate(levels)]
    measures: dict[str, float] = {}
    for level, counted in zip(levels, found.pairs, strict=True):
        if counted.sum():
            end = f"_{level.name}" if level.name else ""
            measures[f"code_group_purity{end}"] = float(counted.max(axis=1).sum() / counted.sum())
            measures[f"code_group_chance{end}"] = float(counted.sum(axis=0).max() / counted.sum())
    return CodebookFound(pa.concat_tables(tables), measures)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What tasks share. groups: of the codes of each level; categories: how many there are."""

    store: Store
    levels: tuple[CodeLevel, ...]
    groups: tuple[Rows, ...]
    categories: int


@dataclass(frozen=True, slots=True)
class _Photos:
    """Photos of a part of latents. rows: of the part, int32; named: int32, each photo's category, -1 for none."""

    part: str
    rows: np.ndarray
    named: np.ndarray


@dataclass(frozen=True, slots=True)
class _Parts:
    """Where photos lie. names: of parts; order: the photos by part, ends: of each part among them; tasks: ranges of
    parts of about _TASK_PHOTOS photos; rows: of each photo in its part."""

    names: list[str]
    order: Rows
    ends: Rows
    tasks: list[range]
    rows: np.ndarray

    @classmethod
    def of(cls, items: pa.Table) -> _Parts:
        numbers, names = ranks(items["latents_part"])
        ends = np.cumsum(np.bincount(numbers, minlength=len(names)))
        firsts = np.searchsorted(ends, np.arange(0, items.num_rows, _TASK_PHOTOS), side="right")
        cuts = [*np.unique(firsts).tolist(), len(names)]
        tasks = [range(start, stop) for start, stop in pairwise(cuts)]
        return cls(names, np.argsort(numbers, kind="stable"), ends, tasks, as_numpy(items["latents_row"]))

    def photos(self, parts: range, named: Rows) -> list[_Photos]:
        """Return the photos of some parts. named: of all photos."""
        found = []
        for number in parts:
            mine = self.order[self.ends[number - 1] if number else 0 : self.ends[number]]
            found.append(_Photos(self.names[number], self.rows[mine].astype(np.int32), named[mine].astype(np.int32)))
        return found


@dataclass(frozen=True, slots=True)
class _Counts:
    """Of each level int64 [codes] how often codes are used and by how many photos, and int64 [groups, categories]."""

    uses: tuple[Rows, ...]
    photos: tuple[Rows, ...]
    pairs: tuple[Rows, ...]

    def add(self, other: _Counts) -> None:
        """Count what others have counted too."""
        for name in ("uses", "photos", "pairs"):
            for mine, theirs in zip(getattr(self, name), getattr(other, name), strict=True):
                np.add(mine, theirs, out=mine)


def _none(asked: _Asked) -> _Counts:
    uses, photos = (tuple(np.zeros(len(level.vectors), np.int64) for level in asked.levels) for _ in range(2))
    pairs = tuple(np.zeros((int(groups.max()) + 1, asked.categories), np.int64) for groups in asked.groups)
    return _Counts(uses, photos, pairs)


def _counted(asked: _Asked, pieces: list[_Photos]) -> _Counts:
    """Return the counts of some parts' photos."""
    found = _none(asked)
    with ThreadPoolExecutor(_READERS, thread_name_prefix="codes") as pool:
        for start in range(0, len(pieces), _READERS):
            some = pieces[start : start + _READERS]
            for piece, codes in zip(some, pool.map(partial(_codes_of, asked.store), some), strict=True):
                _count(asked, piece.named, codes, found)
    return found


def _codes_of(store: Store, piece: _Photos) -> np.ndarray:
    """Return the codes of photos, int32 [n, cells]."""
    codes = part_rows(read_part(store, piece.part, ["codes"]), "codes")
    if piece.rows.max() >= len(codes):
        raise IntegrityError(f"{piece.part} has {len(codes)} rows, but items names its row {piece.rows.max()}")
    mine: np.ndarray = codes[piece.rows]
    return mine


def _count(asked: _Asked, named: np.ndarray, codes: np.ndarray, found: _Counts) -> None:
    """Count the codes of photos. named: the number of each photo's category, -1 for none."""
    told = named >= 0
    for number, level in enumerate(asked.levels):
        mine = codes[:, level.cells].astype(np.int64)
        if len(mine) and (mine.min() < 0 or mine.max() >= len(level.vectors)):
            raise IntegrityError(f"latents hold the code {int(mine.max())}; the model has {len(level.vectors)}")
        found.uses[number][:] += np.bincount(mine.reshape(-1), minlength=len(level.vectors))
        found.photos[number][:] += _photos_with(mine, len(level.vectors))
        pairs = asked.groups[number][mine[told]] * asked.categories + named[told][:, None]
        counts = found.pairs[number]
        counts += np.bincount(pairs.reshape(-1), minlength=counts.size).reshape(counts.shape)


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

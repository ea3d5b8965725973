"""The tables of one night's release beside its items, made from its latents and from what was published before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import NotFound
from ..index.latents import Float32, Rows
from ..index.sids import FACT
from ..index.vector_lists import as_lists
from ..ordering import as_numpy, joined, take_column
from ..release import Manifest, ReleaseFile, read_manifest, read_table
from ..release.tables import ranged_files, read_files, table_files
from ..schema import SID_RETIRED, table_schema
from ..storage import Store
from .code_map import map_table, renumbered
from .codebook_files import HeldCodebooks, codebooks_name, find_codebooks, keep_codebooks
from .codebook_table import CodeLevel, codebook_table
from .coded import Coded, coded, norms_of, recoded
from .config import SemanticIdsConfig, TablesConfig
from .neighbours import neighbour_tables
from .quantizer import Codebooks, fit_codebooks, some_vectors
from .returned import with_returned
from .sid_measures import neighbour_measures, purity_measures, usage_measures
from .sid_tables import SidTables
from .slots import SLOT, Given, Slots, give_slots, places_among
from .tonight import Night
from .vectors import ItemVectors, night_vectors

SID_MOVES = "sid_moves"  # the measure that must be 0

# Returns codebooks of a method that needs a training, made of a sample of item vectors.
TrainCodebooks = Callable[[Float32, SemanticIdsConfig], Codebooks]


@dataclass(frozen=True, slots=True)
class Makers:
    """What tables need of a model, which is asked for it where they do. train: where the bundle has no codebooks yet
    and their method is a training; code_levels: the model's codebooks, none of a model without codes."""

    train: TrainCodebooks
    code_levels: Callable[[], Sequence[CodeLevel]]


@dataclass(frozen=True, slots=True)
class FurtherTables:
    """files: by role, as `write_release` takes them. measures: by name. inputs: what the manifest says of them.

    shown: by role those of the tables that the report shows something of.
    """

    files: dict[str, Iterator[ReleaseFile] | tuple[bytes, str, int | None]] = field(default_factory=dict)
    measures: dict[str, float] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    shown: dict[str, pa.Table] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Published:
    """Semantic IDs that are out: of a release, its slots under the levels of its codebooks; epoch: which vocabulary."""

    manifest: Manifest
    epoch: int
    digest: str
    sizes: tuple[int, ...]
    slots: Slots


def further_tables(
    store: Store, night: Night, tables: TablesConfig, semantic_ids: SemanticIdsConfig | None, makers: Makers
) -> FurtherTables:
    """Return the tables that are asked for; none where nothing is.

    Semantic IDs are those of the last release before that had some, as far as its codebooks are tonight's. Raises
    ConfigError for codebooks larger than the catalogue and for a table of codes that the model has not, IntegrityError
    for damaged ones, InputError where no code has room for an item.
    """
    made = FurtherTables()
    if semantic_ids is None and not tables.asked:
        return made
    if tables.codebook is not None:
        held = codebook_table(store, night.items, makers.code_levels(), tables.codebook, night.category, run=night.run)
        made.files["codebook"] = table_files(held.table)
        made.measures.update(held.measures)
    if tables.returned:  # in the place of the table that says only what changed since the parent
        made.files["changes"] = table_files(with_returned(store, night), looked_up=True)
    if tables.neighbours:
        near = neighbour_tables(store, night, tables.neighbours)
        made.files.update(near.files)
        made.measures.update(near.measures)
    if not tables.vectors and semantic_ids is None:
        return made
    vectors = night_vectors(store, night)
    made.files["vectors"] = vectors.files
    if semantic_ids is not None:
        _semantic_ids(store, night, semantic_ids, makers.train, vectors.found, made)
    return made


def _semantic_ids(
    store: Store,
    night: Night,
    config: SemanticIdsConfig,
    train: TrainCodebooks,
    found: ItemVectors,
    made: FurtherTables,
) -> None:
    before = _published(store, night.parent)
    coding = _coding(store, night, config, train, found, before)
    held, nearest = coding.held, coding.nearest
    books, sizes = held.books, held.books.sizes
    same = before is not None and before.digest == held.digest
    epoch = 1 if before is None else before.epoch + (not same)
    slots = before.slots if before is not None and same else Slots.none(len(sizes))
    given = give_slots(found.item_ids, nearest.codes, found.vectors, books, slots, config.capacity)
    norms = norms_of(found.vectors, nearest, given.codes, books)
    ids = SidTables(
        found.item_ids, given, nearest.codes, partial(_since, given.kept, slots.since, night.run), norms, sizes
    )
    made.shown["semantic_ids"] = ids.shown()
    made.files["semantic_ids"] = ids.files()
    made.files["sid_items"] = ids.files_of_items()
    made.files["sid_retired"] = _retired(slots, given, night.run)
    made.files["sid_codebooks"] = (held.data, ".safetensors", None)
    carried = None if before is None or not same else _carried_map(store, before.manifest)
    if before is not None and not same:
        both = _in_both(before.slots, found.item_ids)
        carried = map_table(before.slots.codes[both.old], given.codes[both.new], before.sizes, sizes)
    if carried is not None:
        made.files["sid_map"] = table_files(carried)
    made.measures.update(usage_measures(given.codes, sizes))
    if night.category is not None and night.category in night.items.column_names:
        made.measures.update(purity_measures(given.codes, take_column(night.items[night.category], found.first_rows)))
    made.measures.update(neighbour_measures(given.codes, found.vectors, metric=night.metric, seed=config.seed))
    if before is not None and same and before.manifest == night.parent:
        made.measures[SID_MOVES] = float(moves(before.slots, given, found.item_ids, night.changes))
    made.inputs[FACT] = {"epoch": epoch, "codebooks": held.digest, "levels": list(sizes)}


def _published(store: Store, manifest: Manifest | None) -> _Published | None:
    """Return the semantic IDs of the last release that had some, of a release and those before it."""
    while manifest is not None and FACT not in manifest.inputs:
        if manifest.parent is None:
            return None
        try:
            manifest = read_manifest(store, manifest.parent)
        except NotFound:  # expired: whoever read its codes is as long gone
            return None
    if manifest is None:
        return None
    fact = manifest.inputs[FACT]
    sizes = tuple(fact["levels"])
    living = read_files(store, manifest, "semantic_ids", columns=SLOT)
    retired = read_files(store, manifest, "sid_retired", columns=[*SLOT, "retired"])
    slots = Slots.of_tables(chain(living, retired), len(sizes))
    return _Published(manifest, fact["epoch"], fact["codebooks"], sizes, slots)


@dataclass(frozen=True, slots=True)
class _Coding:
    """A bundle's codebooks, and the codes that they give the night's items."""

    held: HeldCodebooks
    nearest: Coded


def _coding(
    store: Store,
    night: Night,
    config: SemanticIdsConfig,
    train: TrainCodebooks,
    found: ItemVectors,
    before: _Published | None,
) -> _Coding:
    """Return the bundle's codebooks with the codes of all items, each encoded once.

    Whoever fits them first decides. New ones take the numbers of those before.
    """
    name = codebooks_name(night.model_id, config, _geometry(night), night.sample)
    held = find_codebooks(store, name)
    if held is not None:
        return _Coding(held, coded(store, night.run, found.vectors, held.books))
    if config.method == "rqvae":
        generator = np.random.default_rng(config.seed)
        books = train(some_vectors(found.vectors, config.levels, generator), config)
    else:
        books = fit_codebooks(found.vectors, config.levels, seed=config.seed)
    nearest = coded(store, night.run, found.vectors, books)
    if before is not None:
        both = _in_both(before.slots, found.item_ids)
        placed = renumbered(books, before.slots.codes[both.old], nearest.codes[both.new], before.sizes)
        books, nearest = placed.books, recoded(found.vectors, nearest, placed)
    facts = {"method": config.method, "model_id": night.model_id, "metric": night.metric, "seed": str(config.seed)}
    held = keep_codebooks(store, name, books, facts)
    if held.books is not books:  # somebody else's, of other vectors
        nearest = coded(store, night.run, found.vectors, held.books)
    return _Coding(held, nearest)


def _geometry(night: Night) -> str:
    """Return what codebooks were fitted in: the metric, and the space where it is not the model's own."""
    return night.metric if night.space is None else f"{night.metric}@{night.space.digest}"


@dataclass(frozen=True, slots=True)
class _Both:
    """Items that lived before and live now: rows of the slots before, and of the items now."""

    old: Rows
    new: Rows


def _in_both(slots: Slots, item_ids: pa.ChunkedArray) -> _Both:
    living = np.flatnonzero(as_numpy(slots.retired.is_null()))
    ids = slots.item_ids if len(living) == len(slots) else take_column(slots.item_ids, living)
    places = places_among(ids, item_ids)
    return _Both(living[places >= 0], places[places >= 0])


def moves(before: Slots, given: Given, item_ids: pa.ChunkedArray, changes: pa.Table) -> int:
    """Return how many items have another semantic ID than before although nothing about their photos changed."""
    both = _in_both(before, item_ids)
    moved = before.suffixes[both.old] != given.suffixes[both.new]
    for level in range(before.codes.shape[1]):
        moved |= before.codes[both.old, level] != given.codes[both.new, level]
    ids = joined(take_column(item_ids, both.new[moved]))
    changed = pc.is_in(ids, value_set=joined(changes["item_id"]).cast(ids.type))
    return len(ids) - int(pc.sum(changed).as_py() or 0)


def _since(kept: Rows, since: pa.ChunkedArray, run: str, rows: Rows) -> pa.ChunkedArray:
    """Return of rows of items since which run they have their slots. kept: as `Given`; since: of the earlier slots."""
    wanted = kept[rows]
    return pc.fill_null(take_column(since, pa.array(wanted, mask=wanted < 0)).cast(pa.string()), run)


def _retired(slots: Slots, given: Given, run: str) -> Iterator[ReleaseFile]:
    """Return the files of the table `sid_retired`, made range by range as `sid_items` is."""
    schema, gone = table_schema(SID_RETIRED), given.gone
    kind = schema.field("codes").type
    gone = gone[np.lexsort([slots.suffixes[gone], *slots.codes[gone].T[::-1]])]

    def piece(start: int, stop: int) -> pa.Table:
        rows = gone[start:stop]
        columns = [
            take_column(slots.item_ids, rows),
            as_lists(slots.codes[rows], kind),
            pa.array(slots.suffixes[rows]),
            as_lists(slots.nearest[rows], kind),
            take_column(slots.since, rows).cast(pa.string()),
            pc.fill_null(take_column(slots.retired, rows).cast(pa.string()), run),
        ]
        return pa.table(columns, schema=schema)

    return ranged_files(len(gone), piece)


def _carried_map(store: Store, manifest: Manifest) -> pa.Table | None:
    return read_table(store, manifest, "sid_map") if "sid_map" in manifest.files else None

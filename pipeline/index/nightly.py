"""One night's index: one file built anew, or segments, of which only those are written that hold what changed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from ..mapping import mapped
from ..ordering import take_rows
from ..release import Manifest
from ..release.tables import read_table
from ..schema import with_segments
from ..storage import Store
from ..storage.cache import FileCache
from .build import RECALL_LOW, BuiltIndex, Parameters, build_index, check_latents, check_memory, recalls_found
from .codes import FITTED, code_features
from .config import IndexConfig
from .faiss_module import faiss_threads
from .fitted import AS_STORED, Fitted, Origin, fit
from .kinds import KINDS, cells_of, feature_width, scanned, segment_kinds
from .latents import Float64, LatentArrays
from .layout import Layout, night_layout
from .questions import Questions
from .recall import mean_of
from .segmented import SegmentedIndex
from .segments import (
    TASK_BYTES,
    Segment,
    SegmentTask,
    build_segment,
    in_order_of_parts,
    most_rows,
    open_segments,
    places_in,
    segments_of,
)
from .tuning import Point, Tuned, at_least, measured, meets, pareto, refuse, still_stands, tune

_BLOCK = 1 << 18  # rows whose features the truth holds at a time
_CHECKED = 32  # queries that show that an exact kind is exact: that rows are in no other's place, say
_SPACE, _FIT = "space", "fit"  # in a manifest's index_parameters: what segments must share, and how often it was fitted


@dataclass(frozen=True, slots=True)
class NightIndex:
    """built: the index; items: tonight's, with the place of each row in it where it is made of segments."""

    built: BuiltIndex
    items: pa.Table


@dataclass(frozen=True, slots=True)
class _Parent:
    """A parent's segments, and where its rows lie. items: latents_part, latents_row."""

    space: str
    segments: tuple[Segment, ...]
    items: pa.Table
    places: tuple[np.ndarray, np.ndarray]


@dataclass(slots=True)
class _Night:
    """What a night's segments are built from.

    before: the parent's parameters with its kind; origin: of the latents.
    """

    store: Store
    cache: FileCache
    model_id: str
    items: pa.Table
    latents: LatentArrays
    config: IndexConfig
    most: int
    before: Mapping[str, Any]
    parent: _Parent | None
    origin: Origin
    asked: dict[str, Questions] = field(default_factory=dict)

    def questions(self, fitted: Fitted) -> Questions:
        """Return what asks segments of a space, once a metric."""
        exact = not KINDS[fitted.kind].tuned
        key = f"{exact} {fitted.metric_name} {sorted(fitted.facts.items())}"
        if key not in self.asked:
            asked = {"queries": min(self.config.queries, _CHECKED)} if exact else {}
            config = self.config.model_copy(update=asked)
            self.asked[key] = Questions(self.latents, fitted.metric, config, block=_BLOCK)
        return self.asked[key]


@dataclass(frozen=True, slots=True)
class _Union:
    """Segments of one kind, tuned and opened as a reader opens them, with recalls of the measuring queries."""

    fitted: Fitted
    layout: Layout
    segments: tuple[Segment, ...]
    places: tuple[np.ndarray, np.ndarray]
    tuned: Tuned
    opened: SegmentedIndex
    found: Float64
    seconds: float
    parameters: Parameters

    def point(self, night: _Night) -> Point:
        """Return what it gives, which takes a while to measure."""
        size = sum(segment.size for segment in self.segments)
        kind, config = self.fitted.kind, night.config
        _, measuring = night.questions(self.fitted).of(kind)
        return measured(self.opened, kind, self.tuned, self.found, measuring, config, size=size, build_s=self.seconds)


def nightly_index(
    store: Store,
    items: pa.Table,
    latents: LatentArrays,
    config: IndexConfig,
    *,
    model_id: str,
    parent: Manifest | None,
    cache: FileCache | None = None,
    origin: Origin = AS_STORED,
) -> NightIndex:
    """Build, tune and measure a night's index over the rows of items.

    Up to a segment's rows as `build_index`. Above, the parent's segments are carried over as far as they live, and what
    is new is written in others, side by side where Ray is. latents: [n], of items, in its order. cache: where segments
    are opened from; None: the reader's. Raises what `build_index` does.
    """
    before = {} if parent is None else {**parent.index_parameters, "kind": parent.index_kind}
    most = len(latents) if latents.missing(config.needs) else most_rows(_width(latents, config), config)
    if len(latents) <= most:
        return NightIndex(build_index(latents, config, before=before), items)
    check_latents(latents, config)
    width = _width(latents, config)
    check_memory(len(latents), width, config)
    if scanned(len(latents), width, config, before):
        config = config.model_copy(update={"kind": "flat"})
    held = None if parent is None or not parent.segmented else _parent(store, parent)
    night = _Night(store, cache or FileCache(), model_id, items, latents, config, most, before, held, origin)
    with faiss_threads(config.threads):
        built, places = _exact(night) if config.kind == "flat" else _chosen(night)
    names = pa.array([segment.index.name for segment in built.segments], pa.string())
    column = pa.DictionaryArray.from_arrays(pa.array(places[0], pa.int32()), names)
    return NightIndex(built, with_segments(items, column, pa.array(places[1], pa.int32())))


def _width(latents: LatentArrays, config: IndexConfig) -> int:
    """Return how many features a row has at most."""
    if config.metric in FITTED and latents.codes is not None:
        return code_features(config.metric, latents.codes.shape[1], int(latents.codes.max(initial=0)) + 1)
    return feature_width(latents.mean.shape[1], config)


def _parent(store: Store, manifest: Manifest) -> _Parent:
    names = ["latents_part", "latents_row", "index_segment", "index_row"]
    items, segments = read_table(store, manifest, "items", columns=names), segments_of(manifest)
    places = places_in(items, segments, manifest.release_id)
    return _Parent(str(manifest.index_parameters.get(_SPACE)), segments, items.select(names[:2]), places)


def _exact(night: _Night) -> tuple[BuiltIndex, tuple[np.ndarray, np.ndarray]]:
    made = _union(night, "flat", {})
    recall = mean_of(made.found)
    return BuiltIndex(made.opened, b"", "flat", recall, made.parameters, None, (), made.segments), made.places


def _chosen(night: _Night) -> tuple[BuiltIndex, tuple[np.ndarray, np.ndarray]]:
    """Return the index of the first kind that does what is asked for; raises ConfigError where none does."""
    config, points = night.config, list[Point]()
    said: Sequence[Point] = ()
    for kind, why, looked_at in _kinds(night):
        said = looked_at or said
        made = _union(night, kind, night.before if kind == night.before.get("kind") else {})
        point = made.point(night)
        if not meets(point, config) and not made.fitted.new and KINDS[kind].lossy:
            made = _refitted(night, made, point)
            point = made.point(night)
        points.append(point)
        if not meets(point, config):
            continue
        rows = len(night.latents)
        stands = still_stands(night.before, rows) and not looked_at
        parameters: Parameters = {**made.parameters, "chosen": why}
        if config.kind == "auto":
            parameters["tuned_rows"] = night.before["tuned_rows"] if stands else rows
        for other in (*pareto(said), point):
            parameters |= other.parameters()
        shown = (*(other for other in said if other.kind != kind), point)
        built = BuiltIndex(made.opened, b"", kind, point.recall, parameters, None, shown, made.segments)
        return built, made.places
    raise refuse(points, config)


def _kinds(night: _Night) -> Iterator[tuple[str, str, Sequence[Point]]]:
    """Yield (kind, why, what was measured to choose it): the one asked for, or for `auto` the parent's while it stands.

    Else those that do best over a seeded sample of a segment's rows.
    """
    config, rows = night.config, len(night.latents)
    if config.kind != "auto":
        yield config.kind, "it was asked for", ()
        return
    names = segment_kinds(rows, _width(night.latents, config), config)
    parent = night.before.get("kind")
    if parent in names and still_stands(night.before, rows):
        yield parent, "the parent's kind still gives what is asked for; the others were not built", ()
    drawn = np.sort(np.random.default_rng(config.seed).permutation(rows)[: night.most])
    alone = config.model_copy(update={"memory_gib": None})
    best = build_index(night.latents.take(drawn), alone, before=night.before, among=names)
    yield best.kind, f"over a sample of {len(drawn):,} rows: {best.parameters['chosen']}", best.points
    others = sorted((point for point in best.points if point.kind != best.kind), key=lambda point: -point.qps)
    for point in others:
        if meets(point, config):
            why = f"the next of a sample of {len(drawn):,} rows; faster ones lost over all rows"
            yield point.kind, why, best.points


def _union(night: _Night, kind: str, before: Mapping[str, Any], number: int | None = None) -> _Union:
    """Return the segments of a kind: carried over where the parent's are of the same space, the others written."""
    start, config = time.perf_counter(), night.config
    wanted = int(night.before.get(_FIT, 1)) if number is None and kind == night.before.get("kind") else number or 1
    fitted = fit(
        night.store,
        night.model_id,
        kind,
        night.latents,
        config,
        rows=min(night.most, len(night.latents)),
        number=wanted,
        origin=night.origin,
    )
    layout, segments, places = _written(night, fitted)
    facts: Parameters = {**fitted.facts, "k": config.k}
    opened = _opened(night, fitted, segments, places, facts)
    tuning, measuring = night.questions(fitted).of(kind)
    tuned = Tuned({}, reached=True)
    if KINDS[kind].tuned:
        tuned = tune(opened.without_rows(tuning.left_out), kind, tuning, config, before)
    facts |= tuned.effort
    opened = _opened(night, fitted, segments, places, facts)
    found = recalls_found(opened, measuring, kind)
    seconds = time.perf_counter() - start
    parameters = facts | _told(night, fitted, layout, len(segments), len(measuring.rows))
    parameters |= night.questions(fitted).told(kind)
    if KINDS[kind].tuned:
        parameters |= {RECALL_LOW: round(at_least(opened, kind, found, measuring, config), 5)}
    return _Union(fitted, layout, segments, places, tuned, opened, found, seconds, parameters)


def _refitted(night: _Night, lost: _Union, point: Point) -> _Union:
    """Return the union over parts that are trained anew, since those of before no longer reach what is asked for."""
    number = lost.fitted.number + 1
    made = _union(night, lost.fitted.kind, {}, number)
    told = f"fit {lost.fitted.number} gave recall {point.recall:.4f} (at least {point.recall_low:.4f})"
    made.parameters["refitted"] = f"{told}, asked for is {night.config.target_recall:g}"
    return made


def _written(night: _Night, fitted: Fitted) -> tuple[Layout, tuple[Segment, ...], tuple[np.ndarray, np.ndarray]]:
    """Write what is new; return how the rows lie, all segments, and the place of each row in them."""
    parent, rows = night.parent, len(night.latents)
    layout, kept = Layout.anew(rows), tuple[Segment, ...]()
    if parent is not None and parent.space == fitted.space:
        sizes = [segment.rows for segment in parent.segments]
        layout = night_layout(night.items, parent.items, parent.places, sizes, most=night.most)
        kept = tuple(parent.segments[number] for number in layout.kept)
    numbers, places = layout.numbers.copy(), layout.places.copy()
    named = night.items.select(["item_id", "latents_part", "latents_row"])
    ordered = in_order_of_parts(named, layout.fresh)
    count = -(-len(ordered) // night.most)
    pieces = np.array_split(ordered, count) if count else []
    tasks = []
    for number, piece in enumerate(pieces, len(kept)):
        numbers[piece], places[piece] = number, np.arange(len(piece))
        tasks.append(SegmentTask(night.store, night.model_id, take_rows(named, piece), fitted, night.config))
    width = _width(night.latents, night.config)
    largest = max((len(piece) for piece in pieces), default=0)
    size = TASK_BYTES + int(largest * KINDS[fitted.kind].row_bytes(width, largest, night.config))
    if KINDS[fitted.kind].on_gpu:  # the GPUs are this process's
        written = [build_segment(task) for task in tasks]
    else:
        written = mapped(
            build_segment,
            tasks,
            task_bytes=size,
            while_doing="building segments of the index",
            stays="segments that were written are found by their names",
        )
    return layout, (*kept, *written), (numbers, places)


def _opened(
    night: _Night,
    fitted: Fitted,
    segments: Sequence[Segment],
    places: tuple[np.ndarray, np.ndarray],
    parameters: Parameters,
) -> SegmentedIndex:
    fetch = partial(_fetched, night.store, night.cache)
    asked = (tuple(segments), fetch, fitted.metric_name, dict(parameters), places)
    opened = open_segments(*asked)
    opened.source = (open_segments, asked)  # another process maps the same files
    return opened


def _fetched(store: Store, cache: FileCache, entry: Any) -> str:
    return str(cache.fetch(store, entry.name, size=entry.bytes, sha256=entry.sha256))


def _told(night: _Night, fitted: Fitted, layout: Layout, segments: int, queries: int) -> Parameters:
    """Return what a manifest says of how segments were built."""
    kind, config = KINDS[fitted.kind], night.config
    told: Parameters = {
        "queries": queries,
        "segments": segments,
        "segments_carried": len(layout.kept),
        "segment_rows": night.most,
        "rows_written": len(layout.fresh),
        _SPACE: fitted.space,
        _FIT: fitted.number,
    }
    if kind.by_unseen:
        told |= {"m": config.m, "ef_construction": config.ef_construction}
    if "nprobe" in kind.tuned:
        told["cells"] = cells_of(min(night.most, len(night.latents)))
    if kind.lossy:
        told["lowest_faiss"] = ".".join(map(str, kind.lowest_faiss))
    return told

"""Building an index: of the kind asked for, or of the one that does best what is asked for."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from ..errors import ConfigError, InputError, TooSlow
from ..release import FileEntry
from .codes import photos_with_code
from .config import IndexConfig
from .faiss_module import faiss_threads, load_faiss
from .features_file import SUFFIX, features_bytes
from .filling import filling, train
from .gpu import inverted_file
from .kinds import KINDS, candidate_kinds, cells_of, check_installed, estimate_bytes, scanned, training_rows
from .latents import Float32, Float64, LatentArrays
from .metric import Metric
from .metrics import WITH_CODE, fitted_metric
from .questions import Questions
from .recall import Truth, mean_of, recalls
from .search import SearchIndex, open_index
from .segments import Segment
from .tuning import (
    Choice,
    Point,
    Tuned,
    choose,
    hopeless,
    measured,
    meets,
    pareto,
    refuse,
    still_stands,
    tune,
)

# Rows added at a time. An HNSW file depends on it, so it is part of what makes two builds equal to the bit.
ADD_BLOCK = 1 << 14
_GIB = 1 << 30
RECALL_LOW = "recall_low"  # of a kind that may lose rows, in its parameters

Parameters = dict[str, int | float | str]


@dataclass(frozen=True, slots=True)
class BuiltIndex:
    """A finished index: `data` is the FAISS file, `index` what a reader would open from it.

    kind: its row of the table. recall: the mean recall@k, a share, over sampled queries that took no part in tuning.
    parameters: what was built and found, for the manifest. features: the file of exact features of a kind of codes.
    points: what each kind that was built gave. segments: of which it is made, then without data of its own.
    """

    index: SearchIndex
    data: bytes
    kind: str
    recall: float
    parameters: Parameters
    features: bytes | None = None
    points: tuple[Point, ...] = ()
    segments: tuple[Segment, ...] = ()

    @property
    def recall_low(self) -> float:
        """The recall@k to count on: the lower end of its one-sided 95 % interval; 1 where nothing is lost."""
        return float(self.parameters.get(RECALL_LOW, 1.0))

    def told(self) -> list[tuple[str, str]]:
        """Return for people why this kind was chosen, and what each kind that was built gave: (what, text)."""
        why = [("why", str(self.parameters["chosen"]))] if "chosen" in self.parameters else []
        if self.segments:
            carried, rows = self.parameters["segments_carried"], self.parameters["rows_written"]
            why.append(("segments", f"{len(self.segments)}, {carried} of them carried over; {rows:,} rows written"))
        if "refitted" in self.parameters:
            why.append(("trained parts", f"fitted once more: {self.parameters['refitted']}"))
        if RECALL_LOW in self.parameters and not self.points:
            why.append(("recall", f"{self.recall:.4f} in the mean, at least {self.recall_low:.4f}"))
        return [*why, *((point.kind, point.line()) for point in self.points)]

    def files(self) -> dict[str, tuple[bytes, str, int | None]]:
        """Return the release's own files that it is made of: by role, bytes, suffix and rows."""
        if self.segments:
            return {}
        rows = self.index.rows
        beside = {} if self.features is None else {"features": (self.features, SUFFIX, rows)}
        return {"index": (self.data, ".faiss", rows), **beside}

    def shared_files(self) -> dict[str, tuple[FileEntry, ...]]:
        """Return the files that it shares with other releases, by role: its segments, none where it is one file."""
        if not self.segments:
            return {}
        beside = tuple(segment.features for segment in self.segments if segment.features is not None)
        return {"index": tuple(segment.index for segment in self.segments), **({"features": beside} if beside else {})}


def build_index(
    latents: LatentArrays,
    config: IndexConfig,
    *,
    before: Mapping[str, Any] | None = None,
    among: Sequence[str] | None = None,
) -> BuiltIndex:
    """Build, tune and measure an index over latents [n], in their order.

    The same input gives the same bytes, but for `auto` where it is not `scanned`, which chooses by measured times.
    before: the parameters of the parent's index, with its `kind`: tuning begins there, and `auto` keeps that kind while
    it does what is asked for. among: of which kinds `auto` takes one; None: all that fit `memory_gib`.
    Raises InputError for latents that are missing or not finite, ConfigError when the index would not fit
    `memory_gib`, or when no kind of codes reaches `target_recall` and `latency_p99_ms`.
    """
    check_latents(latents, config)
    if config.kind != "auto":
        check_installed(config.kind)
    metric = fitted_metric(config.metric, config.mask, latents)
    features = metric.item_features(latents)
    rows, dim = features.shape
    check_memory(rows, dim, config)
    exact = among is None and scanned(rows, dim, config, before)
    if exact:
        config = config.model_copy(update={"kind": "flat"})
    with faiss_threads(config.threads):
        work = _Work(latents, features, metric, config, Questions(latents, metric, config), before or {})
        if config.kind != "flat":
            return _chosen(work, among or candidate_kinds(rows, dim, config))
        built = _exact(work)
    if exact:
        built.parameters["chosen"] = f"exact, and {features.size:,} numbers are scanned in milliseconds"
    return built


@dataclass(frozen=True, slots=True)
class _Work:
    """What an index is built from: latents [n], their features [n, f], what asks it, the parent's parameters.

    cells: centroids that a kind was trained to, by their width and number, for others that have the same; within: how
    many of so many cells (the number of all) candidates were walked in.
    """

    latents: LatentArrays
    features: Float32
    metric: Metric
    config: IndexConfig
    questions: Questions
    before: Mapping[str, Any]
    cells: dict[tuple[int, int], Float32] = field(default_factory=dict)
    within: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Made:
    """One kind, filled and tuned: its file, that file opened as a reader opens it, and recalls of measuring queries."""

    data: bytes
    tuned: Tuned
    opened: SearchIndex
    found: Float64
    seconds: float


def _made(work: _Work, name: str, before: Mapping[str, Any], good: Sequence[Point] = ()) -> _Made | None:
    """Return one kind; None, and not tuned, where one of the points that are good is far faster than it can be."""
    start = time.perf_counter()
    kind, config = KINDS[name], work.config
    tuning, measuring = work.questions.of(name)
    index = _filled(work, name)
    held = work.features if kind.lossy else None
    tuned = Tuned({}, reached=True)
    whole = SearchIndex(index, work.metric, held)
    if good and hopeless(whole, name, measuring, config, good):
        return None
    if kind.tuned:
        apart, cells = whole.without_rows(tuning.left_out), whole.planner.cells
        try:
            tuned = tune(apart, name, tuning, config, before, good=good, within=work.within.get(cells, 0))
        except TooSlow:
            return None
        work.within[cells] = tuned.within
        for effort, value in tuned.effort.items():
            whole.planner.set_effort(effort, value, k=config.k)
        del apart  # a graph of its own
    del whole
    data = load_faiss().serialize_index(index).tobytes()
    del index  # there are two more of it
    said = {"k": config.k, **_weights(work), **tuned.effort}
    opened = open_index(data, work.metric.name, features=held, parameters=said)
    return _Made(data, tuned, opened, recalls_found(opened, measuring, name), time.perf_counter() - start)


def recalls_found(opened: SearchIndex, measuring: Truth, name: str) -> Float64:
    """Return recalls of the measuring queries: where a kind is tuned, no more than its effort gives by itself."""
    if not KINDS[name].tuned:
        return recalls(opened, measuring)
    if KINDS[name].by_unseen and not opened.planner.walks(measuring.neighbours):
        return np.ones(len(measuring.rows))
    apart = opened.without_rows(measuring.left_out)
    with apart.planner.as_set():
        return recalls(apart, measuring)


def _exact(work: _Work) -> BuiltIndex:
    made = cast("_Made", _made(work, "flat", {}))  # no other is faster
    return BuiltIndex(made.opened, made.data, "flat", mean_of(made.found), _built_with(work, "flat"))


def _chosen(work: _Work, names: Sequence[str]) -> BuiltIndex:
    """Return the index of the kind that does best what is asked for, with what the others gave."""
    config, before = work.config, work.before
    parent = before.get("kind")
    points, slow = list[Point](), list[str]()
    kept: tuple[_Made, Choice] | None = None
    # The parent's first, then what is the fastest for the most part.
    for name in sorted(names, key=lambda name: (name != parent, "nprobe" not in KINDS[name].tuned)):
        good = [point for point in points if meets(point, config)]
        made = _made(work, name, before if name == parent else {}, good)
        if made is None:
            slow.append(name)
            continue
        size, measuring = len(made.data), work.questions.of(name)[1]
        points.append(
            measured(made.opened, name, made.tuned, made.found, measuring, config, size=size, build_s=made.seconds)
        )
        choice = choose(points, config, before)
        if choice is not None and choice.point is points[-1]:
            kept = made, choice
        elif choice is not None and kept is not None:
            kept = kept[0], choice
        stands = still_stands(before, len(work.features))
        if name == parent and stands and meets(points[-1], config):
            kept = (
                made,
                Choice(points[-1], "the parent's kind still gives what is asked for; the others were not built"),
            )
            break
    if kept is None:
        raise refuse(points, config)
    made, choice = kept
    kind = choice.point.kind
    parameters = _built_with(work, kind) | made.tuned.effort
    if KINDS[kind].tuned:
        parameters |= {RECALL_LOW: round(choice.point.recall_low, 5)}
    if config.kind == "auto":
        why = choice.why + (f"; far slower at too little effort: {', '.join(slow)}" if slow else "")
        looked_at_all = len(points) + len(slow) == len(names)
        parameters |= {"chosen": why, "tuned_rows": len(work.features) if looked_at_all else before["tuned_rows"]}
    else:  # of one that was named no later night of `auto` thinks that it was chosen among all
        parameters["chosen"] = "it was asked for"
    for point in pareto(points):
        parameters |= point.parameters()
    parameters |= choice.point.parameters()
    features = features_bytes(work.features) if KINDS[kind].lossy else None
    shown = tuple(sorted(points, key=lambda point: names.index(point.kind)))
    return BuiltIndex(made.opened, made.data, kind, choice.point.recall, parameters, features, shown)


def check_latents(latents: LatentArrays, config: IndexConfig) -> None:
    """Raise InputError for latents that are missing or not finite."""
    missing = latents.missing(config.needs)
    if missing:
        masked = "" if config.mask == "none" else f" with the mask {config.mask!r}"
        raise InputError(
            f"the metric {config.metric!r}{masked} needs {', '.join(missing)}, which these latents do not have; "
            "choose another index.metric or a model that yields them"
        )
    bad = latents.not_finite(config.needs)
    if len(bad):
        raise InputError(
            f"{len(bad)} of {len(latents)} latents hold NaN or infinity (first: row {bad[0]}); "
            "the model has diverged: train again with a lower train.learning_rate"
        )


def check_memory(rows: int, dim: int, config: IndexConfig) -> None:
    """Raise ConfigError where an index of so many rows of `dim` features would not fit `memory_gib`."""
    if config.kind == "auto":
        _check_least(rows, dim, config)
        return
    need = estimate_bytes(rows, dim, config)
    if config.memory_gib is not None and need > config.memory_gib * _GIB:
        raise ConfigError(
            f"a {config.kind} index of {rows} rows x {dim} features needs about "
            f"{need / _GIB:.3g} GiB, index.memory_gib allows {config.memory_gib:g}; raise it"
            + (", lower index.m, or take kind: flat" if KINDS[config.kind].by_unseen else "")
        )


def _check_least(rows: int, dim: int, config: IndexConfig) -> None:
    if config.memory_gib is None:
        return
    needs = {name: rows * KINDS[name].row_bytes(dim, rows, config) for name in candidate_kinds(rows, dim, config)}
    least = min(needs, key=lambda name: needs[name])
    if needs[least] > config.memory_gib * _GIB:
        raise ConfigError(
            f"no kind of index of {rows} rows x {dim} features fits index.memory_gib {config.memory_gib:g}: the least, "
            f"{least}, needs about {needs[least] / _GIB:.3g} GiB; raise it"
        )


def _filled(work: _Work, name: str) -> Any:
    """Return the CPU index with every row added in fixed blocks, in order."""
    faiss, features, metric, config = load_faiss(), work.features, work.metric, work.config
    geometry = faiss.METRIC_L2 if metric.geometry == "l2" else faiss.METRIC_INNER_PRODUCT
    kind = KINDS[name]
    check_installed(name)
    index = kind.make(features.shape[1], geometry, len(features), config)
    if not index.is_trained:
        _trained(work, name, index)
    filled = filling(name, index, metric, config)
    for start in range(0, len(features), ADD_BLOCK):
        filled.add(features[start : start + ADD_BLOCK])
    return filled.finished()


def _trained(work: _Work, name: str, index: Any) -> None:
    """Train a kind; cells that another was trained to are its own too, since both are told by the same rows."""
    inner = None if KINDS[name].of_gaussians else inverted_file(index)
    key = (0, 0) if inner is None else (int(inner.d), int(inner.nlist))
    if inner is not None and key in work.cells:
        inner.quantizer.add(work.cells[key])  # as many centroids as there are cells: FAISS trains none
    train(name, index, training_rows(work.features, work.config), work.metric, work.config)
    if inner is not None:
        # A tensor where faiss.contrib.torch_utils was imported.
        work.cells[key] = np.asarray(inner.quantizer.reconstruct_n(0, inner.nlist), np.float32)


def _built_with(work: _Work, name: str) -> Parameters:
    config, kind = work.config, KINDS[name]
    queries = len(work.questions.of(name)[1].rows)
    built: Parameters = {"k": config.k, "queries": queries, "add_block": ADD_BLOCK, **work.questions.told(name)}
    if kind.by_unseen:
        built |= {"m": config.m, "ef_construction": config.ef_construction}
    if "nprobe" in kind.tuned:
        built["cells"] = cells_of(len(work.features))
    if kind.lossy:
        built["lowest_faiss"] = ".".join(map(str, kind.lowest_faiss))
    return built | _weights(work)


def _weights(work: _Work) -> Parameters:
    """Return what a reader needs to weigh the codes of a photo, where these are compared."""
    if work.metric.name != "codes":
        return {}
    return {WITH_CODE: ",".join(map(str, photos_with_code(work.latents).tolist()))}

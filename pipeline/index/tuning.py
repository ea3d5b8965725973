"""Tuning a kind to a recall, measuring what it then costs, and choosing among kinds by what was measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import ConfigError, TooSlow
from .config import IndexConfig
from .faiss_module import load_faiss
from .kinds import KINDS
from .latents import Float64, LatentArrays
from .recall import Truth, mean_of, recall_at_k, recall_at_least, recalls
from .search import SearchIndex

_TIMED = 200  # queries timed one by one
_WORTH = 1.5  # how much faster another kind must be to be taken instead of an exact one, or of the parent's
_TUNED_FOR = 1.5  # by how much a catalogue may grow or shrink before its parent's kind is looked at anew
_FEW = 100  # queries that say how many cells candidates are walked in, and about where a walk ends,
_FIRST = 8  # cells looked through first,
_ROOM = 2  # and how many times as many as are needed
_STEP = 8  # a walk from about its end takes steps of such a part of it
_TRIED = 20  # queries that a kind is timed by at first, four times as many until they take
_LONG_S = 0.05  # a processor's time beside which what a call costs by itself is nothing
_HOPELESS = 4  # how many times faster than that a batch of many could make it

Effort = dict[str, int]


@dataclass(frozen=True, slots=True)
class Tuned:
    """effort: what was found, by name; reached: whether the recall asked for was; within: how many cells candidates
    were walked in, 0 where there are none."""

    effort: Effort
    reached: bool
    within: int = 0


@dataclass(frozen=True, slots=True)
class Point:
    """What one kind gave, measured on the file that would be published, opened as a reader opens it.

    recall: mean of recall@k over queries that took no part in tuning; recall_low: the lower end of its one-sided 95 %
    interval. qps: queries a second, many at once, with the threads of the build; p50_ms, p99_ms: of one query alone.
    bytes_per_item: of the index, without a file of features. build_s: filling and tuning. reached: whether the tuning
    queries reached the recall asked for by the lower end.
    """

    kind: str
    recall: float
    recall_low: float
    qps: float
    p50_ms: float
    p99_ms: float
    bytes_per_item: float
    build_s: float
    reached: bool
    effort: Effort = field(default_factory=dict)

    def parameters(self) -> dict[str, int | float | str]:
        """Return it for the manifest, under its kind's name."""
        measured = {
            "recall": round(self.recall, 5),
            "recall_low": round(self.recall_low, 5),
            "qps": round(self.qps, 1),
            "p50_ms": round(self.p50_ms, 4),
            "p99_ms": round(self.p99_ms, 4),
            "bytes_per_item": round(self.bytes_per_item, 2),
            "build_s": round(self.build_s, 2),
        }
        return {f"{self.kind}.{name}": value for name, value in {**self.effort, **measured}.items()}

    def line(self) -> str:
        """Return it for people."""
        effort = "".join(f", {name} {value}" for name, value in self.effort.items())
        return (
            f"{self.kind}{effort}: recall {self.recall:.4f} (at least {self.recall_low:.4f}), "
            f"{self.qps:,.0f} queries/s, p99 {self.p99_ms:.2f} ms, {self.bytes_per_item:.0f} bytes an item, "
            f"built in {self.build_s:.0f} s"
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """The point that was chosen, and why, in words."""

    point: Point
    why: str


def tune(
    index: SearchIndex,
    kind: str,
    truth: Truth,
    config: IndexConfig,
    before: Mapping[str, Any],
    *,
    good: Sequence[Point] = (),
    within: int = 0,
) -> Tuned:
    """Find (and leave set) the least effort of a kind that reaches `target_recall` on the tuning queries.

    One parameter after the other; the earlier of two has to leave half of what may be lost to the later. Candidates are
    walked in so many cells that next to nothing lies in others, in all where that does not do. before: the parent's
    parameters, at which the walk begins where it knows one; within: in how many of the same cells another kind's
    candidates were walked, 0: unknown. Few rows, which are scored one by one whatever is set, are tuned for other
    readers of the file, by the mean. Raises TooSlow for one that is far slower, not yet good, than one of `good`.
    """
    names, reached, few_rows = KINDS[kind].tuned, True, not index.planner.walks(config.k)
    effort: Effort = {}
    for name in names:
        _set(index, name, _most(index, name, config), config)
    in_cells, few = "nprobe" in names[1:], truth.thinned(_FEW)
    if in_cells:
        within = _wide(index, truth, config, int(before.get("nprobe", within // _ROOM or _FIRST)))
        _set(index, "nprobe", within, config)
    for place, name in enumerate(names):
        last = place == len(names) - 1
        target = config.target_recall if last else (1.0 + config.target_recall) / 2.0

        def reaches(value: int, name: str = name, target: float = target) -> bool:
            _set(index, name, value, config)
            with index.planner.as_set():
                found = recalls(index, truth)
                least = mean_of(found) if few_rows else recall_at_least(index, found, truth)
            return least >= target

        def likely(value: int, name: str = name, target: float = target, place: int = place) -> bool:
            _set(index, name, value, config)
            with index.planner.as_set():
                if recall_at_k(index, few) >= target:
                    return True
            later = {each: _least(each, config) for each in names[place + 1 :]}
            if good and too_slow(index, truth, config, {**effort, name: value, **later}, good):
                raise TooSlow
            if later and in_cells:
                _set(index, "nprobe", within, config)
            return False

        least, most, begin = _least(name, config), _most(index, name, config), int(before.get(name, 0))
        effort[name], reached = _settled(reaches, least, most, begin or _walk(likely, least, most, 0)[0])
        if in_cells and not (last or reached):  # perhaps what was lost lies in other cells
            _set(index, "nprobe", _most(index, "nprobe", config), config)
            effort[name], _ = _walk(reaches, least, most, most)
        _set(index, name, effort[name], config)
    return Tuned(effort, reached or few_rows, within)


def hopeless(index: SearchIndex, kind: str, truth: Truth, config: IndexConfig, good: Sequence[Point]) -> bool:
    """Return whether a kind is far slower at its least effort than one of these points, so that tuning it is no use."""
    return too_slow(index, truth, config, {name: _least(name, config) for name in KINDS[kind].tuned}, good)


def too_slow(index: SearchIndex, truth: Truth, config: IndexConfig, effort: Effort, good: Sequence[Point]) -> bool:
    """Set an effort, and return whether it makes a kind far slower than one of these points."""
    fastest = max((point.qps for point in good), default=0.0)
    for name, value in effort.items():
        _set(index, name, value, config)
    count, spent = min(_TRIED, len(truth.rows)), 0.0
    while fastest > 0.0 and count:
        queries = truth.queries.take(np.s_[:count])
        with index.planner.as_set():
            # The first one pages in. By the clock others on the machine would decide.
            spent = min(_cpu_s(index, queries, config.k) for _ in range(2))
        if spent >= _LONG_S or count == len(truth.rows):
            break
        count = min(4 * count, len(truth.rows))
    most = _HOPELESS * load_faiss().omp_get_max_threads() * count / max(spent, 1e-9)
    return spent >= _LONG_S and most < fastest


def _cpu_s(index: SearchIndex, queries: LatentArrays, k: int) -> float:
    start = time.process_time()
    index.search(queries, k)
    return time.process_time() - start


def timed(index: SearchIndex, truth: Truth, k: int) -> tuple[float, float, float]:
    """Return queries a second of all queries at once, and the median and 99th percentile of one alone in ms."""
    if len(truth.rows) == 0 or index.rows == 0:
        return 0.0, 0.0, 0.0
    index.search(truth.queries.take(np.s_[:1]), k)  # the first one pages in
    start = time.perf_counter()
    index.search(truth.queries, k)
    qps = len(truth.rows) / (time.perf_counter() - start)
    alone = []
    for number in range(min(_TIMED, len(truth.rows))):
        query = truth.queries.take(np.s_[number : number + 1])
        start = time.perf_counter()
        index.search(query, k)
        alone.append(1e3 * (time.perf_counter() - start))
    return qps, float(np.median(alone)), float(np.percentile(alone, 99))


def at_least(index: SearchIndex, kind: str, found: Float64, truth: Truth, config: IndexConfig) -> float:
    """Return the lower end of the one-sided 95 % interval of recalls [q] that the effort which is set gives."""
    if not KINDS[kind].tuned or (KINDS[kind].by_unseen and not index.planner.walks(config.k)):
        return 1.0
    with index.planner.as_set():
        return recall_at_least(index, found, truth)


def measured(
    index: SearchIndex,
    kind: str,
    tuned: Tuned,
    found: Float64,
    truth: Truth,
    config: IndexConfig,
    *,
    size: int,
    build_s: float,
) -> Point:
    """Return what a kind gives; found: recalls [q] of the queries of truth, which took no part in tuning.

    size: of its file, in bytes; build_s: of filling and tuning it.
    """
    least = at_least(index, kind, found, truth, config)
    qps, p50, p99 = timed(index, truth, config.k)
    return Point(
        kind=kind,
        recall=mean_of(found),
        recall_low=least,
        qps=qps,
        p50_ms=p50,
        p99_ms=p99,
        bytes_per_item=size / max(1, index.rows),
        build_s=build_s,
        reached=tuned.reached,
        effort=tuned.effort,
    )


def choose(points: Sequence[Point], config: IndexConfig, before: Mapping[str, Any]) -> Choice | None:
    """Return the fastest of the points that meet what was asked for, None where none does.

    The parent's kind, and then the exact one, are kept unless the fastest is half as fast again: timings waver, and
    neighbours that change with the kind cost more than they give.
    """
    good = [point for point in points if meets(point, config)]
    if not good:
        return None
    best = max(good, key=lambda point: point.qps)
    for kind, why in ((before.get("kind"), "the parent's kind"), ("flat", "exact")):
        for point in good:
            if point.kind == kind and point.qps * _WORTH >= best.qps:
                faster = "" if point is best else f"; {best.kind} at {best.qps:,.0f} is not {_WORTH:g} times as fast"
                return Choice(point, f"{why}, {point.qps:,.0f} queries/s{faster}")
    return Choice(best, f"the fastest that meets what is asked for, {best.qps:,.0f} queries/s")


def meets(point: Point, config: IndexConfig) -> bool:
    """Return whether a point's recall and latency are those asked for."""
    return point.reached and (config.latency_p99_ms is None or point.p99_ms <= config.latency_p99_ms)


def still_stands(before: Mapping[str, Any], rows: int) -> bool:
    """Return whether the parent's kind was chosen for a catalogue of about this size."""
    tuned_for = before.get("tuned_rows")
    return isinstance(tuned_for, int) and tuned_for / _TUNED_FOR <= rows <= tuned_for * _TUNED_FOR


def pareto(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats or equals in recall, speed, p99 and bytes, while it beats it in one."""

    def worse(point: Point, other: Point) -> bool:
        mine = (point.recall, point.qps, -point.p99_ms, -point.bytes_per_item)
        theirs = (other.recall, other.qps, -other.p99_ms, -other.bytes_per_item)
        return mine != theirs and all(b >= a for a, b in zip(mine, theirs, strict=True))

    return [point for point in points if not any(worse(point, other) for other in points)]


def refuse(points: Sequence[Point], config: IndexConfig) -> ConfigError:
    """Return the error that says what was asked for and the best that there is."""
    asked = f"index.target_recall {config.target_recall:g} (by the lower end of a 95 % interval)"
    if config.latency_p99_ms is not None:
        asked += f" at index.latency_p99_ms {config.latency_p99_ms:g}"
    if config.memory_gib is not None:
        asked += f" in index.memory_gib {config.memory_gib:g}"
    best = sorted(points, key=lambda point: (-point.recall_low, point.p99_ms))
    lines = "\n".join(f"  {point.line()}" for point in best)
    return ConfigError(
        f"no index of kind {config.kind!r} reaches {asked}; measured:\n{lines}\nLower the recall, allow more memory or "
        "time, raise index.max_ef_search, or raise index.queries where the interval is what is too wide"
    )


def _wide(index: SearchIndex, truth: Truth, config: IndexConfig, begin: int) -> int:
    """Return so many cells that hardly a neighbour lies in others, by some of the queries, with all candidates.

    Looking through all of a million rows for each step of a walk is what tuning would take longest for.
    """
    few, cells, value = truth.thinned(_FEW), index.planner.cells, max(1, begin)
    while value < cells:
        _set(index, "nprobe", value, config)
        with index.planner.as_set():
            if recall_at_k(index, few) >= (3.0 + config.target_recall) / 4.0:
                break
        value *= 2
    return min(_ROOM * value, cells)


def _set(index: SearchIndex, name: str, value: int, config: IndexConfig) -> None:
    index.planner.set_effort(name, value, k=config.k)


def _least(name: str, config: IndexConfig) -> int:
    """Return the first value that makes sense."""
    return {"nprobe": 1, "candidates": config.k, "ef_search": max(8, config.k + 1)}[name]


def _most(index: SearchIndex, name: str, config: IndexConfig) -> int:
    """Return where the walk gives up."""
    if name == "nprobe":
        return index.planner.cells
    return config.max_ef_search if name == "ef_search" else max(config.k, config.max_ef_search)


def _walk(reaches: Callable[[int], bool], least: int, most: int, begin: int) -> tuple[int, bool]:
    """Return the least value that reaches, and whether it does; doubles until it does, then halves the interval."""
    high = min(max(least, begin), most)
    low = min(least, most)  # not known to fail: the first value is the least that makes sense
    while not reaches(high):
        if high == most:
            return high, False
        low, high = high, min(2 * high, most)
    while high - low > max(1, high // 32):
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    if high - low == 1 and low == least and reaches(low):
        return low, True
    return high, True


def _settled(reaches: Callable[[int], bool], least: int, most: int, begin: int) -> tuple[int, bool]:
    """Return what `_walk` does, in few steps from about its end."""
    high = min(max(least, begin), most)
    low, step = high, max(1, high // _STEP)
    if reaches(high):
        while low > least:
            low, step = max(least, high - step), 2 * step
            if not reaches(low):
                break
            high = low
    else:
        while high < most:
            low, high, step = high, min(most, high + step), 2 * step
            if reaches(high):
                break
        else:
            return high, False
    while high - low > max(1, high // 32):
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high, True

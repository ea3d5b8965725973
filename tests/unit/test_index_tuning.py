"""Tuning: what a recall is worth, what is chosen and why, what is refused, where a night begins."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import faiss
import numpy as np
import pytest

from pipeline.errors import ConfigError, TooSlow
from pipeline.index import METRICS, IndexConfig, LatentArrays, SearchIndex, build_index, estimate_bytes, kinds, tuning
from pipeline.index import build as build_module
from pipeline.index.faiss_module import faiss_threads
from pipeline.index.kinds import KINDS, candidate_kinds, cells_of, kinds_here, scanned
from pipeline.index.questions import Questions
from pipeline.index.recall import recall_at_k, recall_low, truth_of
from pipeline.index.tuning import Point, choose, hopeless, pareto, still_stands, tune

KINDS_CELLS = cells_of(6_000)


def falling(count: int, dim: int = 12, *, seed: int = 0) -> LatentArrays:
    drawn = np.random.default_rng(seed).normal(size=(count, dim)) * np.geomspace(1.0, 0.03, dim)
    return LatentArrays(mean=drawn.astype(np.float32))


def wilson_by_bisection(share: float, trials: float) -> float:
    """The least p whose one-sided 95 % test does not refuse the share: (share - p)^2 = z^2 p (1 - p) / n."""
    low, high = 0.0, share
    for _ in range(200):
        middle = (low + high) / 2
        refused = (share - middle) ** 2 > 1.6448536269514722**2 * middle * (1 - middle) / trials
        low, high = (middle, high) if refused else (low, middle)
    return high


def test_the_lower_end_is_wilsons_over_what_the_queries_are_worth() -> None:
    assert recall_low(np.ones(100), 10) == pytest.approx(wilson_by_bisection(1.0, 1000), abs=1e-9)
    whole = np.repeat([1.0, 0.0], [90, 10])  # found whole or lost whole: each query is one draw
    assert recall_low(whole, 10) == pytest.approx(wilson_by_bisection(0.9, 100), abs=2e-3)
    apart = np.tile([0.9], 100)  # every query loses one of ten: no more than 10 draws each
    assert recall_low(apart, 10) == pytest.approx(wilson_by_bisection(0.9, 1000), abs=1e-9)
    assert recall_low(np.empty(0), 10) == 1.0


def test_the_lower_end_covers_where_neighbours_are_lost_together() -> None:
    generator = np.random.default_rng(0)
    below = naive = 0
    for _ in range(600):
        chance = generator.beta(6.0, 0.4, size=200)  # of each query: easy ones and hard ones
        found = generator.binomial(10, chance) / 10
        truth = 6.0 / 6.4
        below += recall_low(found, 10) <= truth
        naive += wilson_by_bisection(float(found.mean()), 2000) <= truth
    assert below / 600 >= 0.93
    assert naive / 600 < 0.9, "negative control: all neighbours as draws of their own"


def test_the_lower_end_covers_where_few_queries_lose_much() -> None:
    """How many of 4,000 rows lost 0, 1, .. of ten neighbours: latents of Fashion-MNIST, reverse KL under a mask."""
    lost = np.array([3822, 112, 39, 13, 7, 4, 1, 0, 1, 0, 1])
    every = np.repeat(1.0 - np.arange(11) / 10, lost)
    generator, truth, below, without = np.random.default_rng(0), every.mean(), 0, 0
    for _ in range(600):
        found = generator.choice(every, 100)
        below += recall_low(found, 10) <= truth
        # Negative control: worth as many draws as these alone vary.
        mean, variance = found.mean(), max(found.var(ddof=1), 1e-12)
        worth = 100 * min(10.0, max(1.0, mean * (1 - mean) / variance))
        without += wilson_by_bisection(float(mean), worth) <= truth
    assert below / 600 >= 0.95
    assert without / 600 < 0.9


def point(kind: str, qps: float, **given: Any) -> Point:
    plain = Point(kind, 0.99, 0.985, qps, 0.1, 0.2, 64.0, 1.0, reached=True)
    return replace(plain, **given)


def test_the_fastest_is_taken_unless_the_exact_or_the_parents_is_nearly_so() -> None:
    config = IndexConfig(kind="auto")
    flat, codes, cells = point("flat", 100.0, recall=1.0), point("flat_codes", 140.0), point("ivf_sq8", 160.0)
    chosen = choose([flat, codes], config, {})
    assert chosen is not None
    assert chosen.point is flat
    assert "exact" in chosen.why
    chosen = choose([flat, codes, cells], config, {})
    assert chosen is not None
    assert chosen.point is cells
    chosen = choose([flat, codes, cells], config, {"kind": "flat_codes"})
    assert chosen is not None
    assert chosen.point is codes
    assert "parent" in chosen.why
    late = IndexConfig(kind="auto", latency_p99_ms=0.1)
    assert choose([flat, codes, replace(cells, p99_ms=0.05)], late, {}) is not None
    assert choose([flat, codes, cells], late, {}) is None
    assert choose([replace(flat, reached=False)], config, {}) is None


def test_what_another_beats_in_all_is_not_kept() -> None:
    flat, small, worse = (
        point("flat", 100.0, recall=1.0),
        point("flat_codes", 50.0, bytes_per_item=16.0),
        point("x", 90.0),
    )
    assert pareto([flat, small, replace(worse, recall=0.98)]) == [flat, small]
    assert pareto([flat, flat]) == [flat, flat]


@pytest.mark.slow
def test_auto_keeps_what_every_kind_measured_and_why() -> None:
    asked = IndexConfig(kind="auto", metric="l2", ef_construction=40, queries=200, threads=1, latency_p99_ms=1e4)
    built = build_index(falling(6_000), asked)
    assert built.kind in KINDS
    assert built.recall >= 0.97
    said = built.parameters
    assert said[f"{built.kind}.recall"] == pytest.approx(built.recall, abs=1e-5)
    assert said["chosen"]
    assert said["tuned_rows"] == 6_000
    for name in ("recall_low", "qps", "p50_ms", "p99_ms", "bytes_per_item", "build_s"):
        assert f"{built.kind}.{name}" in said
    assert [what for what, _ in built.told()] == [
        "why",
        *(kind for kind in kinds_here(IndexConfig()) if kind != "hnsw_sq8"),
    ]
    assert ("features" in built.files()) == KINDS[built.kind].lossy


def test_auto_is_flat_byte_for_byte_while_that_is_scanned_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert IndexConfig().kind == "auto"
    few, flat = falling(200), build_index(falling(200), IndexConfig(kind="flat", queries=20))
    built = build_index(few, IndexConfig(queries=20))
    assert (built.kind, built.data, built.recall) == ("flat", flat.data, 1.0)
    assert built.told() == [("why", "exact, and 2,400 numbers are scanned in milliseconds")]
    assert {name: value for name, value in built.parameters.items() if name != "chosen"} == flat.parameters
    assert scanned(131_072, 64, IndexConfig())
    assert not scanned(131_073, 64, IndexConfig())
    assert not scanned(10, 64, IndexConfig(kind="hnsw"))
    assert not scanned(10, 64, IndexConfig(latency_p99_ms=5.0)), "who asks for a latency has it measured"
    assert not scanned(10_000, 64, IndexConfig(memory_gib=0.002)), "flat does not fit"
    assert not scanned(10, 64, IndexConfig(), {"kind": "ivf_sq8"}), "the parent's kind is kept while it does"
    monkeypatch.setattr(kinds, "SCANNED", 2_399)
    more = build_index(few, IndexConfig(queries=20, ef_construction=40))
    assert f"{more.kind}.qps" in more.parameters, "all kinds are measured"


def test_a_night_begins_at_its_parents_point_and_keeps_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    config = IndexConfig(kind="auto", metric="l2", queries=200, threads=1)
    before = {"kind": "ivf_sq8", "tuned_rows": 5_500, "candidates": 14, "nprobe": 6}
    asked: list[tuple[str, int]] = []
    plain = tuning._set
    monkeypatch.setattr(
        tuning,
        "_set",
        lambda index, name, value, given: (asked.append((name, value)), plain(index, name, value, given)),
    )
    built = build_index(falling(6_000), config, before=before)
    assert built.kind == "ivf_sq8"
    assert [what for what, _ in built.told()] == ["why", "ivf_sq8"], "the others were not built"
    first = asked.index(("candidates", 14))
    assert [value for name, value in asked[:first] if name == "candidates"] == [2048], "before it only the most"
    cells = next(value for name, value in reversed(asked[:first]) if name == "nprobe")
    assert 12 <= cells < KINDS_CELLS, "candidates are walked in more cells than the parent's, not in all"
    assert ("nprobe", 6) in asked
    assert built.parameters["tuned_rows"] == 5_500, "of when all kinds were looked at"
    assert not still_stands(before, 12_000)
    assert not still_stands({}, 6_000)


def test_candidates_are_those_of_a_walk_in_all_cells_also_where_few_cells_lose_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = IndexConfig(kind="ivf_sq8", metric="l2", queries=100, threads=1, target_recall=0.95)
    items, found = falling(6_000), []
    for wide in (None, lambda *_: KINDS_CELLS, lambda *_: 1):  # as it is, all cells, too few
        if wide is not None:
            monkeypatch.setattr(tuning, "_wide", wide)
        built = build_index(items, config)
        found.append((built.parameters["candidates"], built.parameters["nprobe"]))
        assert built.points[0].reached
    candidates = np.array([float(one) for one, _ in found])
    assert (np.abs(candidates[[0, 2]] - candidates[1]) <= 0.1 * candidates[1]).all()
    # Negative control: walked in one cell alone, no number of candidates does.
    monkeypatch.setattr(tuning, "_most", lambda index, name, config: 1 if name == "nprobe" else 2048)
    with pytest.raises(ConfigError):
        build_index(items, config)


def test_a_kind_that_is_far_slower_at_its_least_effort_is_not_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    config, items = IndexConfig(kind="auto", metric="l2", queries=200, threads=1), falling(3_000)
    truth = truth_of(items, METRICS["l2"], np.arange(40), 10)
    index = build_index(items, IndexConfig(metric="l2")).index
    plain = index.search

    def slow(*asked: Any) -> Any:
        start = time.process_time()
        while time.process_time() < start + 0.06:
            pass
        return plain(*asked)

    with faiss_threads(1):
        assert not hopeless(index, "flat", truth, config, [point("ivf_sq8", 1e9)]), "it takes no time worth the while"
        monkeypatch.setattr(index, "search", slow)  # twenty in 60 ms, four times as fast at best: 1,333 a second
        assert hopeless(index, "flat", truth, config, [point("x", 10.0), point("ivf_sq8", 2_000.0)])
        assert not hopeless(index, "flat", truth, config, [point("ivf_sq8", 500.0)])
        assert not hopeless(index, "flat", truth, config, [])


def test_a_kind_whose_walk_is_far_slower_before_it_finds_enough_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    config, items = IndexConfig(kind="auto", metric="l2", queries=100, threads=1), falling(5_000)
    built = build_index(items, IndexConfig(kind="ivf_pq", metric="l2", threads=1, queries=50, target_recall=0.5))
    truth = Questions(items, METRICS["l2"], config).of("ivf_pq")[0]
    seen = list[dict[str, int]]()

    def slow(*asked: Any) -> bool:
        seen.append(asked[3])
        return asked[3]["candidates"] >= 20

    monkeypatch.setattr(tuning, "too_slow", slow)
    with faiss_threads(1):
        with pytest.raises(TooSlow):
            tune(built.index, "ivf_pq", truth, config, {}, good=[point("ivf_sq8", 1e9)])
        assert seen == [{"candidates": 10, "nprobe": 1}, {"candidates": 20, "nprobe": 1}]
        assert tune(built.index, "ivf_pq", truth, config, {}).reached, "nothing is faster: it is tuned"
    assert len(seen) == 2


def test_a_walk_from_about_its_end_ends_where_a_whole_one_does() -> None:
    for end in (1, 2, 7, 10, 31):
        for begin in (1, 6, 10, 64):
            asked = list[int]()

            def reaches(value: int, end: int = end, asked: list[int] = asked) -> bool:
                asked.append(value)
                return value >= end

            assert tuning._settled(reaches, 1, 64, begin) == tuning._walk(reaches, 1, 64, 0) == (end, True)
            del asked[:]
            tuning._settled(reaches, 1, 64, end)
            assert len(asked) <= 4
    assert tuning._settled(lambda value: False, 1, 64, 9) == (64, False)
    high, reached = tuning._settled(lambda value: value >= 1_000, 10, 2_048, 700)
    assert reached
    assert 1_000 <= high <= 1_031


def test_kinds_with_the_same_cells_train_them_once() -> None:
    config, items, metric = IndexConfig(kind="auto", metric="l2", queries=50), falling(2_000), METRICS["l2"]

    def work() -> Any:
        asked = Questions(items, metric, config)
        return build_module._Work(items, metric.item_features(items), metric, config, asked, {})

    def file_of(given: Any) -> bytes:
        return bytes(faiss.serialize_index(build_module._filled(given, "ivf_pq")))

    with faiss_threads(1):
        shared, alone = work(), work()
        build_module._filled(shared, "ivf_sq8")
        [(key, cells)] = shared.cells.items()
        assert cells.shape == key[::-1]
        assert file_of(shared) == file_of(alone)
        shared.cells[key] = cells[::-1].copy()  # negative control: whose cells they are decides the file
        assert file_of(shared) != file_of(alone)


def test_when_nothing_reaches_what_is_asked_the_best_is_said() -> None:
    asked = {"metric": "l2", "queries": 60, "threads": 1}
    with pytest.raises(ConfigError, match=r"(?s)'flat_codes' reaches index.target_recall 1 .*flat_codes, candidates"):
        build_index(falling(6_000), IndexConfig(kind="flat_codes", target_recall=1.0, max_ef_search=11, **asked))
    with pytest.raises(ConfigError, match=r"index.latency_p99_ms 1e-06"):
        build_index(falling(6_000), IndexConfig(kind="flat_eden4", latency_p99_ms=1e-6, **asked))


def test_auto_builds_what_fits_the_memory_and_says_the_least_that_would() -> None:
    tight = IndexConfig(kind="auto", metric="l2", memory_gib=300_000 / (1 << 30))
    names = candidate_kinds(6_000, 12, tight)
    assert "flat_eden4" in names
    assert "flat_codes" in names
    assert "hnsw" not in names
    assert estimate_bytes(6_000, 12, tight) <= 300_000
    none = IndexConfig(kind="auto", metric="l2", memory_gib=1_000 / (1 << 30))
    with pytest.raises(ConfigError, match=r"no kind of index of 6000 rows x 12 features fits .*needs about"):
        build_index(falling(6_000), none)


def test_what_is_new_is_in_no_key_until_it_is_asked_for() -> None:
    assert IndexConfig().model_dump(mode="json") == {
        "metric": "cosine", "kind": "auto", "m": 32, "ef_construction": 200, "target_recall": 0.98,
        "max_ef_search": 2048, "k": 10, "queries": 1000, "seed": 0, "memory_gib": None, "threads": None, "gpu": "auto",
    }  # fmt: skip
    assert IndexConfig(latency_p99_ms=5.0).model_dump(mode="json")["latency_p99_ms"] == 5.0


@pytest.mark.slow
def test_a_graph_is_measured_by_queries_that_it_does_not_hold() -> None:
    """Its own rows are found more easily: a walk starts beside them. What is tuned to and reported is of new photos."""
    items, new = (
        LatentArrays(mean=np.random.default_rng(seed).normal(size=(count, 24)).astype(np.float32))
        for seed, count in ((0, 6_000), (5, 400))
    )
    asked: dict[str, Any] = {"metric": "l2", "m": 16, "ef_construction": 40, "queries": 500, "threads": 1}
    built = build_index(items, IndexConfig(kind="hnsw", target_recall=0.9, **asked))
    wide = items.mean.astype(np.float64)
    apart = [np.linalg.norm(wide - query, axis=1) for query in new.mean]
    truth = [set(np.argsort(far)[:10].tolist()) for far in apart]

    def found(index: SearchIndex) -> float:
        answers = index.search(new, 10).ids.tolist()
        return float(np.mean([len(near & set(ids)) / 10 for near, ids in zip(truth, answers, strict=True)]))

    assert found(built.index) >= built.recall_low >= 0.88
    assert found(built.index) == pytest.approx(built.recall, abs=0.03)
    assert built.parameters["recall_by"] == "rows as if they were not in the index"
    rows = np.random.default_rng(3).permutation(6_000)[:500]
    own = recall_at_k(built.index, truth_of(items, METRICS["l2"], rows, 10))
    assert found(built.index) < own - 0.03, "negative control: by its own rows"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ivf_sq8", "ivf_pq"])
def test_an_effort_that_finds_too_few_is_not_tuned_by_what_is_looked_through_for_it(kind: str) -> None:
    """Under Jeffreys codes need many candidates; where that nears a scan of all rows, or cells are short, it is one."""
    generator = np.random.default_rng(0)
    spread = np.geomspace(0.05, 0.9, 16)

    def drawn(count: int) -> LatentArrays:
        means = generator.normal(size=(count, 16)) * np.geomspace(1.5, 0.05, 16)
        widths = np.log(spread) + 0.4 * generator.normal(size=(count, 16))
        return LatentArrays(mean=means.astype(np.float32), log_var=widths.astype(np.float32))

    items, new = drawn(4_500), drawn(60)
    asked: dict[str, Any] = {"metric": "jeffreys", "target_recall": 0.9, "queries": 100, "threads": 1}
    built = build_index(items, IndexConfig(kind=kind, **asked))
    truth = build_index(items, IndexConfig(metric="jeffreys")).index.search(new, 10).scores[:, -1:]

    def found(index: SearchIndex) -> float:
        return float(np.mean(index.search(new, 10).scores >= truth - 1e-9))

    assert found(built.index) >= built.recall - 0.03
    built.index.planner.set_effort("nprobe", 1)
    with built.index.planner.as_set():
        assert found(built.index) < 0.8, "negative control"

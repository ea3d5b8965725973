"""What a recall is measured by: rows as if the index did not hold them, nor their copies."""

from __future__ import annotations

from dataclasses import replace

import faiss
import numpy as np
import pytest

from pipeline.index import METRICS, IndexConfig, LatentArrays, SearchIndex, build_index, nearest_exact, products
from pipeline.index.graph import graph_without
from pipeline.index.kinds import KINDS
from pipeline.index.questions import Questions, copies_among
from pipeline.index.recall import nearest_in_blocks, recall_at_k, recall_low, recalls, truth_of, truth_without
from pipeline.index.segmented import SegmentedIndex


def cloud(count: int, dim: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def in_families(people: int, each: int, dim: int, jitter: float) -> LatentArrays:
    ones = np.repeat(cloud(people, dim, 0), each, axis=0)
    return LatentArrays(mean=ones + np.float32(jitter) * cloud(len(ones), dim, 1))


def found(index: object, items: np.ndarray, queries: np.ndarray) -> float:
    """Recall@10 of photos that are in no index, by definition."""
    truth = [np.argsort(np.linalg.norm(items.astype(np.float64) - query, axis=1))[:10] for query in queries]
    answers = index.search(LatentArrays(mean=queries), 10).ids  # type: ignore[attr-defined]
    return float(np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(answers, truth, strict=True)]))


@pytest.mark.parametrize("behind_a_rotation", [False, True])
@pytest.mark.parametrize("metric", [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT])
def test_no_walk_meets_rows_that_were_taken_out_and_all_others_are_still_reached(
    metric: int, behind_a_rotation: bool
) -> None:
    items = cloud(1500, 8, 0)
    graph = faiss.IndexHNSWFlat(8, 6, metric)
    rotation = faiss.RandomRotationMatrix(8, 8)
    rotation.init(3)
    index = faiss.IndexPreTransform(rotation, graph) if behind_a_rotation else graph
    index.add(items)
    levels = faiss.vector_to_array(graph.hnsw.levels)
    gone = np.unique([*range(0, 1500, 7), int(graph.hnsw.entry_point), *np.flatnonzero(levels == levels.max())])
    apart = graph_without(index, gone, items)
    inner = faiss.downcast_index(apart.index) if behind_a_rotation else apart
    for each in (graph, inner):
        each.hnsw.efSearch = 1500
    assert not np.isin(apart.search(items[:200], 100)[1], gone).any()
    kept = np.setdiff1d(np.arange(1500), gone)
    near = items[:200] @ items[kept].T
    if metric == faiss.METRIC_L2:
        near = 2 * near - (items[kept] ** 2).sum(axis=1)
    truth = kept[np.argsort(-near, axis=1)[:, :10]]
    met = [len(np.intersect1d(a, b)) / 10 for a, b in zip(apart.search(items[:200], 10)[1], truth, strict=True)]
    assert np.mean(met) > 0.99
    assert np.isin(index.search(items[gone], 5)[1], gone).any(), "the index itself still holds them"
    assert int(inner.hnsw.max_level) < int(graph.hnsw.max_level), "nobody is left on the highest level"


def test_rows_are_taken_out_of_the_segment_that_holds_them() -> None:
    """A row of the index is another row in its segment: the wrong ones would go where the two are mixed up."""
    items, order = cloud(800, 8, 0), np.random.default_rng(1).permutation(800)
    numbers, places = np.empty(800, np.int32), np.empty(800, np.int32)
    segments = []
    for number, rows in enumerate(np.array_split(order, 3)):
        graph = faiss.IndexHNSWFlat(8, 8)
        graph.add(items[rows])
        numbers[rows], places[rows] = number, np.arange(len(rows))
        segments.append(SearchIndex(graph, METRICS["l2"]))
    index = SegmentedIndex(segments, numbers, places)
    index.planner.set_effort("ef_search", 200)
    gone = np.arange(0, 800, 9)
    apart, queries = index.without_rows(gone), LatentArrays(items[gone])
    with apart.planner.as_set(), index.planner.as_set():
        found, whole = apart.search(queries, 10), index.search(queries, 10)
    assert not np.isin(found.ids, gone).any()
    assert (whole.ids[:, 0] == gone).all(), "the index itself still holds them"
    truth = truth_without(LatentArrays(items), METRICS["l2"], gone, gone, 10)
    assert np.mean(found.scores[:, -1] >= truth.kth - 1e-6) > 0.98


def test_links_that_are_only_cut_lose_rows() -> None:
    """Negative control: without an heir for each lost link a graph is poorer than one that never held the rows."""
    items = cloud(4000, 16, 0)
    index = faiss.IndexHNSWFlat(16, 8)
    index.add(items)
    gone, kept = np.arange(0, 4000, 8), np.setdiff1d(np.arange(4000), np.arange(0, 4000, 8))
    never = faiss.IndexHNSWFlat(16, 8)
    never.add(items[kept])
    cut = faiss.clone_index(index)
    links = faiss.rev_swig_ptr(cut.hnsw.neighbors.data(), int(cut.hnsw.neighbors.size()))
    starts = faiss.vector_to_array(cut.hnsw.offsets)
    for row in kept.tolist():
        own = links[starts[row] : starts[row] + 16]
        left = own[(own >= 0) & (own % 8 > 0)]
        own[:] = -1
        own[: len(left)] = left
    truth = truth_without(LatentArrays(items), METRICS["l2"], gone, gone, 10)
    reached = {}
    for name, graph in (("mended", graph_without(index, gone, items)), ("cut", cut), ("never", never)):
        graph.hnsw.efSearch = 24
        distances = np.sqrt(graph.search(items[gone], 10)[0])
        reached[name] = float(np.mean(distances <= -truth.kth[:, None] + 1e-4))
    assert reached["mended"] == pytest.approx(reached["never"], abs=0.02)
    assert reached["cut"] < reached["never"] - 0.03


def test_truth_leaves_out_what_is_said_in_blocks_or_not() -> None:
    items = LatentArrays(mean=cloud(300, 4, 0))
    rows, gone = np.array([3, 50, 299]), np.array([0, 3, 4, 50, 299])
    kept = np.setdiff1d(np.arange(300), gone)
    wide = items.mean.astype(np.float64)
    wanted = [-np.sort(np.linalg.norm(wide[kept] - wide[row], axis=1))[9] for row in rows]
    for block in (None, 1, 7, 1000):
        truth = truth_without(items, METRICS["l2"], rows, gone, 10, block=block)
        np.testing.assert_allclose(truth.kth, wanted, rtol=1e-6)
        assert truth.kept is not None
        assert truth.kept.rows().tolist() == kept.tolist()


@pytest.mark.parametrize(("each", "jitter", "copies"), [(1, 0.0, 0), (8, 0.01, 8), (8, 0.0, 8), (20, 0.03, 20)])
def test_copies_are_seen_where_most_rows_have_them(each: int, jitter: float, copies: int) -> None:
    items = in_families(2400 // each, each, 12, jitter)
    for metric in ("l2", "cosine"):
        counted = Questions(items, METRICS[metric], IndexConfig(metric=metric, kind="ivf_sq8")).copies
        assert abs(counted - copies) <= copies // 2 + (copies > 0)
    assert copies_among(np.zeros((5, 64))) == 0
    plane = np.cumsum(np.ones((5, 64)), axis=1)  # squared distance in a plane grows with the number of rows
    assert copies_among(plane) == 0


def test_large_families_are_seen_where_there_are_many_rows() -> None:
    items, config = in_families(4000, 80, 6, 0.003), IndexConfig(metric="l2", kind="ivf_sq8")
    assert abs(Questions(items, METRICS["l2"], config).copies - 80) <= 40
    rows = np.arange(0, 320_000, 3200)
    near = nearest_in_blocks(METRICS["l2"], items, items.take(rows), 64, exclude=rows, block=320_000)[1]
    assert copies_among(near * near) == 0, "negative control: all of 64 nearest rows are of the family"


@pytest.mark.slow
def test_codes_are_tuned_and_measured_without_the_copies_of_what_asks() -> None:
    """The old way, by rows whose near copies answer them, says more than photos find that have none."""
    items = in_families(700, 12, 16, 0.05)
    new = cloud(200, 16, 9)
    config = IndexConfig(metric="l2", kind="ivf_sq8", target_recall=0.9, queries=200, threads=1)
    built = build_index(items, config)
    assert built.parameters["copies_left_out"] > 0
    assert found(built.index, items.mean, new) >= 0.87
    assert built.recall == pytest.approx(found(built.index, items.mean, new), abs=0.04)
    own = truth_of(items, METRICS["l2"], np.arange(0, 8400, 42), 10)
    built.index.planner.set_effort("nprobe", 1)
    with built.index.planner.as_set():
        as_ever = recall_at_k(built.index, own)
    assert as_ever > 0.9, "negative control: one cell would have done"
    assert found(built.index, items.mean, new) < 0.7


def test_what_a_catalogue_without_copies_is_asked_by_stays_for_codes() -> None:
    questions = Questions(LatentArrays(mean=cloud(5000, 12, 0)), METRICS["l2"], IndexConfig(kind="ivf_sq8"))
    drawn = np.random.default_rng(0).permutation(5000)[:2000]
    tuning, measuring = questions.of("ivf_sq8")
    assert tuning.rows.tolist() == sorted(drawn[:1000].tolist())
    assert measuring.rows.tolist() == sorted(drawn[1000:].tolist())
    assert questions.told("ivf_sq8") == {"recall_by": "rows of the index but themselves"}
    assert questions.told("flat") == {}
    assert [kind for kind in KINDS if questions.of(kind)[1].kept is not None] == [
        kind for kind in KINDS if KINDS[kind].by_unseen
    ]


def test_what_is_left_out_is_known_from_the_nearest_of_all_rows() -> None:
    items, rows = LatentArrays(mean=cloud(600, 4, 0)), np.arange(0, 600, 6)
    metric, few = METRICS["l2"], np.arange(0, 600, 3)
    near = nearest_in_blocks(metric, items, items.take(rows), 14, exclude=rows, block=200)
    many = np.unique(np.concatenate([rows, near[0][:, :8].ravel()]))  # of some fewer than ten are left of the fourteen
    for gone in (few, many):
        wanted = truth_without(items, metric, rows, gone, 10)
        given = truth_without(items, metric, rows, gone, 10, near=near)
        np.testing.assert_array_equal(given.kth, wanted.kth)
        assert given.neighbours == wanted.neighbours == 10
    assert (np.isin(near[0], many, invert=True).sum(axis=1) < 10).any()
    assert (near[1][:, 9] > wanted.kth).any(), "negative control: the tenth of all rows"


def test_a_product_in_single_precision_never_decides_what_is_nearest() -> None:
    """Rows so near each other and so far out that its rounding is larger than all that sets them apart."""
    items, rows = LatentArrays(mean=np.float32(30.0) + 1e-3 * cloud(2000, 16, 0)), np.arange(0, 2000, 100)
    wide = items.mean.astype(np.float64)
    far = np.square(wide[rows, None] - wide).sum(axis=2)
    far[np.arange(len(rows)), rows] = np.inf
    wanted = np.argsort(far, axis=1)[:, :10]
    found, _ = nearest_exact(METRICS["l2"], items, items.take(rows), 10, exclude=rows)
    assert np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(found, wanted, strict=True)]) > 0.99
    blind = replace(METRICS["l2"], rounding=lambda values, queries, features: np.full(len(values), -np.inf))
    lost, _ = nearest_exact(blind, items, items.take(rows), 10, exclude=rows)
    assert np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(lost, wanted, strict=True)]) < 0.9, (
        "negative control"
    )


def test_the_nearest_are_kept_whatever_the_order_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that come nearer and nearer, and copies, where the first kept have to give way or stay."""
    monkeypatch.setattr(products, "BLOCK", 64)
    line = np.repeat(np.linspace(9.0, 1.0, 300, dtype=np.float32), 2)
    for order in (np.arange(600), np.arange(600)[::-1], np.random.default_rng(0).permutation(600)):
        items = LatentArrays(mean=np.stack([line[order], np.zeros(600, np.float32)], axis=1))
        asked = LatentArrays(mean=np.zeros((3, 2), np.float32))
        ids, scores = nearest_exact(METRICS["l2"], items, asked, 20)
        wanted = np.lexsort((np.arange(600), items.mean[:, 0]))[:20]
        assert (ids == wanted).all()
        np.testing.assert_array_equal(scores[0], -items.mean[wanted, 0].astype(np.float64))


def test_what_is_reported_is_what_photos_find_or_less() -> None:
    """By few rows of the index; negative control: their mean promises more than is found about every second time."""
    items, new = (LatentArrays(mean=cloud(count, 10, seed)) for seed, count in ((0, 6000), (1, 1000)))
    index = build_index(items, IndexConfig(metric="l2", kind="ivf_sq8", target_recall=0.9, queries=50, threads=1)).index
    index.planner.set_effort("nprobe", 20)
    with index.planner.as_set():
        truth, _ = nearest_exact(METRICS["l2"], items, new, 10)
        answers = index.search(new, 10).ids
        wanted = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(answers, truth, strict=True)])
        own = truth_of(items, METRICS["l2"], np.arange(0, 6000, 3), 10)
        found = recalls(index, own)
    few = [found[draw::20] for draw in range(20)]  # 100 rows each
    assert 0.9 < wanted < 0.98
    assert sum(recall_low(some, 10) > wanted for some in few) <= 3
    assert sum(some.mean() > wanted for some in few) >= 6


def test_the_manifest_holds_the_lower_end_of_every_kind_that_may_lose_rows() -> None:
    items = LatentArrays(mean=cloud(6000, 8, 0))
    for kind in ("hnsw", "ivf_sq8"):
        config = IndexConfig.model_validate({"metric": "l2", "kind": kind, "m": 8, "queries": 60, "threads": 1})
        built = build_index(items, config.model_copy(update={"target_recall": 0.9, "ef_construction": 40}))
        assert built.parameters["recall_low"] == built.recall_low < built.recall
    assert "recall_low" not in build_index(items, IndexConfig(metric="l2")).parameters

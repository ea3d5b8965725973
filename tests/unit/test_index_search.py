"""Searching: filters, ties, widening to whole items, files, and what is refused."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from types import SimpleNamespace

import faiss
import numpy as np
import pytest

from pipeline.errors import ConfigError, IntegrityError
from pipeline.index import (
    METRICS,
    Grouping,
    IndexConfig,
    LatentArrays,
    SearchIndex,
    build_index,
    faiss_module,
    nearest_groups,
    open_index,
)
from pipeline.index.filling import filling
from pipeline.index.filters import RowFilter
from pipeline.index.fusion import reciprocal_ranks
from pipeline.index.groups import GroupHits

pytestmark = pytest.mark.usefixtures("walked")


def latents(count: int, dim: int = 8, *, seed: int = 0) -> LatentArrays:
    return LatentArrays(mean=np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32))


def distances(queries: LatentArrays, items: LatentArrays) -> np.ndarray:
    return np.linalg.norm(queries.mean[:, None].astype(np.float64) - items.mean[None].astype(np.float64), axis=-1)


@pytest.fixture(scope="module")
def items() -> LatentArrays:
    return latents(3_000)


@pytest.fixture(scope="module", params=["flat", "hnsw"])
def index(request: pytest.FixtureRequest, items: LatentArrays) -> SearchIndex:
    config = IndexConfig(metric="l2", kind=request.param, target_recall=1.0, ef_construction=100)
    return build_index(items, config).index


@pytest.mark.parametrize("allowed_count", [0, 1, 7, 100, 500, 1_500, 2_999])
def test_a_filter_allows_nothing_else_and_loses_nothing(
    index: SearchIndex, items: LatentArrays, allowed_count: int
) -> None:
    allowed = np.random.default_rng(allowed_count).permutation(3_000)[:allowed_count].astype(np.int64)
    queries = latents(20, seed=9)
    ids, scores = index.search(queries, 10, allowed=allowed)
    apart = distances(queries, items)
    apart[:, np.setdiff1d(np.arange(3_000), allowed)] = np.inf
    truth = np.argsort(apart, axis=1)[:, : min(10, allowed_count)]
    assert (ids[:, min(10, allowed_count) :] == -1).all()
    found = ids[:, : min(10, allowed_count)]
    assert np.isin(found, allowed).all()
    same = np.mean([len(np.intersect1d(a, b)) / max(1, len(a)) for a, b in zip(found, truth, strict=True)])
    assert same >= (0.97 if allowed_count > 600 else 1.0) or allowed_count == 0
    np.testing.assert_allclose(-scores[:, : found.shape[1]], np.take_along_axis(apart, found, axis=1), atol=1e-9)


def test_negative_control_a_graph_alone_loses_rows_under_a_narrow_filter(items: LatentArrays) -> None:
    raw = faiss.IndexHNSWFlat(8, 32)
    raw.add(items.mean)
    allowed = RowFilter.of_rows(np.arange(10, dtype=np.int64), 3_000)
    walk = faiss.SearchParametersHNSW(sel=allowed.selector(), efSearch=16)
    search = getattr(raw, "search_numpy", raw.search)  # what other tests import may have patched `search`
    _, found = search(latents(20, seed=9).mean, 10, params=walk)
    assert (found < 0).any(), "why narrow filters scan"
    ids, _ = SearchIndex(raw, build_index(items, IndexConfig(metric="l2")).index.metric).search(
        latents(20, seed=9), 10, allowed=allowed
    )
    assert (ids >= 0).all()


def test_ties_go_to_the_lower_row() -> None:
    vectors = LatentArrays(mean=np.repeat(latents(5).mean, 4, axis=0)[np.random.default_rng(0).permutation(20)])
    index = build_index(vectors, IndexConfig(metric="l2")).index
    hits = index.search(vectors.take([11]), 20)
    order = sorted(range(20), key=lambda row: (round(distances(vectors.take([11]), vectors)[0, row], 9), row))
    assert hits.ids[0].tolist() == order


@pytest.mark.parametrize("k", [1, 3, 3_000, 9_999])
def test_k_up_to_and_above_the_number_of_rows(index: SearchIndex, items: LatentArrays, k: int) -> None:
    hits = index.search_bounded(items.take([5]), k)
    there = min(k, 3_000)
    assert hits.ids.shape == (1, k)
    assert len(set(hits.ids[0, :there].tolist())) == there
    assert hits.ids[0, 0] == 5
    assert (hits.ids[0, there:] == -1).all()
    assert np.isneginf(hits.ceilings[0]) == (k >= 3_000)


def test_a_local_file_is_mapped(tmp_path: Path, items: LatentArrays) -> None:
    for kind in ("flat", "hnsw"):
        built = build_index(items, IndexConfig(kind=kind, ef_construction=40))
        path = tmp_path / kind
        path.write_bytes(built.data)
        mapped = open_index(path, "cosine")
        path.unlink()  # a mapped file stays readable
        queries = latents(10, seed=3)
        for ours, theirs in zip(mapped.search(queries, 7), built.index.search(queries, 7), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_bytes_that_are_no_index_are_refused() -> None:
    data = build_index(latents(50), IndexConfig()).data
    for wrong in (b"", b"not an index", data[:100], data[:-1]):
        with pytest.raises(IntegrityError):
            open_index(wrong, "cosine")
    with pytest.raises(IntegrityError, match="not a FAISS index"):
        open_index("/nowhere/at/all", "cosine")
    with pytest.raises(ConfigError, match="unknown metric 'dot'; one of l2, l2/query_median"):
        open_index(data, "dot")


def test_an_index_that_does_not_store_its_vectors_is_refused() -> None:
    lossy = faiss.index_factory(8, "SQ8", faiss.METRIC_INNER_PRODUCT)
    lossy.train(latents(100).mean)
    with pytest.raises(IntegrityError, match="does not store its features"):
        open_index(faiss.serialize_index(lossy).tobytes(), "cosine")


def test_queries_that_do_not_fit_are_refused(index: SearchIndex) -> None:
    with pytest.raises(ConfigError, match="8 features"):
        index.search(latents(2, dim=9), 3)
    wrong = latents(2)
    wrong.mean[1, 1] = np.nan
    with pytest.raises(ConfigError, match="NaN"):
        index.search(wrong, 3)
    with pytest.raises(ConfigError, match="filter was made for 10 rows"):
        index.search(latents(1), 3, allowed=RowFilter(np.ones(10, np.bool_)))


def brute_groups(
    queries: LatentArrays, items: LatentArrays, groups: np.ndarray, k: int, left_out: set[int]
) -> list[tuple[int, float]]:
    best = -distances(queries, items).min(axis=0)
    scores = {int(g): max(best[groups == g]) for g in np.unique(groups) if int(g) not in left_out}
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))[:k]


@pytest.mark.parametrize("seed", range(6))
def test_nearest_groups_are_those_of_brute_force(seed: int) -> None:
    generator = np.random.default_rng(seed)
    # Many rows in few groups of very different sizes: one group alone can fill the first rows found.
    groups = np.sort(generator.choice(40, size=800, p=generator.dirichlet(np.full(40, 0.3))))
    groups = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    mean = generator.normal(size=(800, 8)) * 0.1 + generator.normal(size=(groups.max() + 1, 8))[groups]
    items = LatentArrays(mean=mean.astype(np.float32))
    index = build_index(items, IndexConfig(metric="l2")).index
    rows = generator.permutation(800)[:12]
    owners = np.repeat(np.arange(4), 3)
    left_out = set(generator.choice(groups, 2).tolist())
    answers = nearest_groups(
        index, items.take(rows), owners, 9, Grouping(groups), exclude=np.array(sorted(left_out), np.int64)
    )
    for owner, answer in enumerate(answers):
        expected = brute_groups(items.take(rows[owners == owner]), items, groups, 9, left_out)
        assert answer.groups.tolist() == [group for group, _ in expected]
        np.testing.assert_allclose(answer.scores, [score for _, score in expected], atol=1e-9)


def test_ties_beyond_the_first_rows_found_still_go_to_the_lowest_group() -> None:
    # 500 copies of one photo, a group each, numbered against the rows: any 3 are nearest, 0, 1, 2 are right.
    items = LatentArrays(mean=np.ones((500, 8), np.float32))
    index = build_index(items, IndexConfig(metric="l2")).index
    groups = np.arange(499, -1, -1, dtype=np.int64)
    (answer,) = nearest_groups(index, items.take([0]), np.zeros(1, np.int64), 3, Grouping(groups))
    assert answer.groups.tolist() == [0, 1, 2]


def test_reciprocal_ranks_by_hand() -> None:
    lists = [
        GroupHits(groups=np.array([7, 3, 5]), scores=np.array([0.9, 0.8, 0.7])),
        GroupHits(groups=np.array([3, 9]), scores=np.array([0.2, 0.1])),
    ]
    fused = reciprocal_ranks(lists, np.array([1.0, 2.0]), 10)
    assert fused.groups.tolist() == [3, 9, 7, 5]
    np.testing.assert_allclose(fused.scores, [1 / 7 + 2 / 6, 2 / 7, 1 / 6, 1 / 8], rtol=1e-15)
    tied = reciprocal_ranks(lists, np.array([1.0, 1.0]), 2)
    assert tied.groups.tolist() == [3, 7]


@pytest.mark.parametrize(("constant", "firsts"), [(5, 3), (60, 0)])
def test_what_lists_agree_on_far_below_does_not_push_out_the_first_of_one(
    monkeypatch: pytest.MonkeyPatch, constant: int, firsts: int
) -> None:
    # Two products of one taste share their neighbours 100, 101, ...; 0, 1, 2 are the first of the third's own. With 60,
    # which is right for rankings of one question, none of the third's is among the first 20.
    monkeypatch.setattr("pipeline.index.fusion.RRF_K", constant)
    shared = np.arange(100, 150)
    lists = [GroupHits(groups=groups, scores=np.zeros(50)) for groups in (shared, shared, np.arange(50))]
    found = reciprocal_ranks(lists, np.ones(3), 20).groups
    assert np.isin([0, 1, 2], found).sum() == firsts


class Wheel:
    def __init__(self, name: str | None) -> None:
        self.metadata = {"Name": name}


@pytest.fixture
def wheels(monkeypatch: pytest.MonkeyPatch) -> list[Wheel]:
    installed = [Wheel("numpy"), Wheel("faiss_extras"), Wheel(None)]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: installed)
    faiss_module.load_faiss.cache_clear()
    yield installed
    faiss_module.load_faiss.cache_clear()


@pytest.mark.parametrize("name", ["faiss-cpu", "faiss_gpu_cuvs", "faiss-gpu", "faiss-gpu-cu12"])
def test_one_wheel_is_right(wheels: list[Wheel], name: str) -> None:
    wheels.extend([Wheel(name), Wheel(name)])  # the same distribution seen over two paths
    assert faiss_module.load_faiss() is faiss


def test_two_wheels_are_refused_with_the_way_out(wheels: list[Wheel]) -> None:
    wheels.extend([Wheel("faiss-cpu"), Wheel("faiss-gpu-cuvs")])
    with pytest.raises(
        ConfigError, match=r"faiss-cpu, faiss-gpu-cuvs.*pip uninstall -y faiss-cpu faiss-gpu-cuvs.*\[cpu\]"
    ):
        faiss_module.load_faiss()


@pytest.mark.parametrize(
    ("version", "threads"), [("1.11.0.post1", 1), ("1.15.0", 1), ("1.15.1", None), ("1.16", None), ("2.0.0", None)]
)
def test_graphs_are_linked_by_one_thread_where_more_would_not_repeat(
    version: str, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss, "__version__", version)
    assert faiss_module.linking_threads() == threads
    used: list[int] = []
    graph = SimpleNamespace(add=lambda _: used.append(faiss.omp_get_max_threads()))
    with faiss_module.faiss_threads(2):
        filling("hnsw", graph, METRICS["l2"], IndexConfig()).add(np.zeros((1, 2), np.float32))
        assert faiss.omp_get_max_threads() == 2
    assert used == [threads or 2]


def test_no_wheel_names_the_extras(wheels: list[Wheel], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(faiss_module.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"not installed.*visual-codebooks\[cpu\].*visual-codebooks\[gpu\]"):
        faiss_module.load_faiss()
    wheels.append(Wheel("faiss-cpu"))
    with pytest.raises(ConfigError, match=r"faiss-cpu is installed but cannot be imported.*--no-deps faiss-cpu"):
        faiss_module.load_faiss()

    def torn(_: str) -> None:
        raise ImportError("libfaiss.so: undefined symbol: _ZTIN3rmm9bad_allocE")

    monkeypatch.setattr(faiss_module.importlib, "import_module", torn)
    wheels[:] = [Wheel("faiss-gpu-cuvs")]
    with pytest.raises(ConfigError, match=r"of other versions.*visual-codebooks\[gpu\].* takes those") as told:
        faiss_module.load_faiss()
    assert "--no-deps" not in str(told.value), "reinstalling it alone would change nothing"

"""GPUs by FAISS's CPU twins: the same code, the same files, whatever runs out of memory and when."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.errors import ConfigError
from pipeline.index import METRICS, IndexConfig, LatentArrays, build_index, gpu, open_index
from pipeline.index import filling as filling_module
from pipeline.index.faiss_module import faiss_threads
from pipeline.index.filling import Filling, filling, train
from pipeline.index.kinds import KINDS, candidate_kinds, training_rows
from pipeline.index.latents import Float32

ROWS, DIM, K = 3_000, 15, 10
# What FAISS 1.15 raises, without cuVS and with it, from one GPU or from several, and what rmm says to whoever asks it.
SAID = (
    "StandardGpuResources: alloc fail type TemporaryMemoryOverflow dev 0 (cudaMalloc error out of memory [2])",
    "Error in allocMemory at StandardGpuResources.cpp:355: CUDA memory allocation error",
    "Exception thrown from index 1: Error in allocMemory: CUDA memory allocation error",
    "C++ exception std::bad_alloc: CUDA error at: cuda_memory_resource.hpp:62: cudaErrorMemoryAllocation",
)


def features(rows: int = ROWS, *, seed: int = 0) -> Float32:
    drawn = np.random.default_rng(seed).normal(size=(rows, DIM)) * np.geomspace(1.0, 0.1, DIM)
    return drawn.astype(np.float32)


def config(kind: str, **asked: Any) -> IndexConfig:
    return IndexConfig.model_validate({"kind": kind, "metric": "l2", "threads": 1, "m": 8, "queries": 100, **asked})


def two(index: Any, temporary: int) -> Any:
    """What FAISS makes of a flat index for two GPUs, of CPU indexes."""
    both = faiss.IndexReplicas(index.d)
    for _ in range(2):
        both.addIndex(faiss.clone_index(index))
    return both


def linked(rows: Float32, m: int, ef_construction: int, temporary: int) -> Any:
    """The CPU index that a graph of CAGRA is copied into, linked by the CPU."""
    graph = faiss.IndexHNSWCagra(rows.shape[1], m, faiss.METRIC_L2)
    graph.hnsw.efConstruction = ef_construction
    graph.add(rows)
    return graph


TWINS = gpu.Gpus(
    count=lambda: 2,
    draws_graphs=lambda: True,
    to_gpus=two,
    train=lambda index, rows: index.train(rows),
    nearest=gpu.nearest,
    graph=linked,
)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def here(**other: Any) -> None:
        monkeypatch.setattr(gpu, "GPUS", replace(TWINS, **other))

    return here


def filled(kind: str, *, metric: int = faiss.METRIC_L2, made: Callable[..., Filling] = filling) -> Any:
    """Train and fill an index in blocks of 2,000 rows, as builds do."""
    rows, asked = features(), config(kind)
    index = KINDS[kind].make(DIM, metric, ROWS, asked)
    if not index.is_trained:
        train(kind, index, training_rows(rows, asked), METRICS["l2"], asked)
    filling = made(kind, index, METRICS["l2"], asked)
    for start in range(0, ROWS, 2_000):
        filling.add(rows[start : start + 2_000])
    return filling.finished()


def written(index: Any) -> bytes:
    data: bytes = faiss.serialize_index(index).tobytes()
    return data


@pytest.fixture(scope="module")
def by_cpu() -> dict[str, bytes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "GPUS", replace(TWINS, count=lambda: 0))
        return {kind: written(filled(kind)) for kind in ("ivf_sq8", "ivf_pq")}


class Failing:
    """What asks a GPU, and runs out of memory when `short` says so of (number of the call, what it was given)."""

    def __init__(self, real: Callable[..., Any], short: Callable[[int, Any], bool], said: str = SAID[0]) -> None:
        self.real, self.short, self.said = real, short, said
        self.given: list[Any] = []

    def __call__(self, index: Any, what: Any) -> Any:
        self.given.append(len(what) if isinstance(what, np.ndarray) else what)
        if self.short(len(self.given), self.given[-1]):
            raise RuntimeError(self.said)
        return self.real(index, what)


@pytest.mark.parametrize("kind", ["ivf_sq8", "ivf_pq"])
@pytest.mark.parametrize(
    ("short", "asked", "told"),
    [
        (lambda call, rows: False, [2_000, 1_000], 0),
        (lambda call, rows: rows > 1_024, [2_000] * 4 + [1_024, 976, 1_000], 4),  # halved, and stays so
        (lambda call, rows: call == 2, [2_000, 1_000, 1_000], 1),  # in between, once
        (lambda call, rows: call > 1, [2_000] + [1_000] * 5, 5),  # from then on the CPU, and no GPU is asked again
    ],
)
def test_cells_told_by_gpus_give_the_same_file_whatever_runs_out(
    gpus: Any, by_cpu: Any, caplog: Any, kind: str, short: Any, asked: list[int], told: int
) -> None:
    nearest = Failing(gpu.nearest, short)
    gpus(nearest=nearest)
    with caplog.at_level(logging.WARNING):
        index = filled(kind)
    assert index.ntotal == ROWS
    assert written(index) == by_cpu[kind], "no row twice, none lost, all in their cells"
    assert nearest.given == asked
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == told
    assert all("out of GPU memory while telling cells" in line for line in said)
    assert ("going on on the CPU" in "".join(said)) == (told == 5)


def test_negative_control_adding_before_all_cells_are_told(gpus: Any, by_cpu: Any) -> None:
    """A block that is added as far as it went, and then asked again from its beginning, is there twice."""

    class Eager(filling_module._InCells):
        def add(self, rows: Float32) -> None:
            for start in range(0, len(rows), 500):
                super().add(rows[start : start + 500])
                if start == 500 and self._added.ntotal == 1_000:
                    return self.add(rows)
            return None

    gpus()
    index = filled("ivf_sq8", made=lambda kind, index, metric, asked: Eager(index))
    assert index.ntotal > ROWS
    assert written(index) != by_cpu["ivf_sq8"]


@pytest.mark.parametrize("kind", ["ivf_sq8", "ivf_pq"])
def test_training_asks_gpus_and_survives_their_memory(gpus: Any, by_cpu: Any, caplog: Any, kind: str) -> None:
    def rows_of(index: Any, rows: Float32) -> None:
        inner = gpu.inverted_file(index)
        assert inner is not None
        assert inner.clustering_index.ntotal == 0
        assert (kind == "ivf_pq") == (hasattr(inner, "pq") and inner.pq.assign_index is not None)
        if len(train.given) == 1:  # memory ends between the cells and the codes
            turned = faiss.downcast_VectorTransform(index.chain.at(0)).apply(rows)
            inner.train_q1(len(turned), faiss.swig_ptr(turned), False, inner.metric_type)
            assert inner.clustering_index.ntotal == inner.nlist, "k-means asked it"
            raise RuntimeError(SAID[1])
        index.train(rows)

    def copied(index: Any, temporary: int) -> Any:
        if temporary > 200 << 20:
            raise MemoryError("std::bad_alloc")
        return two(index, temporary)

    train = Failing(rows_of, lambda call, rows: False)
    gpus(to_gpus=copied, train=train)
    with caplog.at_level(logging.WARNING):
        index = filled(kind)
    assert written(index) == by_cpu[kind]
    assert len(train.given) == 2
    inner = gpu.inverted_file(index)
    assert inner is not None
    assert inner.clustering_index is None, "what it points to is gone"
    said = [record.getMessage() for record in caplog.records if "training cells" in record.getMessage()]
    assert [line.split(" with ")[1].split()[0] for line in said] == [str(size << 20) for size in (512, 256, 128)]

    gpus(to_gpus=copied, train=Failing(rows_of, lambda call, rows: True))
    caplog.clear()
    assert written(filled(kind)) == by_cpu[kind]
    assert "going on on the CPU" in caplog.text


def test_only_memory_is_taken_for_memory(gpus: Any) -> None:
    assert all(gpu.ran_out(RuntimeError(text)) for text in SAID)
    others = [
        "CUDA error 700 an illegal memory access was encountered",
        "index is already trained",
        "allocation of ids",
    ]
    assert not any(gpu.ran_out(RuntimeError(text)) for text in others)
    gpus(nearest=Failing(gpu.nearest, lambda call, rows: True, others[0]))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        filled("ivf_sq8")


def test_what_the_cpu_fills_by_itself_asks_no_gpu(gpus: Any) -> None:
    def asked(*given: Any) -> Any:
        raise AssertionError("a GPU was asked")

    gpus(to_gpus=asked, nearest=asked, train=asked, graph=asked)
    for kind in ("flat", "flat_codes"):
        assert filled(kind).ntotal == ROWS
    build_index(LatentArrays(mean=features(300)), config("ivf_sq8", gpu="never", target_recall=0.5))
    build_index(LatentArrays(mean=features(300)), config("cagra"))  # so few are linked by the CPU


@pytest.fixture
def drawn(gpus: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(filling_module, "_LEAST_GRAPH", 1_000)
    return gpus


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_a_graph_of_gpus_is_an_hnsw_that_every_reader_opens(drawn: Any, metric: str) -> None:
    latents = LatentArrays(mean=features(5_000))
    given: list[Any] = []

    def graph(*asked: Any) -> Any:
        given.append(asked[1:])
        return linked(*asked)

    drawn(graph=graph)
    built = build_index(latents, config("cagra", metric=metric, ef_construction=40, target_recall=0.9))
    assert given == [(8, 40, 512 << 20)]
    assert (built.kind, built.data[:4], built.features) == ("cagra", b"IHNf", None)
    plain = faiss.deserialize_index(np.frombuffer(built.data, np.uint8))
    assert type(plain) is faiss.IndexHNSWFlat
    assert plain.hnsw.efSearch == built.parameters["ef_search"]
    index = open_index(built.data, metric)
    asked = LatentArrays(mean=features(100, seed=1))
    ids, scores = index.search(asked, K)
    truth, exact = index.exactly().search(asked, K)
    assert np.mean([len(np.intersect1d(*pair)) / K for pair in zip(ids, truth, strict=True)]) >= 0.88
    same = ids == truth
    np.testing.assert_allclose(scores[same], exact[same], atol=1e-6)
    assert built.recall == pytest.approx(0.93, abs=0.06)
    assert "as if they were not in the index" in str(built.parameters["recall_by"])


def test_negative_control_a_graph_by_l2_that_stays_one_under_inner_product(drawn: Any) -> None:
    drawn()
    rows = features(2_000)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    asked = config("cagra", metric="cosine", ef_construction=40)

    def recall(kept: bool) -> float:
        graph = filling(
            "cagra", KINDS["cagra"].make(DIM, faiss.METRIC_INNER_PRODUCT, 2_000, asked), METRICS["cosine"], asked
        )
        graph.add(rows)
        index = graph.finished()
        assert index.hnsw.is_similarity
        index.hnsw.is_similarity = kept
        _, found = getattr(index, "search_numpy", index.search)(rows[:100], K)
        truth = np.argsort(-(rows[:100] @ rows.T), axis=1)[:, :K]
        return float(np.mean([len(np.intersect1d(*pair)) / K for pair in zip(found, truth, strict=True)]))

    assert recall(kept=True) > 0.8
    assert recall(kept=False) < 0.5


def test_a_graph_that_does_not_fit_is_linked_by_the_cpu(drawn: Any, caplog: Any) -> None:
    sizes: list[int] = []

    def graph(rows: Float32, m: int, ef_construction: int, temporary: int) -> Any:
        sizes.append(temporary >> 20)
        raise MemoryError("std::bad_alloc")

    drawn(graph=graph)
    latents = LatentArrays(mean=features(2_000))
    asked = {"ef_construction": 40, "target_recall": 0.5}
    with caplog.at_level(logging.WARNING):
        fell = build_index(latents, config("cagra", **asked))
    assert sizes == [512, 256, 128, 64]
    assert "out of GPU memory while drawing links of 2,000 rows" in caplog.text
    assert caplog.text.count("going on on the CPU") == 1
    linked_by_cpu = faiss.deserialize_index(np.frombuffer(fell.data, np.uint8))
    whole = KINDS["hnsw"].make(DIM, faiss.METRIC_L2, 2_000, config("hnsw", **asked))
    with faiss_threads(1):  # FAISS before 1.15.1 links in another way every time by several
        whole.add(features(2_000))
    whole.hnsw.efSearch = linked_by_cpu.hnsw.efSearch
    assert written(whole) == fell.data


def test_segments_that_gpus_draw_are_those_that_the_cpu_links(
    drawn: Any, monkeypatch: pytest.MonkeyPatch, segmented: Any, maker: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(filling_module, "_LEAST_GRAPH", 8)
    monkeypatch.setattr(filling_module, "_LINKS", 0)
    sizes: list[int] = []

    def graph(rows: Float32, *asked: int) -> Any:
        sizes.append(len(rows))
        return linked(rows, *asked)

    drawn(graph=graph)
    held = segmented.nights(maker, tmp_path, kind="cagra", target_recall=0.5, ef_construction=40)
    held.change(segmented.photos_of(maker, 40, seed=1))
    manifest = held.publish()
    _, latents, _ = held.items()
    assert manifest.index_kind == "cagra"
    assert sum(sizes) == len(latents)
    assert len(sizes) == len(manifest.files_of("index")) > 1
    ids, _ = held.open().opened.index.search(latents, 1)
    np.testing.assert_array_equal(latents.mean[ids[:, 0]], latents.mean)  # each photo, or its copy, is its nearest


def test_without_gpus_a_graph_of_gpus_is_refused_with_the_remedy(gpus: Any) -> None:
    latents = LatentArrays(mean=features(50))
    gpus(count=lambda: 0)
    with pytest.raises(ConfigError, match=r"'cagra' .* sees no GPU; take kind: hnsw"):
        build_index(latents, config("cagra"))
    assert "cagra" not in candidate_kinds(ROWS, DIM, config("auto"))
    gpus(draws_graphs=lambda: False)
    with pytest.raises(ConfigError, match=r"2 GPUs, but was built without cuVS; take kind: hnsw"):
        build_index(latents, config("cagra"))
    gpus()
    assert "cagra" in candidate_kinds(ROWS, DIM, config("auto"))
    assert "cagra" not in candidate_kinds(ROWS, DIM, config("auto", gpu="never"))
    with pytest.raises(ValidationError, match="kind: hnsw"):
        config("cagra", gpu="never")
    with pytest.raises(ValidationError, match="kind cagra does not go with metric kl"):
        config("cagra", metric="kl")


@pytest.fixture
def real() -> None:
    if gpu.num_gpus() == 0:
        pytest.skip("the installed FAISS sees no GPU")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["ivf_sq8", "ivf_pq"])
def test_gpus_tell_the_cells_that_the_cpu_tells(real: None, kind: str) -> None:
    rows = features(200_000)
    asked = config(kind)
    index = KINDS[kind].make(DIM, faiss.METRIC_L2, len(rows), asked)
    index.train(training_rows(rows, asked))
    by_gpus, by_cpu = (
        filling(kind, faiss.clone_index(index), METRICS["l2"], each) for each in (asked, config(kind, gpu="never"))
    )
    for start in range(0, len(rows), 1 << 14):
        by_gpus.add(rows[start : start + (1 << 14)])
        by_cpu.add(rows[start : start + (1 << 14)])
    lists = [gpu.inverted_file(each.finished()).invlists for each in (by_gpus, by_cpu)]  # type: ignore[union-attr]
    sizes = np.array([[each.list_size(cell) for cell in range(each.nlist)] for each in lists])
    assert sizes.sum(axis=1).tolist() == [len(rows)] * 2
    assert np.abs(sizes[0] - sizes[1]).sum() < 1e-3 * len(rows), "rounding alone"


@pytest.mark.gpu
@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("kind", ["ivf_sq8", "ivf_pq", "cagra"])
def test_what_gpus_build_reaches_its_target_on_the_cpu(real: None, kind: str, metric: str) -> None:
    if kind == "cagra" and not gpu.draws_graphs():
        pytest.skip("the installed FAISS was built without cuVS")
    built = build_index(LatentArrays(mean=features(50_000)), config(kind, metric=metric, m=32, queries=500))
    assert built.recall >= 0.97


@pytest.mark.gpu
def test_a_gpu_that_is_full_is_said_to_be(real: None) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch was installed without CUDA, and fills no GPU")
    for device in range(torch.cuda.device_count()):
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.empty(max(0, free - (64 << 20)), dtype=torch.uint8, device=f"cuda:{device}")
        assert held.numel() >= 0
        with pytest.raises((RuntimeError, MemoryError)) as raised:
            gpu.GPUS.to_gpus(faiss.IndexFlatL2(DIM), 512 << 20)
        assert gpu.ran_out(raised.value)
        del held
        torch.cuda.empty_cache()

"""What GPUs do for an index: they say which centroid is nearest, and draw the links of a graph.

Codes and cells never lie on one: a GPU answers, and the CPU writes the answer down. So what is saved is a CPU index as
ever, a GPU holds centroids and one block of rows, and one that runs out of memory has lost nothing and added nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from .faiss_module import load_faiss, of_numpy
from .latents import Float32, Rows

_TEMPORARY = 512 << 20  # bytes that FAISS sets aside on each GPU to compute in, halved where there are not so many,
_LEAST_TEMPORARY = 64 << 20  # and the fewest that it is asked to do with
_BLOCK = 1 << 14  # rows that GPUs are asked for at a time, halved likewise,
_LEAST_BLOCK = 1 << 10  # and the fewest
_STITCHES = 2  # links from each row into the part of every other GPU
# FAISS's own words, CUDA's, and those of RAPIDS (rmm, raft); of several GPUs FAISS joins what each of them said.
_OUT_OF_MEMORY = re.compile(
    r"out[ _]of[ _]memory|StandardGpuResources: alloc fail|CUDA memory allocation error|cudaErrorMemoryAllocation"
    r"|bad_alloc",
    re.IGNORECASE,
)
_log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Gpus:
    """What is asked of GPUs; every call to FAISS that touches one is behind these.

    count: how many there are. draws_graphs: whether `graph` can be asked. to_gpus: an empty or full flat CPU index and
    the bytes to set aside -> its copy on every GPU, which share the queries. train: a CPU index and rows, where what
    its k-means asks is on GPUs. nearest: such a copy and rows [n, d] -> the number of the nearest centroid, int64 [n].
    graph: rows [n, d], links m, ef_construction, bytes to set aside -> a CPU HNSW index by L2 distance, whose lowest
    level was drawn on GPUs.
    """

    count: Callable[[], int]
    draws_graphs: Callable[[], bool]
    to_gpus: Callable[[Any, int], Any]
    train: Callable[[Any, Float32], None]
    nearest: Callable[[Any, Float32], Rows]
    graph: Callable[[Float32, int, int, int], Any]


def _count() -> int:
    faiss = load_faiss()
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


def _draws_graphs() -> bool:
    return hasattr(load_faiss(), "GpuIndexCagra")  # of the wheels only faiss-gpu-cuvs


def _resources(temporary: int) -> list[Any]:
    held = [load_faiss().StandardGpuResources() for _ in range(_count())]
    for each in held:
        each.setTempMemory(temporary)
    return held


def _to_gpus(index: Any, temporary: int) -> Any:
    faiss = load_faiss()
    options = faiss.GpuMultipleClonerOptions()  # not sharded: each GPU has all centroids and a share of the rows
    options.use_cuvs = False  # it takes memory of its own, which nothing bounds
    # The index on the GPUs shares ownership of the resources, so they need not be kept.
    return faiss.index_cpu_to_gpu_multiple_py(_resources(temporary), index, options)


def _train(index: Any, rows: Float32) -> None:
    index.train(rows)


def nearest(index: Any, rows: Float32) -> Rows:
    """Return the number of the row of a FAISS index that is nearest to each of rows [n, d], int64 [n]."""
    _, found = of_numpy(index, "search")(rows, 1)
    cells: Rows = np.ascontiguousarray(found[:, 0])
    return cells


def _graph(rows: Float32, m: int, ef_construction: int, temporary: int) -> Any:
    """Return CAGRA's graph (Ootomo et al. 2023, arXiv 2308.15136) with the upper levels of an HNSW on top.

    By L2, which orders rows of one length as inner product does, and of others no metric asks a graph: with several
    GPUs FAISS 1.15 stitches and copies a graph by inner product as if the smaller one were the nearer.
    """
    faiss, dim = load_faiss(), rows.shape[1]
    resources = _resources(temporary)
    config = faiss.GpuIndexCagraConfig()
    config.graph_degree, config.intermediate_graph_degree = 2 * m, 4 * m
    config.store_dataset = False  # nothing is searched there
    drawn = faiss.GpuIndexCagra(resources[0], dim, faiss.METRIC_L2, config)
    if len(resources) == 1:
        drawn.train(rows)
    else:
        providers, devices = faiss.GpuResourcesVector(), faiss.Int32Vector()
        for device, each in enumerate(resources):
            providers.push_back(each)
            devices.push_back(device)
        drawn.trainMultiGpu(len(rows), faiss.swig_ptr(rows), providers, devices, 0, _STITCHES)
    graph = faiss.IndexHNSWCagra(dim, m, faiss.METRIC_L2)
    # With upper levels (`base_level_only` stays false): a plain HNSW needs them, which every FAISS opens.
    graph.hnsw.efConstruction = ef_construction
    drawn.copyTo(graph)  # it reads `rows` once more: the GPU index only points to them
    return graph


GPUS = Gpus(_count, _draws_graphs, _to_gpus, _train, nearest, _graph)


def num_gpus() -> int:
    """Return how many GPUs FAISS can use; 0 with a CPU wheel or without a device."""
    return GPUS.count()


def draws_graphs() -> bool:
    """Return whether a graph can be made on a GPU here."""
    return GPUS.count() > 0 and GPUS.draws_graphs()


def inverted_file(index: Any) -> Any:
    """Return the inverted file that an index is, perhaps behind a rotation; None for one without cells."""
    faiss = load_faiss()
    inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
    return inner if hasattr(inner, "nlist") else None


def train(index: Any, rows: Float32, *, gpu: bool) -> None:
    """Train a CPU index; k-means of its cells and of its codes asks all GPUs, where `gpu` says so and there are some.

    What is random is drawn on the CPU: other numbers than without GPUs come of rounding alone.
    """
    inner = inverted_file(index)
    if inner is None or not gpu or GPUS.count() == 0:
        index.train(rows)
        return
    trained = with_less(
        partial(_trained_with, index, inner, rows), _TEMPORARY, _LEAST_TEMPORARY, doing="training cells", unit="bytes"
    )
    if trained is None:
        index.train(rows)


def _trained_with(index: Any, inner: Any, rows: Float32, temporary: int) -> bool:
    faiss = load_faiss()
    cells = GPUS.to_gpus(faiss.IndexFlat(int(inner.d), int(inner.metric_type)), temporary)
    words = GPUS.to_gpus(faiss.IndexFlatL2(int(inner.pq.dsub)), temporary) if hasattr(inner, "pq") else None
    try:
        inner.clustering_index = cells
        if words is not None:
            inner.pq.assign_index = words
        GPUS.train(index, rows)
    finally:
        inner.clustering_index = None
        cells.this.own(True)  # the setter took it, and the C++ object frees it never
        if words is not None:
            inner.pq.assign_index = None
            words.this.own(True)
    return True


def graph_of(rows: Float32, m: int, ef_construction: int) -> Any | None:
    """Return a graph over rows [n, d] that was drawn on GPUs, as `Gpus.graph`; None where their memory is too small."""

    def drawn(temporary: int) -> Any:
        return GPUS.graph(rows, m, ef_construction, temporary)

    return with_less(drawn, _TEMPORARY, _LEAST_TEMPORARY, doing=f"drawing links of {len(rows):,} rows", unit="bytes")


class Centroids:
    """The centroids of a CPU index, on all GPUs for as long as these have memory for a block of rows, then on the CPU.

    The block is halved where they have not, and stays so.
    """

    def __init__(self, quantizer: Any) -> None:
        """quantizer: the flat CPU index of the centroids."""
        self._quantizer, self._block = quantizer, _BLOCK
        copied = partial(GPUS.to_gpus, quantizer)
        self._on_gpus = with_less(copied, _TEMPORARY, _LEAST_TEMPORARY, doing="copying centroids", unit="bytes")

    def nearest(self, rows: Float32) -> Rows:
        """Return the number of the centroid that is nearest to each of rows [n, d], int64 [n]."""
        if self._on_gpus is not None:
            asked = partial(self._in_blocks, rows)
            cells = with_less(asked, self._block, _LEAST_BLOCK, doing="telling cells", unit="rows at a time")
            if cells is not None:
                return cells
            self._on_gpus = None
        return nearest(self._quantizer, rows)

    def _in_blocks(self, rows: Float32, block: int) -> Rows:
        self._block = block
        parts = [GPUS.nearest(self._on_gpus, rows[start : start + block]) for start in range(0, len(rows), block)]
        return np.concatenate([np.empty(0, np.int64), *parts])


def with_less(work: Callable[[int], Answer], size: int, least: int, *, doing: str, unit: str) -> Answer | None:
    """Return what work gives of a size, halved whenever GPUs run out of memory; None where `least` is too much.

    Any other error is raised. What was done is logged.
    """
    while True:
        try:
            return work(size)
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            said = str(error).strip().replace("\n", " ")[-200:]
        # Out of `except`: an error holds the frames of what failed, and with them what lies on the GPUs.
        if size // 2 < least:
            _log.warning("out of GPU memory while %s with %d %s (%s); going on on the CPU", doing, size, unit, said)
            return None
        _log.warning("out of GPU memory while %s with %d %s (%s); trying half of it", doing, size, unit, said)
        size //= 2


def ran_out(error: Exception) -> bool:
    """Return whether an error of FAISS says that a GPU is out of memory.

    Its wrapper tells no more of what RAPIDS raises than MemoryError; if the machine itself is out of memory, the CPU,
    which goes on, says so again.
    """
    return isinstance(error, MemoryError) or bool(_OUT_OF_MEMORY.search(str(error)))

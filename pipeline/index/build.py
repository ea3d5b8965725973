"""Building an index, tuning it to a recall target, and measuring that recall."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigError, InputError
from .config import IndexConfig
from .exact import nearest_exact
from .faiss_module import faiss_threads, load_faiss
from .gpu import cloned_to_cpu, cloned_to_gpu
from .latents import Float32, Float64, LatentArrays, Rows
from .metric import Metric
from .metrics import fitted_metric
from .search import SearchIndex, open_index

# Rows added at a time. An HNSW file depends on it, so it is part of what makes two builds equal to the bit.
ADD_BLOCK = 1 << 14
_GIB = 1 << 30
# Work of the brute-force truth, in products: a catalogue of millions gets fewer queries rather than a slow night.
_TRUTH_PRODUCTS = 64_000_000_000


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of index.

    make: (features, FAISS metric, config) -> an empty FAISS index. bytes: (rows, features, config) -> estimated size in
    memory and as a file. tuned: the name of the one search parameter that trades recall for time, or None.
    set_parameter: writes that parameter into a FAISS index. on_gpu: whether it may be filled on a GPU.
    """

    make: Callable[[int, int, IndexConfig], Any]
    bytes: Callable[[int, int, IndexConfig], int]
    tuned: str | None = None
    set_parameter: Callable[[Any, int], None] | None = None
    on_gpu: bool = False


@dataclass(frozen=True, slots=True)
class BuiltIndex:
    """A finished index: `data` is the FAISS file, `index` what a reader would open from it.

    recall: recall@k, a share, over sampled queries that took no part in tuning. parameters: what was built and found,
    for the manifest.
    """

    index: SearchIndex
    data: bytes
    recall: float
    parameters: dict[str, int | str]


def _make_flat(dim: int, metric: int, config: IndexConfig) -> Any:
    return load_faiss().IndexFlat(dim, metric)


def _flat_bytes(rows: int, dim: int, config: IndexConfig) -> int:
    return rows * dim * 4


def _make_hnsw(dim: int, metric: int, config: IndexConfig) -> Any:
    index = load_faiss().IndexHNSWFlat(dim, config.m, metric)
    index.hnsw.efConstruction = config.ef_construction
    return index


def _hnsw_bytes(rows: int, dim: int, config: IndexConfig) -> int:
    # 2m links of 4 bytes on the lowest level, m on each higher one (a node has 1/(m-1) of them on average), an offset
    # of 8 bytes and a level of 4.
    links = 4 * (2 * config.m + config.m / (config.m - 1))
    return int(rows * (dim * 4 + links + 12))


def _set_ef_search(index: Any, value: int) -> None:
    index.hnsw.efSearch = value


KINDS: Mapping[str, Kind] = {
    "flat": Kind(make=_make_flat, bytes=_flat_bytes, on_gpu=True),
    "hnsw": Kind(make=_make_hnsw, bytes=_hnsw_bytes, tuned="ef_search", set_parameter=_set_ef_search),
}


def estimate_bytes(rows: int, dim: int, config: IndexConfig) -> int:
    """Return the estimated size of an index over rows of `dim` latents, in memory and as a file, in bytes."""
    zeros = np.zeros((1, dim), np.float32)
    one = LatentArrays(mean=zeros, log_var=zeros)  # equal variances: a mask keeps all, the most there can be
    width = fitted_metric(config.metric, config.mask, one).item_features(one).shape[1]
    return KINDS[config.kind].bytes(rows, width, config)


def build_index(latents: LatentArrays, config: IndexConfig) -> BuiltIndex:
    """Build, tune and measure an index over latents [n], in their order; the same input gives the same bytes.

    Raises InputError for latents that are missing or not finite, ConfigError when the index would not fit
    `memory_gib`.
    """
    _check_latents(latents, config)
    metric, kind = fitted_metric(config.metric, config.mask, latents), KINDS[config.kind]
    features = metric.item_features(latents)
    _check_memory(features, config)
    with faiss_threads(config.threads):
        index = _filled(features, metric, kind, config)
        tuning, measuring = _sampled(latents, metric, config)
        found: dict[str, int | str] = {}
        if kind.tuned is not None and kind.set_parameter is not None:
            found[kind.tuned] = _tune(SearchIndex(index, metric), index, kind.set_parameter, tuning, config)
        data = load_faiss().serialize_index(index).tobytes()
        del index  # there are two more of it
        reopened = open_index(data, metric.name)  # measured as a reader will open it
        recall = recall_at_k(reopened, measuring, config.k)
    parameters = {"k": config.k, "queries": len(measuring.rows), **_built_with(config), **found}
    return BuiltIndex(index=reopened, data=data, recall=recall, parameters=parameters)


@dataclass(frozen=True, slots=True)
class Truth:
    """Queries that are rows of the index, and the score of each one's k-th nearest other row.

    rows: int64 [q]; queries: their latents [q]; kth: float64 [q] (fewer neighbours than k: of the last one).
    """

    rows: Rows
    queries: LatentArrays
    kth: Float64
    neighbours: int


def truth_of(latents: LatentArrays, metric: Metric, rows: Rows, k: int) -> Truth:
    """Return the exact k-th scores of these rows' neighbours, each row itself left out."""
    queries = latents.take(rows)
    _, scores = nearest_exact(metric, latents, queries, k, exclude=rows)
    neighbours = scores.shape[1]
    kth = scores[:, -1] if neighbours else np.empty(0)
    return Truth(rows=rows, queries=queries, kth=kth, neighbours=neighbours)


def recall_at_k(index: SearchIndex, truth: Truth, k: int) -> float:
    """Return the share of the k nearest rows that the index finds, in 0..1; 1 where there are no neighbours to find.

    A row counts when its exact score reaches that of the true k-th neighbour, so rows at the same distance (copies of
    one photo) count alike whichever the index returns. The query itself is left out.
    """
    if truth.neighbours == 0 or len(truth.rows) == 0:
        return 1.0
    hits = index.search(truth.queries, truth.neighbours + 1)
    others = hits.ids != truth.rows[:, None]
    # The index scores its own float32 features, the truth the latents: they differ by that rounding only.
    reached = hits.scores >= (truth.kth - 1e-6 * np.maximum(1.0, np.abs(truth.kth)))[:, None]
    good = np.minimum(np.sum(others & reached & (hits.ids >= 0), axis=1), truth.neighbours)
    return float(good.sum() / (truth.neighbours * len(truth.rows)))


def _check_latents(latents: LatentArrays, config: IndexConfig) -> None:
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


def _check_memory(features: Float32, config: IndexConfig) -> None:
    need = KINDS[config.kind].bytes(features.shape[0], features.shape[1], config)
    if config.memory_gib is not None and need > config.memory_gib * _GIB:
        raise ConfigError(
            f"a {config.kind} index of {features.shape[0]} rows x {features.shape[1]} features needs about "
            f"{need / _GIB:.3g} GiB, index.memory_gib allows {config.memory_gib:g}; raise it"
            + (", lower index.m, or take kind: flat" if config.kind == "hnsw" else "")
        )


def _filled(features: Float32, metric: Metric, kind: Kind, config: IndexConfig) -> Any:
    """Return the CPU index with every row added in fixed blocks, in order."""
    faiss = load_faiss()
    geometry = faiss.METRIC_L2 if metric.geometry == "l2" else faiss.METRIC_INNER_PRODUCT
    index = kind.make(features.shape[1], geometry, config)
    filling = cloned_to_gpu(index) if kind.on_gpu and config.gpu == "auto" else index
    for start in range(0, len(features), ADD_BLOCK):
        filling.add(features[start : start + ADD_BLOCK])
    return filling if filling is index else cloned_to_cpu(filling)


def _sampled(latents: LatentArrays, metric: Metric, config: IndexConfig) -> tuple[Truth, Truth]:
    """Return two disjoint samples of queries: one to tune by, one to measure by."""
    affordable = _TRUTH_PRODUCTS // max(1, 2 * latents.mean.size)
    count = min(config.queries, max(100, affordable), (len(latents) + 1) // 2)
    drawn = np.random.default_rng(config.seed).permutation(len(latents))[: 2 * count]
    tuning = np.sort(drawn[: len(drawn) // 2]) if config.kind != "flat" else drawn[:0]
    measuring = np.sort(drawn[len(drawn) // 2 :])
    return truth_of(latents, metric, tuning, config.k), truth_of(latents, metric, measuring, config.k)


def _tune(
    index: SearchIndex, raw: Any, set_parameter: Callable[[Any, int], None], truth: Truth, config: IndexConfig
) -> int:
    """Return (and leave in `raw`) the least parameter that reaches the target on the tuning queries.

    Doubles until the target is reached, then halves the interval; at `max_ef_search` it gives up and keeps that.
    """

    def reaches(value: int) -> bool:
        set_parameter(raw, value)
        return recall_at_k(index, truth, config.k) >= config.target_recall

    high = min(max(8, config.k + 1), config.max_ef_search)
    low = high  # not known to fail: the first value is the least that makes sense
    while not reaches(high):
        if high == config.max_ef_search:
            return high
        low, high = high, min(2 * high, config.max_ef_search)
    while high - low > max(1, high // 32):
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    set_parameter(raw, high)
    return high


def _built_with(config: IndexConfig) -> dict[str, int | str]:
    built: dict[str, int | str] = {"add_block": ADD_BLOCK}
    if config.kind == "hnsw":
        built |= {"m": config.m, "ef_construction": config.ef_construction}
    return built

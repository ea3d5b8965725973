"""The kinds of index: one row of a table each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigError, InputError
from .config import IndexConfig
from .faiss_module import faiss_version, load_faiss
from .gpu import draws_graphs, num_gpus
from .latents import Float32, LatentArrays
from .metric import Apart
from .metrics import METRICS, fitted_metric
from .pairs import WORDS, apart_of, empty_pairs

_TRAINED_ON = 32  # rows a cell (or a codeword) that a trained part is fitted to,
_ROUNDS = 6  # and of k-means; twice the rows and ten rounds find no more (measured: README, Tuning)
_LEAST_TRAINED_ON = 1 << 14
_MOST_TRAINED_ON = 1 << 18
_LEAST_ROWS = 1024  # a 4-bit product quantizer wants 39 for each of its 16 words
# Up to so many numbers `auto` is `flat`: scanning them takes 2.6 ms of a processor (131,072 x 64, AVX2).
SCANNED = 1 << 23


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of index.

    make: (features, FAISS metric, rows, config) -> an empty FAISS index. row_bytes: (features, rows, config) -> bytes a
    vector, in memory and in the file. filters: whether a search takes a selector; mmap: whether a mapped file is paged
    in rather than read whole. lowest_faiss: the first version that reads the file. lossy: whether it stores codes, and
    the exact features lie beside it. by_unseen: whether its own rows are found more easily than others, a graph being
    entered next to them, so that it is tuned and measured by queries left out of it. tuned: what trades recall for
    time, in the order it is walked. on_gpu: whether GPUs make it, of all rows at once, into what `make` gives; what
    they do for other kinds changes no file's form. of_gaussians: whether its codes are of the mean and variance of each
    latent, for metrics whose features are of single latents (`Metric.apart`) alone.
    """

    make: Callable[[int, int, int, IndexConfig], Any]
    row_bytes: Callable[[int, int, IndexConfig], float]
    filters: bool
    mmap: bool
    lowest_faiss: tuple[int, ...] = (1, 11)
    lossy: bool = False
    by_unseen: bool = False
    tuned: tuple[str, ...] = ()
    on_gpu: bool = False
    of_gaussians: bool = False


def cells_of(rows: int) -> int:
    """Return the number of cells of an inverted file: four times the root of its rows, each of about 40 at least."""
    return max(1, min(int(4 * np.sqrt(rows)), rows // 40, 1 << 16))


def _rotated(dim: int, index: Any, config: IndexConfig) -> Any:
    """Return the index behind a seeded random rotation: latents of a falling spectrum waste the bits of any code."""
    faiss = load_faiss()
    rotation = faiss.RandomRotationMatrix(dim, int(index.d))
    rotation.init(config.seed + 1)
    return faiss.IndexPreTransform(rotation, index)


def _even(dim: int) -> int:
    return dim + dim % 2


def _make_flat(dim: int, metric: int, rows: int, config: IndexConfig) -> Any:
    return load_faiss().IndexFlat(dim, metric)


def _make_hnsw(dim: int, metric: int, rows: int, config: IndexConfig) -> Any:
    index = load_faiss().IndexHNSWFlat(dim, config.m, metric)
    index.hnsw.efConstruction = config.ef_construction
    return index


def _hnsw_bytes(dim: int, rows: int, config: IndexConfig) -> float:
    # 2m links of 4 bytes on the lowest level, m on each higher one (a node has 1/(m-1) of them on average), an offset
    # of 8 bytes and a level of 4.
    links = 4 * (2 * config.m + config.m / (config.m - 1))
    return dim * 4 + links + 12


def _make_hnsw_sq8(dim: int, metric: int, rows: int, config: IndexConfig) -> Any:
    faiss = load_faiss()
    index = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_8bit, config.m, metric)
    index.hnsw.efConstruction = config.ef_construction
    return _rotated(dim, index, config)


def _hnsw_sq8_bytes(dim: int, rows: int, config: IndexConfig) -> float:
    return _hnsw_bytes(dim, rows, config) - 3.0 * dim + 4.0 * dim * (dim + 2) / max(1, rows)


def _make_flat_codes(dim: int, metric: int, rows: int, config: IndexConfig) -> Any:
    faiss = load_faiss()
    return _rotated(dim, faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit, metric), config)


def _make_flat_eden4(dim: int, metric: int, rows: int, config: IndexConfig) -> Any:
    faiss = load_faiss()
    return _rotated(dim, faiss.index_factory(dim, "EDEN4", metric), config)


def _in_cells(key: str, dim: int, wide: int, metric: int, rows: int, config: IndexConfig) -> Any:
    """Return an inverted file of a code that FAISS calls `key`, behind a rotation to `wide` features."""
    index = load_faiss().index_factory(wide, f"IVF{cells_of(rows)},{key}", metric)
    index.cp.niter, index.cp.min_points_per_centroid = _ROUNDS, 1  # below 39 rows a cell FAISS would warn
    return _rotated(dim, index, config)


def _make_ivf_sq8(dim: int, metric: int, rows: int, config: IndexConfig) -> Any:
    return _in_cells("SQ8", dim, dim, metric, rows, config)


def _make_ivf_pq(dim: int, metric: int, rows: int, config: IndexConfig) -> Any:
    wide = _even(dim)
    return _in_cells(f"PQ{wide // 2}x4fs", dim, wide, metric, rows, config)


def _apart_of(config: IndexConfig) -> Apart | None:
    """Return how the features of a config's metric lie, where they are of single latents; None where they are not."""
    if config.metric not in METRICS:
        return None
    zeros = np.zeros((1, 2), np.float32)
    mask = "none" if config.mask == "catalogue_median" else config.mask
    return fitted_metric(config.metric, mask, LatentArrays(mean=zeros, log_var=zeros)).apart


def _make_ivf_pairs(dim: int, metric: int, rows: int, config: IndexConfig) -> Any:
    apart = apart_of(_apart_of(config), config.metric)
    return empty_pairs(apart.dim(dim), apart, dim, cells_of(rows))


def _ivf_pairs_bytes(dim: int, rows: int, config: IndexConfig) -> float:
    apart = apart_of(_apart_of(config), config.metric)
    latents = apart.dim(dim)
    parts = 4.0 * latents * apart.count * (WORDS + cells_of(rows) + 1) + 16 * cells_of(rows)
    return latents + 8.0 + parts / max(1, rows)


def _with_parts(code: Callable[[int], float], *, cells: bool = False) -> Callable[[int, int, IndexConfig], float]:
    """Return the bytes a vector of a code behind a rotation, with its share of the trained parts."""

    def row_bytes(dim: int, rows: int, config: IndexConfig) -> float:
        parts = 4.0 * dim * dim + (cells_of(rows) * (4 * dim + 16) if cells else 0)
        return code(dim) + (8.0 if cells else 0.0) + parts / max(1, rows)

    return row_bytes


KINDS: Mapping[str, Kind] = {
    "flat": Kind(make=_make_flat, row_bytes=lambda dim, rows, config: dim * 4.0, filters=True, mmap=True),
    "hnsw": Kind(
        make=_make_hnsw, row_bytes=_hnsw_bytes, filters=True, mmap=False, tuned=("ef_search",), by_unseen=True
    ),
    "cagra": Kind(
        make=_make_hnsw,  # whatever drew it, an HNSW over the features
        row_bytes=_hnsw_bytes,
        filters=True,
        mmap=False,
        tuned=("ef_search",),
        by_unseen=True,
        on_gpu=True,
    ),
    "hnsw_sq8": Kind(
        make=_make_hnsw_sq8,
        row_bytes=_hnsw_sq8_bytes,
        filters=True,
        mmap=False,
        lossy=True,
        tuned=("candidates",),  # a walk keeps as many as are scored exactly after it
        by_unseen=True,
    ),
    "flat_codes": Kind(
        make=_make_flat_codes,
        row_bytes=_with_parts(float),
        filters=True,
        mmap=True,
        lossy=True,
        tuned=("candidates",),
    ),
    "flat_eden4": Kind(
        make=_make_flat_eden4,
        row_bytes=_with_parts(lambda dim: (dim + 1) // 2 + 8.0),
        filters=True,
        mmap=False,
        lowest_faiss=(1, 15),
        lossy=True,
        tuned=("candidates",),
    ),
    "ivf_sq8": Kind(
        make=_make_ivf_sq8,
        row_bytes=_with_parts(float, cells=True),
        filters=True,
        mmap=True,
        lossy=True,
        tuned=("candidates", "nprobe"),
    ),
    "ivf_pq": Kind(
        make=_make_ivf_pq,
        # FastScan fills each cell up to a multiple of 32 codes.
        row_bytes=_with_parts(lambda dim: _even(dim) / 4 * 1.25, cells=True),
        filters=True,
        mmap=False,
        lossy=True,
        tuned=("candidates", "nprobe"),
    ),
    "ivf_pairs": Kind(
        make=_make_ivf_pairs,
        row_bytes=_ivf_pairs_bytes,
        filters=True,
        mmap=True,
        lossy=True,
        tuned=("candidates", "nprobe"),
        of_gaussians=True,
    ),
}


def feature_width(latent_dim: int, config: IndexConfig) -> int:
    """Return how many features an index holds of a row of `latent_dim` latents; under a mask the most there can be."""
    zeros = np.zeros((1, latent_dim), np.float32)
    one = LatentArrays(mean=zeros, log_var=zeros)  # equal variances: a mask keeps all
    return int(fitted_metric(config.metric, config.mask, one).item_features(one).shape[1])


def estimate_bytes(rows: int, dim: int, config: IndexConfig, *, segmented: bool = False) -> int:
    """Return the estimated size of an index over rows of `dim` features, in memory and as a file, in bytes.

    For `auto` that of the largest kind which may be built inside `memory_gib`. segmented: as one of several segments.
    """
    names = _built_kinds(rows, dim, config, segmented=segmented)
    return max(int(rows * KINDS[name].row_bytes(dim, rows, config)) for name in names)


def estimate_features_bytes(rows: int, dim: int, config: IndexConfig, *, segmented: bool = False) -> int:
    """Return the size of the file of exact features beside an index of codes; 0 where none may be written."""
    names = _built_kinds(rows, dim, config, segmented=segmented)
    return 4 * rows * dim if any(KINDS[name].lossy for name in names) else 0


def _built_kinds(rows: int, dim: int, config: IndexConfig, *, segmented: bool) -> tuple[str, ...]:
    """Return the kinds that a night may build, at least one."""
    if scanned(rows, dim, config):
        return ("flat",)
    return segment_kinds(rows, dim, config) if segmented else candidate_kinds(rows, dim, config)


def scanned(rows: int, dim: int, config: IndexConfig, before: Mapping[str, Any] | None = None) -> bool:
    """Return whether `auto` is `flat` without looking at other kinds: few numbers, and nothing that speaks against it.

    before: the parameters of the parent's index, whose kind is left only when it no longer does what is asked for.
    """
    asked = config.kind == "auto" and config.latency_p99_ms is None and (before or {}).get("kind", "flat") == "flat"
    return asked and rows * dim <= SCANNED and "flat" in candidate_kinds(rows, dim, config)


def segment_kinds(rows: int, dim: int, config: IndexConfig) -> tuple[str, ...]:
    """Return the kinds that segments over these rows may be, as `candidate_kinds`.

    For `auto` a graph is none of them: to fill one takes minutes a million rows, of a sample and of each segment.
    """
    names = candidate_kinds(rows, dim, config)
    return names if config.kind != "auto" else tuple(name for name in names if not KINDS[name].by_unseen)


def candidate_kinds(rows: int, dim: int, config: IndexConfig) -> tuple[str, ...]:
    """Return the kinds that may be built: the one asked for, or for `auto` those inside `memory_gib`, all when none.

    For `auto` a graph over codes is none where one over the features fits: it takes as long to build, and finds less.
    """
    if config.kind != "auto":
        return (config.kind,)
    limit = np.inf if config.memory_gib is None else config.memory_gib * (1 << 30)
    here = kinds_here(config)
    inside = [name for name in here if rows * KINDS[name].row_bytes(dim, rows, config) <= limit] or here
    return tuple(name for name in inside if name != "hnsw_sq8" or "hnsw" not in inside)


def kinds_here(config: IndexConfig) -> tuple[str, ...]:
    """Return the kinds that the installed FAISS can build on this machine."""
    gpus = config.gpu == "auto" and draws_graphs()
    return tuple(
        name
        for name in kinds_for(config)
        if KINDS[name].lowest_faiss <= faiss_version() and (gpus or not KINDS[name].on_gpu)
    )


def kinds_for(config: IndexConfig) -> tuple[str, ...]:
    """Return the kinds that can hold what a config's metric compares."""
    gaussians = _apart_of(config) is not None
    return tuple(name for name, kind in KINDS.items() if gaussians or not kind.of_gaussians)


def check_readable(kind: str, release: str) -> None:
    """Raise, before anything is downloaded, when this version or the installed FAISS does not read a kind of index.

    InputError for a kind that a newer version of this library made, ConfigError for too old a FAISS.
    """
    if kind not in KINDS:
        raise InputError(
            f"release {release} has an index of the kind {kind!r}, this version reads {', '.join(KINDS)}; "
            "upgrade visual-codebooks"
        )
    lowest = KINDS[kind].lowest_faiss
    if faiss_version() < lowest:
        raise ConfigError(
            f"release {release} has an index of the kind {kind!r}, which FAISS reads from "
            f"{'.'.join(map(str, lowest))} on; installed is {load_faiss().__version__}: pip install --upgrade faiss-cpu"
        )


def check_installed(kind: str) -> None:
    """Raise ConfigError when the installed FAISS is too old to build a kind, or sees no GPU to build it on."""
    if KINDS[kind].on_gpu and not draws_graphs():
        seen = "no GPU" if num_gpus() == 0 else f"{num_gpus()} GPUs, but was built without cuVS"
        raise ConfigError(
            f"an index of kind {kind!r} is drawn on GPUs, and the FAISS installed here sees {seen}; take kind: hnsw, "
            "which builds the same kind of file on the CPU, or a machine with a GPU and `pip install "
            "'visual-codebooks[gpu]'` in the place of [cpu]"
        )
    lowest = KINDS[kind].lowest_faiss
    if lowest > faiss_version():
        raise ConfigError(
            f"an index of kind {kind!r} needs FAISS {'.'.join(map(str, lowest))}, installed is "
            f"{load_faiss().__version__}: pip install --upgrade faiss-cpu, or take kind: flat_codes"
        )


def rows_to_train(rows: int) -> int:
    """Return how many rows of a catalogue cells and codes for an index of `rows` rows are fitted to at most."""
    return min(max(_LEAST_TRAINED_ON, _TRAINED_ON * cells_of(rows)), _MOST_TRAINED_ON)


def training_rows(features: Float32, config: IndexConfig) -> Float32:
    """Return a seeded sample of features to fit cells and codes to; a few rows repeated where there are hardly any."""
    wanted = rows_to_train(len(features))
    if len(features) > wanted:
        drawn = np.random.default_rng(config.seed).permutation(len(features))[:wanted]
        return np.ascontiguousarray(features[np.sort(drawn)])
    return enough_rows(features)


def enough_rows(features: Float32) -> Float32:
    """Return features to fit to; a few rows repeated where there are hardly any, zeros where there are none."""
    if len(features) >= _LEAST_ROWS:
        return features
    if len(features) == 0:
        return np.zeros((_LEAST_ROWS, features.shape[1]), np.float32)
    return np.resize(features, (_LEAST_ROWS, features.shape[1]))
